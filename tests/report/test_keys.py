"""Every key of a configuration for people."""

import dataclasses
from typing import Annotated, Literal

import griffe
import pytest

from vit_jax import config
from vit_jax.checks import Range
from vit_jax.config import Choice, Duration, Variant
from vit_jax.report.keys import choice_in, descriptions, keys, kind, plain, written
from vit_jax.train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Op:
    """An operation.

    Attributes:
      size: how large
        it is.
      share: how much.
    """

    size: int = 1
    share: float = 0.5


TABLE = {"op": Op, "large": Variant(Op, {"size": 9}), "huge": Variant(Op, {"size": 9, "share": 1.0})}


@dataclasses.dataclass(frozen=True)
class Inner:
    """Inside.

    Attributes:
      length: as of :func:`~vit_jax.config.load`, ``"x"``.
    """

    length: Duration = Duration(5, "epochs")


@dataclasses.dataclass(frozen=True)
class Outer:
    """Outside.

    Attributes:
      op: one.
      many: several.
      inner: more.
      kind: which.
    """

    op: Annotated[Op, Choice(TABLE)] | None = None
    many: tuple[Annotated[Op, Choice(TABLE)], ...] = ()
    inner: Inner = Inner()
    kind: Literal["a", "b"] = "a"


def test_keys_values_and_what_they_are():
    found = list(keys(config.parse(Outer, {"op": "large(share=0.1)", "many": ["op", "op(3)"], "kind": "b"})))
    assert [(k.name, k.value, k.default) for k in found] == [
        ("op", "large", False),
        ("op.size", "9", False),
        ("op.share", "0.1", False),
        ("many", "(op, op(size=3))", False),
        ("inner.length", "5 epochs", True),
        ("kind", "b", False),
    ]
    assert found[1].about == "how large it is." and found[4].about == 'as of vit_jax.config.load, "x".'
    assert [(k.name, k.value, k.kind, k.default) for k in keys(Outer())][:2] == [
        ("op", "None", "op|large|huge or None", True),
        ("many", "()", "list of op|large|huge", True),
    ]


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "integer"), (str | None, "text or None"), (tuple[float, float], "(number, number)"),
        (Annotated[int, Range(1, 2048)], "integer from 1 to 2,048"), (Literal["a", 1], "`'a'` or `1`"),
        (Annotated[Op, Choice({str(i): Op for i in range(9)})], "one of 9 such as 0, 8"), (Duration, "Duration"),
    ],
)  # fmt: skip
def test_kinds(hint, text):
    assert kind(hint) == text


def test_kinds_with_links():
    hint = Annotated[Op, Choice(TABLE)] | Inner
    assert kind(hint, lambda part, text: f"<{'row' if part is TABLE else text}>") == "<row> or <Inner>"
    assert choice_in(hint).table is TABLE and choice_in(int) is None


def test_what_a_user_writes():
    hint = Annotated[Op, Choice(TABLE)]
    assert [written(hint, Op(*x)) for x in ((), (9,), (9, 1.0), (9, 0.2))] == [
        "op",
        "large",
        "huge",
        "large(share=0.2)",
    ]
    assert written(str, "") == "''" and written(tuple[int, ...], (1,)) == "(1,)"


def test_descriptions_are_those_that_a_parser_of_docstrings_finds():
    classes = [TrainConfig, *(type(v) for v in vars(config.parse(TrainConfig, config.load("digits"))).values())]
    for cls in filter(dataclasses.is_dataclass, classes):
        sections = griffe.Docstring(cls.__doc__).parse("google", warnings=False)
        own = [s.value for s in sections if s.kind is griffe.DocstringSectionKind.attributes]
        for attribute in own[0] if own else ():
            assert descriptions(cls)[attribute.name] == " ".join(attribute.description.split())
    assert plain("see :data:`X`") == "see ``X``"
