"""Parsing: every way to write a value, and a sentence for every mistake."""

import dataclasses
from typing import Annotated, Any, Literal

import flax.linen as nn
import pytest
from ml_collections import ConfigDict

from vit_jax import config
from vit_jax.config import Choice, Duration, Variant, parse
from vit_jax.types import UsageError, UserError


@dataclasses.dataclass(frozen=True)
class Adam:
    lr: float = 0.1
    b1: float = 0.9
    eps: float | None = None


@dataclasses.dataclass(frozen=True)
class Sgd:
    lr: float = 0.5

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise UserError(f"lr={self.lr} is not positive.")


class Net(nn.Module):
    depth: int = 2
    kind: Literal["a", "b"] = "a"
    stem: tuple[int, ...] | None = None


TABLE = {"adam": Adam, "sgd": Sgd, "fast": Variant(Adam, {"lr": 9.0}), "A/16": Variant(Adam, {"b1": 0.5})}
MODELS = {"net": Net, "deep": Variant(Net, {"depth": 48})}


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Annotated[Any, Choice(TABLE)] = dataclasses.field(default=Adam())
    many: tuple[Annotated[Any, Choice(TABLE)], ...] = ()


NESTED = {"outer": Outer, **TABLE}
OPTIM = Annotated[Any, Choice(TABLE)]
MODEL = Annotated[nn.Module, Choice(MODELS)]


@dataclasses.dataclass(frozen=True)
class Tree:
    path: str
    optim: OPTIM = dataclasses.field(default=Adam())
    model: MODEL = dataclasses.field(default=Net())
    size: int = 8
    rate: float = 0.0
    on: bool = True
    clip: float | None = None
    share: int | float = 0.1
    pair: tuple[int, float] = (1, 1.0)
    names: tuple[str, ...] = ()
    rules: tuple[tuple[str, float], ...] = ()
    mode: Literal["x", "y"] = "x"
    length: Duration = Duration(10)
    outer: Outer = dataclasses.field(default=Outer())


def tree(**values):
    return parse(Tree, {"path": "p", **values})


def message(*args) -> str:
    with pytest.raises(UsageError) as e:
        parse(*args)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("adam", Adam()),
        (" adam ", Adam()),
        ("adam()", Adam()),
        ("adam(0.2)", Adam(0.2)),
        ("adam(1, b1=2)", Adam(1.0, 2.0)),
        ("adam(eps=None)", Adam()),
        ("adam(lr=-1e-3)", Adam(-1e-3)),
        ("fast", Adam(9.0)),
        ("fast(b1=0.3)", Adam(9.0, 0.3)),
        ("fast(lr=1)", Adam(1.0)),
        ("A/16", Adam(b1=0.5)),
        ({"name": "adam", "lr": 3}, Adam(3.0)),
        ({"name": "A/16", "lr": 3}, Adam(3.0, 0.5)),
        (ConfigDict({"name": "sgd", "lr": 2.0}), Sgd(2.0)),
        (Sgd(4.0), Sgd(4.0)),
    ],
)
def test_every_form_of_a_choice(written, meant):
    assert parse(OPTIM, written) == meant


def test_choices_nest():
    nested = Annotated[Any, Choice(NESTED)]
    want = Outer(Adam(0.5), (Sgd(), Adam(9.0, 0.1)))
    assert parse(nested, "outer(adam(0.5), many=['sgd', 'fast(b1=0.1)'])") == want
    assert parse(nested, {"name": "outer", "inner": "adam(0.5)", "many": ["sgd", {"name": "fast", "b1": 0.1}]}) == want
    assert parse(nested, "outer(many='sgd')").many == (Sgd(),)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("adan", "unknown c 'adan'; did you mean 'adam'?"),
        ("quux", "unknown c 'quux'; allowed: A/16, adam, fast, sgd."),
        ("adam(b2=1)", "unknown key 'c.b2'; did you mean 'b1'?"),
        ("adam(1, 2, 3, 4)", "c='adam(1, 2, 3, 4)' has too many arguments; adam takes lr, b1, eps."),
        ("adam(1, lr=2)", "c='adam(1, lr=2)' sets 'lr' twice; leave one of them out."),
        ("adam(name='sgd')", "c=\"adam(name='sgd')\" sets 'name' twice; leave one of them out."),
        ("adam(b1=beta)", "c.b1='beta' is of type str, expected float."),
        ("adam(", "c='adam(' cannot be read; write a name or name(key=value)"),
        ("adam(b1=os.sep)", "cannot be read"),
        ("adam(b1=[x for x in (1,)])", "cannot be read"),
        ("adam({[]: 1})", "cannot be read"),
        ("adam(**{'b1': 1})", "unknown key 'c.None'"),
        ({"lr": 1}, "c lacks the key 'name'"),
        ({"name": ["adam"]}, "unknown c ['adam']"),
        ({"name": None}, "unknown c None"),
        ({"name": "adam", "lrr": 1}, "unknown key 'c.lrr'; did you mean 'lr'?"),
        (3, "c=3 is of type int; allowed: A/16, adam, fast, sgd."),
        (None, "c=None is of type NoneType"),
    ],
)
def test_wrong_choices(written, text):
    assert text in message(OPTIM, written, "c")


