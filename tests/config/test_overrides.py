"""Configurations from files, and their keys with other values."""

import pytest

from vit_jax import config
from vit_jax.types import UsageError

FILE = """
from ml_collections import ConfigDict
def get_config(arg="none"):
    return ConfigDict({"optim": "adam", "deep": {"a": 1, "b": {"c": 2}}, "arg": arg, "list": (1, 2)})
"""


def test_load(tmp_path):
    file = tmp_path / "some.py"
    file.write_text(FILE)
    assert config.load(str(file)) == {"optim": "adam", "deep": {"a": 1, "b": {"c": 2}}, "arg": "none", "list": (1, 2)}
    found = config.load(f"{file}:b16,x", [("deep.b.c", "3"), ("optim.lr", "3e-4")])
    assert found["arg"] == "b16,x" and found["deep"] == {"a": 1, "b": {"c": 3}}
    assert found["optim"] == {"name": "adam", "lr": 3e-4}


def test_load_says_what_is_there(tmp_path):
    (tmp_path / "digits.py").write_text("x = 1")
    with pytest.raises(UsageError, match=r"no config file '.*digit.py'; did you mean '.*digits.py'\?"):
        config.load(f"{tmp_path}/digit.py")
    with pytest.raises(UsageError, match="no config file"):
        config.load(f"{tmp_path}/no/digits.py:sam")
    with pytest.raises(UsageError, match=r"does not define get_config\(arg=''\)"):
        config.load(f"{tmp_path}/digits.py")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("3e-4", 3e-4), ("1_000", 1000), ("True", True), ("true", True), ("FALSE", False), ("None", None),
        ("none", None), ("vit_b16", "vit_b16"), ("'3'", "3"), ("(1, 2)", (1, 2)), ("['a']", ["a"]),
        ("{'a': 1}", {"a": 1}),
        ("20 epochs", "20 epochs"), ("5%", "5%"), ("folder:/a=b", "folder:/a=b"), ("", ""),
        ("sam(rho=0.1)", "sam(rho=0.1)"),
        ("{[]: 1}", "{[]: 1}"),
    ],
)  # fmt: skip
def test_override_values(text, value):
    found = config.override({"a": {"b": 0}}, [("a.b", text)])["a"]["b"]
    assert found == value and type(found) is type(value)


def test_override_keys():
    old = {"a": {"b": 1}, "m": "adam", "n": None, "s": "sgd(2)", "l": [1]}
    new = config.override(old, [("a.c.d", "2"), ("m.lr", "1"), ("n.x", "1"), ("top", "t"), ("a.b", "5"), ("a.b", "6")])
    assert new == {
        "a": {"b": 6, "c": {"d": 2}}, "m": {"name": "adam", "lr": 1}, "n": {"x": 1}, "s": "sgd(2)", "l": [1],
        "top": "t",
    }  # fmt: skip
    assert old == {"a": {"b": 1}, "m": "adam", "n": None, "s": "sgd(2)", "l": [1]}
    with pytest.raises(UsageError, match=r"'s.lr' reaches into 'sgd\(2\)'; override 's' as a whole"):
        config.override(old, [("s.lr", "1")])
    with pytest.raises(UsageError, match=r"'l.0' reaches into 'l', which is \[1\]; override 'l' as a whole"):
        config.override(old, [("l.0", "1")])
