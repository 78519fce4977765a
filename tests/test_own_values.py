"""Objects of one's own where a configuration names a row of a table: trained with, recorded, handed in again."""

import dataclasses
import json
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vit_jax as vj
from vit_jax import config
from vit_jax.augment.base import ImageOp
from vit_jax.cli import main
from vit_jax.config import Choice
from vit_jax.data.sources import Info
from vit_jax.decoding import DECODERS, Greedy, SearchStrategy
from vit_jax.evals import Evaluator
from vit_jax.layers.linear import Dense, Linear
from vit_jax.models import Features, ImageModel
from vit_jax.objectives import PerExample

HERE = __name__


@dataclasses.dataclass(frozen=True)
class Focal(PerExample):
    gamma: float = 2.0
    output_activation = "softmax"

    def fit_model(self, model, info):
        return model.clone(num_classes=info.num_classes)

    def per_example(self, apply, params, batch, rngs, *, train):
        logits = apply(params, batch["image"], train=train, rngs=rngs if train else None)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], axis=1)[:, 0]
        return -((1 - jnp.exp(log_p)) ** self.gamma) * log_p, {}


@dataclasses.dataclass(frozen=True)
class Confidence(Evaluator):
    metrics: ClassVar[tuple[str, ...]] = ("confidence",)

    def __call__(self, context):
        largest = jax.jit(
            lambda params, images: jax.nn.softmax(context.apply(params, images, train=False)).max(axis=-1)
        )
        found = [np.asarray(largest(context.params, b["image"]))[np.asarray(b["mask"])] for b in context.batches()]
        return vj.Report({"confidence": float(np.concatenate(found).mean())})


@dataclasses.dataclass(frozen=True)
class Signum:
    decay: float = 0.9

    def scale(self):
        return optax.chain(optax.trace(self.decay), optax.scale_by_sign())


def halving(t, n, steps_of):
    """A schedule that is a function."""
    return 0.5 ** (2 * t / n)


@dataclasses.dataclass(frozen=True)
class Darken(ImageOp):
    by: float = 0.5

    def __call__(self, key, image):
        return image * self.by


class UnitLinear(Linear):
    def product(self, x, kernel, bias):
        return super().product(x, unit(kernel), bias)


def unit(kernel):
    return kernel / (jnp.linalg.norm(kernel, axis=0, keepdims=True) + 1e-6)


@dataclasses.dataclass(frozen=True)
class Unit(Dense):
    def __call__(self, features, **options):
        return UnitLinear(features, **options)

    def to_dense(self, params):
        return unit(params["kernel"]), params.get("bias")


class Flat(ImageModel):
    """One linear map of the pixels."""

    num_classes: int = 2
    width: int = 3
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(self.num_classes, name="head")(self.features(images).pooled)

    @nn.compact
    def features(self, images, *, train=False):
        x = images.reshape(images.shape[0], -1)
        return Features(x[:, None], nn.tanh(x @ self.param("kernel", nn.initializers.normal(), (192, self.width))))


class Shapes:
    """Bright and dark squares: example i is a function of ``first + i``."""

    def __init__(self, num_examples, first=0):
        self.first, self.info = first, Info(class_names=("dark", "bright"), num_examples=num_examples)

    def __len__(self):
        return self.info.num_examples

    def __getitem__(self, i):
        rng = np.random.default_rng(self.first + i)
        label = int(rng.integers(2))
        pixels = rng.integers(0, 100, (8, 8, 3)) + 120 * label
        return {"image": pixels.astype(np.uint8), "label": label, "name": f"shape {i}"}


