"""Classes of one's own by name: where they fit, and sentences where they do not."""

import dataclasses
from typing import Annotated, Any, Protocol, runtime_checkable

import pytest

from vit_jax.config import Choice, Imports, known, name_of, parse, record, row_of, unparse
from vit_jax.imports import Import
from vit_jax.types import UsageError


class Base:
    def scale(self):
        return 1


@runtime_checkable
class Sized(Protocol):
    size: int

    def scale(self): ...


@dataclasses.dataclass(frozen=True)
class Adam(Base):
    lr: float = 0.1


@dataclasses.dataclass(frozen=True)
class Own(Base):
    decay: float = 0.9
    size: int = 1

    def __post_init__(self):
        1 / self.decay


@dataclasses.dataclass
class Thawed(Base):
    pass


class Bare(Base):
    pass


class Undecorated(Own):
    more: int = 3


@dataclasses.dataclass(frozen=True)
class Stranger:
    pass


@dataclasses.dataclass(frozen=True)
class Twin(Base):
    pass


Other = dataclasses.make_dataclass("Twin", [], bases=(Base,), frozen=True)
CLASSES = (Own, Thawed, Bare, Undecorated, Stranger, Twin)
PARTS = Import("/my/parts.py", "ab", {cls.__name__: cls for cls in CLASSES})
OTHERS = Import("/my/others.py", "cd", {"Twin": Other, "adam": type("adam", (Own,), {})})
CHOICE = Choice({"adam": Adam}, Base)
FIELD = Annotated[Any, CHOICE]


@dataclasses.dataclass(frozen=True)
class Config:
    optim: FIELD = Adam()
    many: tuple[FIELD, ...] = ()
    imports: Imports = ()


def config(**values):
    return parse(Config, {"imports": (PARTS,), **values})


def says(value, imports=(PARTS,)):
    with pytest.raises(UsageError) as e:
        parse(Config, {"imports": imports, "optim": value})
    return str(e.value)


def test_a_class_is_a_row():
    found = config(optim="Own(0.5)", many=["adam", {"name": "Own", "decay": 2}])
    assert found == Config(Own(0.5), (Adam(), Own(2.0)), (PARTS,))
    assert parse(Config, found) is found
    plain = unparse(Config, found)
    assert plain["optim"] == {"name": "Own", "decay": 0.5, "size": 1} and plain["imports"] == ["/my/parts.py#sha256=ab"]
    assert parse(Config, {**plain, "imports": (PARTS,)}) == found


def test_nobody_else_knows_it():
    assert says("Own", ()) == "unknown config.optim 'Own'; allowed: adam."
    with known([PARTS]), known([OTHERS]):
        assert parse(FIELD, "Own") == Own() and row_of(CHOICE, Own()) == name_of(Own()) == "Own"
        assert row_of(CHOICE, Twin()) is None  # of two
    assert row_of(CHOICE, Own()) is None and name_of(Own()) is None
    with known([PARTS]), pytest.raises(UsageError, match="unknown x 'Own'"):
        parse(Annotated[Any, Choice({"adam": Adam})], "Own", "x")  # takes the rows' classes alone


def test_a_value_handed_in_from_python_is_found_again_by_its_class():
    written = record(Own(0.25))
    assert written["python"].endswith("test_own.Own") and config(optim=written).optim == Own(0.25)
    assert "was the Python object" in says(written, ()) and "--imports FILE or --config.imports=FILE" in says(
        written, ()
    )


def test_a_protocol_with_attributes():
    field = Annotated[Any, Choice({}, Sized)]
    with known([PARTS]):
        assert parse(field, "Own", "x") == Own()
        with pytest.raises(UsageError, match=r"x: Stranger of /my/parts.py is no .*test_own.Sized"):
            parse(field, "Stranger", "x")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Onw", "unknown config.optim 'Onw'; did you mean 'Own'?"),
        ("Own(dacay=1)", "unknown key 'config.optim.dacay'; did you mean 'decay'?"),
        ("Own(decay='x')", "config.optim.decay='x' is of type str, expected float."),
        ("Own(1, 2, 3)", "has too many arguments; Own takes decay, size."),
        ("Own(0)", "config.optim: /my/parts.py: ZeroDivisionError: float division by zero."),
        ("Stranger", "config.optim: Stranger of /my/parts.py is no "),
        (
            "Thawed",
            "Thawed of /my/parts.py is no frozen dataclass; write @dataclasses.dataclass(frozen=True) above it.",
        ),
        ("Bare()", "Bare of /my/parts.py is no frozen dataclass"),
        ({"name": "Undecorated"}, "Undecorated of /my/parts.py is no frozen dataclass"),
    ],
)
def test_wrong_names(value, text):
    assert text in says(value)


def test_a_name_that_two_have():
    assert says("Twin", (PARTS, OTHERS)) == (
        "config.optim: 'Twin' is a class of /my/parts.py and /my/others.py; rename one of them."
    )
    assert "'adam' is a class of /my/others.py, and has a meaning without it; rename the class." in says(
        "adam(0.5)", (OTHERS,)
    )
    assert says("Own", (PARTS, PARTS)) if False else parse(Config, {"imports": (PARTS, PARTS), "optim": "Own"})
