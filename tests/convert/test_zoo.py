"""Tags of published weights: every row is whole, its model exists, and its place is where such weights come from."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.cli import main
from vit_jax.convert import read, write, zoo
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.io import hub, remote
from vit_jax.io.tensors import Tensor
from vit_jax.models import describe
from vit_jax.types import UsageError

ROWS = zoo.find()


def test_every_row():
    assert len(ROWS) == len({row.tag for row in ROWS}) == len({row.place for row in ROWS}) > 70
    for row in ROWS:
        assert row.tag.startswith(f"{row.model}.") and re.fullmatch(r"[\w]+\.[\w]+", row.tag), row
        assert row.model in models.names() and isinstance(models.create(row.model), models.ImageModel | models.TwoTower)
        assert hub._URI.fullmatch(row.place), row
        assert row.licence in ("Apache-2.0", "MIT") and row.source, row
        assert (row.metric, row.accuracy is None) in {
            ("", True),
            ("top1", False),
            ("zero_shot", False),
            ("linear", False),
        }
        assert row.accuracy is None or 50 < row.accuracy < 95, row
        patch = getattr(models.create(row.model), "image_tower", models.create(row.model)).patch
        assert row.size in (224, 256, 384, 512, 518) and patch, row


def test_the_name_of_the_place_is_that_of_the_model():
    """timm's name of a file, without what it was trained on, is a name of the model in the tag."""
    for row in ROWS:
        org, name = row.place.removeprefix("hf://").split("/")
        assert org in ("timm", "openai", "laion", "google")
        if org != "timm":
            patch = models.create(row.model).image_tower.patch
            size = {"b": "(B|base)", "l": "(L|large)", "so400m": "so400m"}[re.search(r"vit_(\w+?)\d+\.", row.tag)[1]]
            assert re.search(rf"(ViT-|clip-vit-|siglip-){size}-(patch)?{patch}\b", name), row
        elif "dinov2" in name:
            assert re.fullmatch(r"vit_(small|base|large)_patch14(_reg4)?_dinov2\.lvd142m", name), row
        else:
            architecture, _, training = name.partition(".")
            assert models.ALIASES[architecture] == row.model, row
            assert row.tag == f"{row.model}.{training}" + (f"_{row.size}" if row.size != 224 else "")


@pytest.mark.parametrize(
    ("tag", "millions"),
    [
        ("vit_b16.augreg_in21k_ft_in1k", 86.57),
        ("vit_r26_s32.augreg_in21k_ft_in1k", 36.43),
        ("mixer_b16.goog_in21k_ft_in1k", 59.88),
    ],
)
def test_the_model_has_the_published_number_of_parameters(tag, millions):
    row = zoo.tags()[tag]
    shapes = describe.shapes(models.create(row.model, num_classes=1000), row.size)
    assert round(sum(int(np.prod(s)) for s in shapes.values()) / 1e6, 2) == millions  # timm's results-imagenet.csv


def test_find():
    assert [row.size for row in zoo.find("siglip_vit_b16.*")] == [224, 256, 384, 512]
    assert zoo.find("nothing*") == []


def test_places():
    row = zoo.tags()["vit_b16.augreg_in21k"]
    assert (
        zoo.place_of(row.tag)
        == zoo.place_of("augreg_in21k", "vit_b16")
        == zoo.place_of(row.tag, "ViT-B_16")
        == row.place
    )
    for place in ("hf://org/name", "gs://x/y.npz", "some/where", "/no/where", "weights"):
        assert zoo.place_of(place) == place
    for wrong, model, text in (
        ("vit_b16.augreg_in22k", None, "did you mean 'vit_b16.augreg_in21k'"),
        ("augreg", "vit_b16", "vit_b16.augreg_in21k"),
        ("quux", "siglip_vit_l16", "did you mean 'siglip_vit_l16.webli_256' or 'siglip_vit_l16.webli_384'?"),
    ):
        with pytest.raises(UsageError, match="no tag of published weights") as e:
            zoo.place_of(wrong, model)
        assert text in str(e.value)


def test_a_file_of_the_same_name_is_meant_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vit_b16.mine").touch()
    assert zoo.place_of("vit_b16.mine") == "vit_b16.mine"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The hub, which holds one tiny ViT under every name; what was asked for is listed."""
    model = models.create("vit", width=16, depth=1, heads=2, mlp_dim=32, patch=4, num_classes=2)
    rng = np.random.default_rng(0)
    params = {
        p: Tensor.of(rng.normal(size=s, scale=0.1).astype(np.float32)) for p, s in describe.shapes(model, 8).items()
    }
    write.save(Stored(model, params, Preprocess(8), ("ant", "bee")), tmp_path / "hub", "timm")
    asked = []
    monkeypatch.setattr(remote.hub, "fetch_hub", lambda source: asked.append(source) or tmp_path / "hub")
    return asked


def test_a_tag_is_loaded_from_the_hub(published, tmp_path, capsys):
    tag, place = "vit_b16.augreg_in21k_ft_in1k", "hf://timm/vit_base_patch16_224.augreg_in21k_ft_in1k"
    with read.load(tag, "vit(heads=2)") as found:
        assert found.source == tag and found.class_names == ("ant", "bee")
        jax.tree.map(lambda x: x.block_until_ready(), found.tree(jnp.asarray))
    with read.weights_of(tag) as (fmt, _):
        assert fmt.name == "timm"
    argv = ["convert", tag, str(tmp_path / "run"), "--to", "vit_jax", "--model", "vit(heads=2)"]
    assert main(argv) == 0 and capsys.readouterr().out.startswith(f"{tag}: vit, ")
    assert published == [place, place, place]
    assert main(["predict", "--checkpoint", "vit_b16.augreg_in21k_ft_in1", "x.png"]) == 1
    assert "no such file or folder: 'x.png'" in capsys.readouterr().err
    assert main(["convert", "vit_b16.augreg_in21k_ft_in1", str(tmp_path / "no"), "--to", "timm"]) == 2
    assert "did you mean 'vit_b16.augreg_in21k_ft_in1k'" in capsys.readouterr().err
