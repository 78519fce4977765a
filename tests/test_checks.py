"""Ranges, their ends, their sentences, and where they are looked at."""

import dataclasses
import re
from typing import Annotated

import numpy as np
import pytest

from vit_jax import checks, config
from vit_jax.checks import INFINITE, Checked, Range, shown
from vit_jax.models import TextTransformer, ViT
from vit_jax.types import UsageError

NAN = float("nan")


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "says"),
    [
        (Range(0, INFINITE, "()"), (1e-9, 3, 1e38), (0, -1, INFINITE, NAN, 1e-320, 1e39, 10**400), "a positive number"),
        (Range(0, INFINITE, "()", ", 8 is usual"), (1,), (0,), "a positive number, 8 is usual"),
        (Range(0, INFINITE, "[)"), (0, 3.5), (-1e-9, INFINITE, NAN), "zero or a positive number"),
        (Range(0, 1, "[)"), (0, 0.9, 0.9999999), (1.0, 0.99999999, -0.1, NAN), "a number in [0, 1)"),
        (Range(0, 1, "(]"), (1e-9, 1.0), (0.0, 1.1, 1e-50, NAN), "a number in (0, 1]"),
        (Range(1, 2**20), (1, 2**20, np.int32(7)), (0, -1, 2**20 + 1, 10**5000), "a number from 1 to 1,048,576"),
        (Range(0.01, 0.5), (0.01, 0.5), (0.009, np.float32(0.51)), "a number from 0.01 to 0.5"),
    ],
)
def test_ranges(allowed, inside, outside, says):
    for value in inside:
        allowed.check("rho", value)
    for value in outside:
        assert value not in allowed
        with pytest.raises(UsageError, match=f"^rho=.* is not allowed; give {re.escape(says)}\\.$"):
            allowed.check("rho", value)


def test_what_is_no_number_does_not_count_and_of_a_tuple_every_entry():
    for value in (None, "folder:x", object(), (1, 5)):
        Range(1, 5).check("n", value)
    with pytest.raises(UsageError, match=r"^n=\(1, 6\) is not allowed; give a number from 1 to 5\.$"):
        Range(1, 5).check("n", (1, 6))


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    width: Annotated[int, Range(1, 8)] = 4
    rate: checks.Rate | None = None
    stages: tuple[checks.Depth, ...] = ()
    rules: tuple[tuple[str, checks.NonNegative], ...] = ()
    free: int = 0


@dataclasses.dataclass(frozen=True)
class More(Options):
    seed: checks.Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"width": 0}, "width=0"), ({"width": 9}, "width=9"), ({"rate": 1.0}, "rate=1.0"), ({"rate": NAN}, "rate=nan"),
        ({"stages": (2, 0)}, "stages[1]=0"), ({"rules": (("a", 1.0), ("b", -1.0))}, "rules[1][1]=-1.0"),
        ({"seed": -1}, "seed=-1"),
    ],
)  # fmt: skip
def test_an_object_is_checked_when_it_is_made_and_when_it_is_read(fields, says):
    with pytest.raises(UsageError, match=re.escape(f"More.{says} is not allowed; give ")):
        More(**fields)
    with pytest.raises(UsageError, match=re.escape(f"config.{says} is not allowed; give ")):
        config.parse(More, fields)
    assert config.parse(More, {"rate": None, "free": -5, "stages": [1, 2]}) == More(4, None, (1, 2), free=-5)


def test_a_class_that_only_its_function_knows_is_left_alone():
    class Unknown:
        pass

    @dataclasses.dataclass(frozen=True)
    class Local(Checked):
        x: "Unknown"
        n: "Annotated[int, Range(1, 2)]" = 5

    assert Local(Unknown()).n == 5


def test_models_are_checked_when_they_are_made():
    for model, fields in ((ViT, {"width": 0}), (ViT, {"dropout": 1.0}), (TextTransformer, {"length": 10**9})):
        (name, value), *_ = fields.items()
        with pytest.raises(UsageError, match=f"^{model.__name__}.{name}={value} is not allowed"):
            model(**fields)


def test_values_are_shown_however_long_they_are():
    deep = []
    deep.append(deep)
    assert (
        shown(0.5) == "0.5"
        and shown("a'b") == '"a\'b"'
        and shown(np.float32(0.5)) == "0.5"
        and shown(deep) == "[[...]]"
    )
    assert shown("x" * 1000) == "'" + "x" * 79 + "…" + "x" * 9 + "'"
    assert shown(10**5000) == "a value of type int, too long to be shown,"