@pytest.mark.parametrize(
    "attack",
    ["__import__('os')", "open({!r}, 'w')", "__import__('pathlib').Path({!r}).touch()", "(lambda: open({!r}, 'w'))()"],
)
def test_nothing_is_ever_evaluated(attack, tmp_path):
    """A configuration string is data wherever it stands: a name, an argument, a duration, an override."""
    attack = attack.format(str(tmp_path / "trace"))
    message(OPTIM, attack)
    message(OPTIM, f"adam({attack})")
    message(OPTIM, f"adam(b1={attack})")
    message(Duration, attack, "d")
    assert config.override({}, [("a", attack)]) == {"a": attack}
    assert parse(str, attack) == attack
    assert not (tmp_path / "trace").exists()


def test_fields_of_every_type():
    t = tree(
        optim="sgd(2)", model={"name": "deep", "stem": [1, 2]}, size=4.0, rate=1, on=False, clip=2, share=3,
        pair=[1, 2], names="one", rules=[("a", 1), ["b", 2.5]], mode="y", length="3 epochs", outer={"inner": "fast"},
    )  # fmt: skip
    assert t == Tree(
        "p", Sgd(2.0), Net(48, stem=(1, 2)), 4, 1.0, False, 2.0, 3, (1, 2.0), ("one",), (("a", 1.0), ("b", 2.5)), "y",
        Duration(3, "epochs"), Outer(Adam(9.0)),
    )  # fmt: skip
    assert [type(x) for x in (t.size, t.rate, t.clip, t.share, t.pair[1])] == [int, float, float, int, float]
    assert tree(clip=None, share=0.5) == dataclasses.replace(Tree("p"), share=0.5)
    assert parse(Tree, t) is t
    assert parse(Tree, ConfigDict({"path": "q", "outer": {"many": ("sgd",)}})) == Tree("q", outer=Outer(many=(Sgd(),)))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"sise": 1}, "unknown key 'config.sise'; did you mean 'size'?"),
        ({"zzz": 1}, "unknown key 'config.zzz'; allowed: clip, length, mode, model, names, on"),
        ({"size": "8"}, "config.size='8' is of type str, expected int."),
        ({"size": 1.5}, "config.size=1.5 is of type float, expected int."),
        ({"size": True}, "config.size=True is of type bool, expected int."),
        ({"rate": False}, "config.rate=False is of type bool, expected float."),
        ({"on": 1}, "config.on=1 is of type int, expected bool."),
        ({"path": 3}, "config.path=3 is of type int, expected str."),
        ({"path": None}, "config.path=None is of type NoneType, expected str."),
        ({"clip": "x"}, "config.clip='x' is of type str, expected float."),
        ({"share": True}, "expected float."),
        ({"pair": (1,)}, "config.pair=(1,) has 1 entries, expected 2."),
        ({"pair": (1, "x")}, "config.pair[1]='x' is of type str, expected float."),
        ({"rules": [("a", 1), ("b",)]}, "config.rules[1]=('b',) has 1 entries, expected 2."),
        ({"mode": "z"}, "config.mode='z' is not allowed; allowed: x, y."),
        ({"outer": 3}, "config.outer=3 is of type int, expected the fields of Outer."),
        ({"outer": {"many": ["sgd", "adan"]}}, "unknown config.outer.many[1] 'adan'; did you mean 'adam'?"),
        ({"model": {"name": "net", "parent": None}}, "unknown key 'config.model.parent'"),
        ({"model": "net(kind='c')"}, "config.model.kind='c' is not allowed; allowed: a, b."),
    ],
)
def test_wrong_fields(values, text):
    assert text in message(Tree, {"path": "p", **values})


@dataclasses.dataclass(frozen=True)
class Renamed:
    output_activation: str = dataclasses.field(default="softmax", metadata={"formerly": "link"})


def test_none_is_a_word_where_one_may_be_chosen():
    """A command line reads ``--config.model.positions=none`` as nothing."""
    assert parse(Literal["none", "full"], None) == "none"
    assert parse(Literal["none", "full"] | None, None) is None
    with pytest.raises(UsageError, match=r"remat=None is not allowed"):
        parse(Literal["full"], None, "remat")


def test_a_stored_configuration_may_use_the_former_name_of_a_field():
    assert parse(Renamed, {"link": "sigmoid"}) == Renamed("sigmoid") == parse(Renamed, {"output_activation": "sigmoid"})
    assert parse(Annotated[Any, Choice({"r": Renamed})], "r(link='sigmoid')") == Renamed("sigmoid")
    assert "unknown key 'config.formerly'" in message(Renamed, {"formerly": "x"})
    both = message(Renamed, {"link": "sigmoid", "output_activation": "softmax"})
    assert both == "'config.link' is now called 'output_activation', which is also set; leave it out."


def test_a_missing_field_names_its_option():
    assert message(Tree, {}) == "missing key 'config.path'; set it with --config.path=..."


def test_the_error_of_a_value_keeps_its_kind_and_gets_a_path():
    with pytest.raises(UserError, match=r"^config.optim: lr=-1.0 is not positive.$") as e:
        tree(optim="sgd(-1)")
    assert not isinstance(e.value, UsageError)


def test_linen_modules_are_values():
    model = parse(MODEL, "deep(kind='b')")
    assert model == Net(48, "b") and hash(model) == hash(Net(48, "b"))
    assert set(config.hints(Net)) == {"depth", "kind", "stem"}
