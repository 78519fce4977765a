"""Every option of every dataclass that a configuration leads to has a range or a choice, and answers to odd numbers."""

import dataclasses
import typing
from typing import Annotated, Any, Literal

import jax
import pytest

from vit_jax import config
from vit_jax.checks import Range, ranges
from vit_jax.layers.mlp import TopK
from vit_jax.models import Model
from vit_jax.train.config import TrainConfig
from vit_jax.types import UserError

NAN, INF = float("nan"), float("inf")
ODD = (-1, 0, 1, 0.5, 2**31, 10**9, 2**63, 10**400, 1e30, 1e-40, NAN, INF, -INF, True, "x", None)
TINY: dict[str, Any] = {
    "model": {"name": "vit", "patch": 4, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 8},
    "data": {"path": "fake:12x8x3", "canvas": 8, "holdout": 4},
    "augment": {"size": 8, "train": ()},
    "batch_size": 4,
    "duration": 2,
}


def leads_to(hint: Any) -> typing.Iterator[tuple[str, Any]]:
    """Names and classes of what a type may hold: rows of tables, dataclasses."""
    tables = [mark.table for mark in typing.get_args(hint)[1:] if isinstance(mark, config.Choice)]
    for table in tables:
        yield from {(cls := getattr(row, "cls", row)): (name, cls) for name, row in table.items()}.values()
    for part in () if tables else typing.get_args(hint):
        yield from leads_to(part)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint.__name__, hint


def reachable() -> dict[type, str]:
    """Dataclass -> a name for it."""
    found, todo = {}, [("TrainConfig", TrainConfig)]
    while todo:
        name, cls = todo.pop()
        if cls not in found and cls not in (config.Duration, config.StepRange):
            found[cls] = name
            todo += [pair for hint in config.hints(cls).values() for pair in leads_to(hint)]
    return found


CLASSES = reachable()


def scalars(hint: Any, inside: bool = False) -> typing.Iterator[type]:
    """The number types in a type that no range limits."""
    if typing.get_origin(hint) is Annotated:
        inside = inside or any(isinstance(mark, Range) for mark in hint.__metadata__)
        hint = typing.get_args(hint)[0]
    if hint in (int, float) and not inside:
        yield hint
    for part in typing.get_args(hint) if typing.get_origin(hint) is not Literal else ():
        yield from scalars(part, inside)


def test_the_walk_finds_them_all():
    names = {cls.__name__ for cls in CLASSES}
    some = {"ViT", "CoCa", "TextConfig", "LookSam", "KNN", "Monarch", "TopK", "Beam", "Norm", "MeshConfig", "Ring"}
    assert len(CLASSES) > 60 and some <= names


def test_every_number_has_a_range():
    free = {f"{cls.__name__}.{key}" for cls in CLASSES for key, hint in config.hints(cls).items() if [*scalars(hint)]}
    assert free == set()


def numbers(cls: type) -> list[str]:
    return [key for key, hint in config.hints(cls).items() if [*ranges(hint)]]


def filled(cls: type) -> dict[str, Any]:
    """Values for the fields that a class cannot do without."""
    known = {
        TrainConfig: TINY, "path": "fake:12x8x3", "size": 8, "k": 2, "r": 2, "height": 2, "teacher": "t",
        "levels": "a.csv", "image_tower": TINY["model"], "text_tower": {},
    }  # fmt: skip
    if cls is TrainConfig:
        return TINY
    needed = [f for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING and f.init]
    return {f.name: known[f.name] for f in needed} | ({"name": "topk"} if cls is TopK else {})


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_odd_numbers_are_taken_or_refused_in_a_sentence(cls):
    """In a configuration, and where the object is made: of those refused, none is taken by the other."""
    for key in numbers(cls):
        taken = []
        for value in ODD:
            try:
                taken.append(getattr(config.parse(cls, {**filled(cls), key: value}), key))
            except UserError as e:
                assert f"{key}" in str(e) and "\n" not in str(e) and len(str(e)) < 400, e
        assert all(isinstance(v, bool) is False for v in taken), (key, taken)
        for limit in ranges(config.hints(cls)[key]):
            for end, closed in ((limit.least, limit.ends[0] == "["), (limit.most, limit.ends[1] == "]")):
                assert (end in limit) is closed, (cls, key, end)
            assert all(v is None or isinstance(v, tuple) or v in limit for v in taken)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "cls",
    [
        pytest.param(cls, marks=pytest.mark.slow if cls.__name__ == "CoCa" else ())
        for cls in sorted(CLASSES, key=lambda cls: cls.__name__ != "ViT")
        if issubclass(cls, Model)
    ],
    ids=lambda cls: cls.__name__,
)
def test_what_a_model_takes_it_can_be_built_of(cls):
    """Its shapes are worked out, or a sentence says what does not go together."""
    if not hasattr(cls, "inputs"):
        return
    small = {k: v for k, v in TINY["model"].items() if k in config.hints(cls)} | filled(cls)
    base = config.parse(cls, small)
    for key in numbers(cls):
        hint = config.hints(cls)[key]
        for value in {v for v in ODD if isinstance(v, int | float)} | {r.least for r in ranges(hint)}:
            try:
                model = config.parse(cls, {**small, key: value})
                if model != base:
                    jax.eval_shape(lambda *x, m=model: m.init(jax.random.key(0), *x), *model.inputs(8))
            except UserError as e:
                assert "\n" not in str(e)
