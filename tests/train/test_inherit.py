"""What a run takes over from the weights it starts from."""

import jax
import numpy as np
import pytest

from tests.data.tokenizer.conftest import CAPTIONS
from vit_jax import config, losses, models, objectives
from vit_jax.config import parse
from vit_jax.convert import write
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer import open_tokenizer
from vit_jax.data.tokenizer.train import train
from vit_jax.io.tensors import Tensor
from vit_jax.models import describe
from vit_jax.train import inherit, inputs, start, workdir
from vit_jax.train.config import TrainConfig
from vit_jax.train.setup import build
from vit_jax.types import UsageError, UserError

SIZE = {"width": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
VIT = models.create("vit", **SIZE, patch=4, num_classes=5, activation="gelu_tanh")
NORM = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)


def stored(model, size=12, **more):
    """``model`` with all its parameters zero, for images of ``size`` pixels."""
    params = {p: Tensor.of(np.zeros(s, np.float32)) for p, s in describe.shapes(model, size).items()}
    return Stored(model, params, **{"preprocess": Preprocess(size, 0.75, "bicubic", *NORM), **more})


def pairs(encoder, name="two_tower", **more):
    t = encoder.tokenizer
    image = {"name": "vit", "patch": 4, "num_classes": 0, **SIZE}
    text = {"vocab_size": t.vocab_size, "length": encoder.length, "end_id": t.end_id, **SIZE}
    return models.create(name, image_tower=image, text_tower=text, embed_dim=16, **more)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer that is a file."""
    path = tmp_path_factory.mktemp("words") / "words.json"
    path.write_text(train(CAPTIONS, 300))
    return TextCodec(open_tokenizer(f"json:{path}"), 8)


@pytest.fixture(scope="module")
def places(tmp_path_factory, words):
    """Weights by what they are."""
    root = tmp_path_factory.mktemp("weights")
    bytes_ = TextCodec(open_tokenizer("bytes"), 8)
    coca = {"decoder": {"depth": 1, "heads": 2, "mlp_dim": 32}, "queries": 3, "pool_heads": 2}
    found = {
        "vit": stored(VIT, class_names=tuple("abcde")),
        "words": stored(pairs(words), encoder=words),
        "sigmoid": stored(pairs(bytes_, bias=-10.0), encoder=bytes_),
        "coca": stored(pairs(bytes_, "coca", **coca), encoder=bytes_),
        "mute": stored(pairs(bytes_)),
    }
    for name, weights in found.items():
        write.save(weights, root / name, "vit_jax")
    write.save(found["vit"], root / "timm", "timm")
    return root


@pytest.mark.first(1)
@pytest.mark.parametrize("name", ["timm", "vit"])
def test_the_model_of_the_weights(name, places, tiny):
    """It is named nowhere; the head fits the data, and fields that are given come on top."""
    raw = tiny(model=None, augment={"size": 12}, data={"path": "fake:64x12x4", "canvas": 12}, init=str(places / name))
    for given in ({"name": "init", "dtype": "bfloat16"}, "init(dtype='bfloat16')"):
        found = inherit.resolved({**raw, "model": given})
        model = parse(TrainConfig, found).model
        assert model == VIT.clone(dtype="bfloat16", num_classes=model.num_classes)
        assert inherit.resolved(found) is found


def test_the_encoder_of_an_image_text_model(places, tiny):
    raw = tiny(model=None, init=str(places / "mute")) | {"model": "init"}
    with_text = {**raw, "data": {**raw["data"], "text": {"tokenizer": "bytes"}}}
    both = parse(TrainConfig, inherit.resolved(with_text)).model
    assert parse(TrainConfig, inherit.resolved(raw)).model.clone(num_classes=0) == both.image_tower
    fields = {"name": "init", "image_tower": {"dtype": "bfloat16"}}
    half = parse(TrainConfig, inherit.resolved({**with_text, "model": fields})).model
    assert half == both.clone(image_tower=both.image_tower.clone(dtype="bfloat16"))


RECIPE = [("data.path", "digits_pairs"), ("model.image_tower.dtype", "float32"), ("model.text_tower.dtype", "float32")]


def tuned(place, *more):
    raw = config.load("finetune_clip", [*RECIPE, ("init", str(place)), *more])
    return inherit.resolved(raw)


def test_the_recipe_needs_the_weights_alone(places):
    """Architecture, tokenizer and length of texts, pixels and loss are theirs."""
    raw = tuned(places / "sigmoid")
    c = parse(TrainConfig, raw)
    assert (raw["data"]["text"], c.data.canvas) == ({"tokenizer": "bytes", "length": 8}, 12)
    assert (c.data.frame.edge, c.data.frame.interpolation) == (16, "bicubic")
    assert (c.augment.size, c.augment.crop, c.augment.interpolation) == (12, 1.0, "bicubic")
    assert (c.augment.norm.mean, c.augment.norm.std) == NORM
    assert c.objective == objectives.Contrast(loss=losses.Sigmoid())
    assert parse(TrainConfig, tuned(places / "words")).objective == objectives.Contrast()
    coca = parse(TrainConfig, tuned(places / "coca", ("objective.caption_weight", "1.0")))
    assert coca.objective == objectives.CoCa(caption_weight=1.0)
    larger = parse(TrainConfig, tuned(places / "sigmoid", ("augment.size", "24")))
    assert (larger.augment.size, larger.data.canvas, larger.data.frame.edge) == (24, 24, 32)


def test_a_preview_is_as_the_weights_have_it(places):
    raw = config.load("finetune_clip", [*RECIPE, ("init", str(places / "words"))])
    _, sections, _ = inputs.preview("digits_pairs", raw)
    assert {images.shape[1:] for images, _ in sections.values()} == {(12, 12, 3)}


def test_a_tokenizer_without_a_name_goes_along(places, words, tmp_path):
    """Its file is needed no more; a run that goes on, or is evaluated, does not need the weights either."""
    raw = tuned(places / "words")
    assert raw["data"]["text"] == {"tokenizer": "init", "length": 8}
    c = parse(TrainConfig, raw)
    assert inherit.with_tokenizer(c).data.text.encoder() == words
    assert workdir.complete(c)["data"]["text"]["tokenizer"] == "init"
    later = parse(TrainConfig, {**raw, "init": "/no/longer/there"})
    assert inherit.with_tokenizer(later, places / "words").data.text.encoder() == words  # as in a workdir
    with pytest.raises(UserError, match="/no/longer/there"):
        inherit.with_tokenizer(later, tmp_path)


def test_what_cannot_be_taken_over_is_a_sentence(places, tiny):
    raw = tiny() | {"model": "init"}
    with pytest.raises(UsageError, match=r"model=init is that of the weights .* --config\.init=PLACE; give that"):
        inherit.resolved(raw)
    texts = {**raw, "init": str(places / "vit"), "data": {**raw["data"], "text": {"tokenizer": "bytes"}}}
    with pytest.raises(UserError, match=r"is a model of images alone, and data\.text asks for one of texts"):
        inherit.resolved(texts)
    with pytest.raises(UserError, match=r"mute\S* came without a tokenizer; .*--config\.data\.text\.tokenizer=clip"):
        tuned(places / "mute")
    with pytest.raises(UserError, match=r"optim\.lr=init is asked of .*, which does not say that; give a value"):
        tuned(places / "sigmoid", ("optim.lr", "init"))
    raw = tiny(data={"text": {"tokenizer": "init"}})
    with pytest.raises(UsageError, match=r"data\.text\.tokenizer=init is that of the weights"):
        inherit.with_tokenizer(parse(TrainConfig, raw))


def test_a_dry_run_tells_another_tokenizer(places):
    c = parse(TrainConfig, tuned(places / "words", ("data.text.tokenizer", "bytes")))
    with pytest.raises(UserError, match=r"trained with the tokenizer 'json' .* are read with 'bytes'"):
        start.look(inherit.with_tokenizer(c))
    start.look(inherit.with_tokenizer(parse(TrainConfig, tuned(places / "words"))))


def test_a_step_of_the_recipe_is_traced(places):
    c = parse(TrainConfig, tuned(places / "coca", ("batch_size", "16"), ("data.holdout", "16")))
    setup = build(inherit.with_tokenizer(c), jax.devices()[:1])
    with jax.set_mesh(setup.mesh):
        _, metrics = jax.eval_shape(setup.step, setup.shapes, setup.batch_shapes)
    assert {"loss", "caption", "image_to_text"} <= metrics.keys()


@pytest.mark.parametrize("key", ["init", "resume_from"])
def test_a_place_may_be_called_init(key):
    raw = {"model": {"name": "vit"}, "objective": "classify", key: "init"}
    assert inherit.resolved(raw) is raw


def test_a_value_of_python_is_not_compared_with_a_word():
    raw = {"model": {"name": "vit"}, "augment": {"mean": np.zeros(3)}}
    assert inherit.resolved(raw) is raw