OWN = {
    "objective": Focal(gamma=1.0),
    "evaluators": ("classify", Confidence()),
    "optim.optimizer": Signum(),
    "optim.schedule": halving,
    "augment.train": (Darken(),),
    "model.mlp_linear": Unit(),
    "data.path": Shapes(24),
    "data.val": Shapes(6, first=24),
}
PLAIN = {
    "model": {"name": "vit", "pool": "gap", "patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32},
    "data": {"path": "", "canvas": 8, "workers": 1},
    "augment": {"size": 8},
    "optim": {"lr": 1e-3, "clip_norm": None},
    "batch_size": 8,
    "duration": "2 steps",
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("own") / "run"


@pytest.fixture(scope="module")
def result(workdir):
    return vj.train(PLAIN, workdir, changes=OWN)


def test_they_are_used(result):
    c = result.setup.config
    assert c.objective == Focal(1.0) and c.evaluators[1] == Confidence() and c.optim.schedule is halving
    assert c.augment.train == (Darken(),) and result.setup.train is OWN["data.path"]
    assert 0.5 <= result.report.metrics["confidence"] <= 1 and result.report.metrics["examples"] == 6
    # Signum with neither decay nor clipping: every parameter moved by lr * schedule at each of the two steps, or back
    start = result.setup.init().params
    moved = np.abs(result.state.params["head"]["bias"] - start["head"]["bias"])
    assert np.isclose(moved[:, None], [0.5e-3, 1.5e-3], atol=1e-7).any(axis=1).all()


def test_what_the_folder_says_of_them(result, workdir):
    raw = json.loads((workdir / "config.json").read_text())
    assert raw["objective"] == {"python": f"{HERE}.Focal", "gamma": 1.0}
    assert raw["evaluators"][0] == {"name": "classify", "data": None, "prefix": None, "bins": 15}
    assert raw["evaluators"][1:] == [{"python": f"{HERE}.Confidence", "data": None, "prefix": None}]
    assert raw["optim"]["schedule"] == {"python": f"{HERE}.halving"}
    assert raw["model"]["mlp_linear"] == {"python": f"{HERE}.Unit"}
    shapes = {"python": f"{HERE}.Shapes", "num_examples": 24, "class_names": ["dark", "bright"]}
    assert raw["data"]["path"] == shapes and raw["augment"]["train"] == [{"python": f"{HERE}.Darken", "by": 0.5}]


def test_a_run_is_resumed_with_the_same_values_only(result, workdir):
    again = vj.train(PLAIN, workdir, changes=OWN)
    assert again.report.metrics == pytest.approx(result.report.metrics)
    with pytest.raises(vj.UsageError, match=r"another configuration \(objective.gamma: 1.0 -> 3.0\)"):
        vj.train(PLAIN, workdir, changes={**OWN, "objective": Focal(3.0)})
    with pytest.raises(vj.UsageError, match=r"data.path.num_examples: 24 -> 25"):
        vj.train(PLAIN, workdir, changes={**OWN, "data.path": Shapes(25)})


def test_they_are_handed_in_again(result, workdir):
    assert vj.evaluate(workdir, changes=OWN).metrics == pytest.approx(result.report.metrics)
    other = vj.evaluate(result, changes={"evaluators": (Confidence(),), "best": "val/confidence"})
    assert other.metrics["confidence"] == pytest.approx(result.report.metrics["confidence"])


def test_a_model_is_loaded_with_what_predictions_take(result, workdir):
    needed = {key: OWN[key] for key in ("objective", "model.mlp_linear")}
    model = vj.load(workdir, changes=needed)
    jax.tree.map(np.testing.assert_array_equal, model.params, result.state.params)
    images = np.stack([Shapes(3)[i]["image"] for i in range(3)])
    (row,) = vj.predict(model, images[0])
    logits = model.model.apply({"params": model.params}, model.preprocess(images[:1]))
    assert row["predictions"][0]["probability"] == pytest.approx(float(jax.nn.softmax(logits).max()), rel=1e-5)
    with pytest.raises(vj.UserError, match=r"timm has dense maps alone, not mlp_linear='Unit\(\)'"):
        vj.convert(model, workdir / "x", to="timm")


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["evaluate"], "config.model.mlp_linear was the Python object HERE.Unit(), which no file can hold"),
        (["predict", "x.png"], "model.mlp_linear was the Python object"),
        (["evaluate", "--config.model.mlp_linear=dense"], "config.data.path was the Python object"),
    ],
)
def test_the_command_line_names_what_it_cannot_know(result, workdir, capsys, tmp_path, monkeypatch, argv, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").touch()
    assert main([argv[0], "--workdir", str(workdir), *argv[1:]]) == 2
    error = capsys.readouterr().err
    text = text.replace("HERE", HERE)
    assert text in error and error.count("\n") == 1
    key = error.partition(" was the")[0].rpartition(" ")[2].removeprefix("config.")
    assert f"changes={{{key!r}: ...}} of vit_jax.train, evaluate or load." in error


@pytest.mark.thorough
def test_an_own_model(tmp_path):
    values = {"model": Flat(), "data.path": Shapes(24), "data.holdout": 6, "augment.train": ()}
    values |= {"optim.decay_rules": (("head/.*", 0.0), ("kernel", 1.0))}
    result = vj.train(PLAIN, tmp_path / "run", changes=values)
    assert len(result.setup.train) == 18 and result.report.metrics["examples"] == 6  # a seeded split
    raw = json.loads((tmp_path / "run" / "config.json").read_text())
    assert raw["model"] == {
        "python": f"{HERE}.Flat",
        "num_classes": 2,
        "head_bias_init": 0.0,
        "scales": [1.0],
        "width": 3,
        "dtype": "float32",
    }
    loaded = vj.load(tmp_path / "run", changes={"model": Flat()})
    assert vj.embed(loaded, Shapes(1)[0]["image"]).shape == (1, 3)
    with pytest.raises(vj.UserError, match="timm has no Flat; write --to vit_jax"):
        vj.convert(loaded, tmp_path / "x", to="timm")


CHOICE = Annotated[Any, Choice(DECODERS, SearchStrategy)]


class Letters(SearchStrategy):
    def choose(self, log_p, found, rows, at):
        return None, jnp.zeros((1, 1), jnp.int32)


def test_the_protocol_decides():
    own = Letters()
    assert config.parse(CHOICE, own) is own and config.parse(CHOICE, "greedy") == Greedy()
    for wrong, text in (
        (3, "x=3 is of type int and no vit_jax.decoding.SearchStrategy; allowed: beam, greedy, nucleus."),
        (Letters, "x is the class Letters, not one of its objects; write Letters()."),
    ):
        with pytest.raises(vj.UsageError) as e:
            config.parse(CHOICE, wrong, "x")
        assert str(e.value) == text
    with pytest.raises(vj.UsageError, match="of type Letters"):
        config.parse(Annotated[Any, Choice(DECODERS)], own)  # without a base the rows' classes alone
