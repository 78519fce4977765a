"""open_clip's own model of a file: which configuration it gets, and what it refuses."""

import json

import numpy as np
import pytest
import safetensors.numpy

from tests.convert.open_clip_models import CONFIGS, changed, random_tensors
from vit_jax.convert.open_clip import config, peer
from vit_jax.convert.open_clip.config import FILE, Config
from vit_jax.io.tensors import Tensor
from vit_jax.models import describe
from vit_jax.types import UserError


@pytest.fixture
def file(open_clip, tmp_path):
    """Weights of "clip", random, its configuration beside them, and our model."""
    module = open_clip.CLIP(**CONFIGS["clip"])
    arrays = random_tensors({n: tuple(x.shape) for n, x in module.state_dict().items()})
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    (tmp_path / FILE).write_text(json.dumps({"model_cfg": CONFIGS["clip"]}))
    theirs = {n: Tensor.of(x) for n, x in arrays.items()}
    fields, *_ = config.read(theirs, Config(CONFIGS["clip"], {}, {}))
    return tmp_path / "x.safetensors", describe.build(fields)


def test_the_configuration_beside_it_counts(file, rng):
    path, model = file
    images, texts = rng.normal(size=(3, 16, 16, 3)).astype(np.float32), rng.integers(0, 40, (3, 7)).astype(np.int32)
    run = peer.peer(path, model)
    out = run(images, texts)
    assert {k: x.shape for k, x in out.items()} == {
        "image embedding": (3, 24), "text embedding": (3, 24), "logit": (3, 3),
    }  # fmt: skip
    scale = np.exp(safetensors.numpy.load_file(path)["logit_scale"])
    np.testing.assert_allclose(out["logit"], scale * out["image embedding"] @ out["text embedding"].T, atol=1e-5)
    quick = changed(CONFIGS["clip"], quick_gelu=True)
    (path.parent / FILE).write_text(json.dumps({"model_cfg": quick}))
    other = peer.peer(path, model)(images, texts)
    assert np.abs(other["logit"] - out["logit"]).max() > 1e-3  # not what our model says
    (path.parent / FILE).unlink()
    ours = peer.peer(path, model)(images, texts)  # nothing else is known
    np.testing.assert_array_equal(ours["logit"], out["logit"])


def test_what_it_refuses(file):
    path, model = file
    wrong = changed(CONFIGS["clip"], vision_cfg={"qk_norm": True})
    (path.parent / FILE).write_text(json.dumps({"model_cfg": wrong}))
    with pytest.raises(UserError, match=r"open_clip [\d.]+ refuses the weights at .*x.safetensors \(.*Missing key"):
        peer.build(path, model)
    with pytest.raises(UserError, match="open_clip's models have no text tower with pool='map'"):
        (path.parent / FILE).unlink()
        peer.build(path, model.clone(text_tower=model.text_tower.clone(pool="map")))
