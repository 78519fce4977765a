"""Tables, their rows, and calls as text."""

import dataclasses

import flax.linen as nn
import pytest

from vit_jax import config
from vit_jax.config import Variant
from vit_jax.types import UsageError


@dataclasses.dataclass(frozen=True)
class Pair:
    a: int = 1
    b: str = "x"
    c: int = dataclasses.field(default=0, kw_only=True)


class Net(nn.Module):
    depth: int = 2


TABLE = {"pair": Pair, "five": Variant(Pair, {"a": 5}), "A/16": Pair}


def test_a_call_as_text():
    assert config.spec_fields("pair(3, b=y)", TABLE, "x") == {"name": "pair", "a": 3, "b": "y"}
    assert config.spec_fields("A/16", TABLE, "x") == {"name": "A/16"}
    assert config.spec_fields("pair(b=other(1))", TABLE, "x") == {"name": "pair", "b": "other(1)"}
    with pytest.raises(UsageError, match=r"has too many arguments; pair takes a, b\."):
        config.spec_fields("pair(1, 2, 3)", TABLE, "x")


def test_rows():
    assert config.lookup(TABLE, "five", "x")(b="z") == Pair(5, "z")
    assert set(config.hints(Net)) == {"depth"}
    with pytest.raises(UsageError, match=r"^unknown x 'pare'; did you mean 'pair'"):
        config.lookup(TABLE, "pare", "x")


def test_suggest_lists_few_and_not_many():
    assert config.suggest("x", ["b", "a"]) == "; allowed: a, b."
    assert config.suggest("x", [f"name{i}" for i in range(30)]) == "."
