"""Configuration files: what they return, and sentences with file and line for what goes wrong in them."""

import re

import pytest
from ml_collections import ConfigDict

from vit_jax import config, configfile
from vit_jax.types import UsageError, UserError

GOOD = """
from ml_collections import ConfigDict
def get_config(arg="none"):
    return ConfigDict({"a": 1, "b": {"c": arg}})
"""


def test_a_file_and_its_argument(tmp_path):
    file = tmp_path / "some.py"
    file.write_text(GOOD)
    assert configfile.run(str(file)) == {"a": 1, "b": {"c": "none"}}
    assert configfile.run(f"{file}:x:y,z") == {"a": 1, "b": {"c": "x:y,z"}}
    assert type(configfile.run(str(file))["b"]) is dict


GET = "def get_config(arg=''): "
WRONG = {
    "def get_config(:\n  pass": r"bad\.py, line 1: SyntaxError: ",
    "x = 1\nimport no_such_module_xyz": r"bad\.py, line 2: ModuleNotFoundError: No module named",
    "from ml_collections import Nothing": r"bad\.py, line 1: ImportError: cannot import name",
    f"{GET}\n  x = {{}}\n  return x['lr']": r"bad\.py, line 3: KeyError: 'lr'\.$",
    "1 / 0": r"bad\.py, line 1: ZeroDivisionError: division by zero\.$",
    "raise ValueError('a\\nb\\nc')": r"bad\.py, line 1: ValueError: a\.$",
    "import sys\nsys.exit(3)": r"bad\.py, line 2: SystemExit: 3\.$",
    f"{GET}\n  return get_config()": r"bad\.py, line 2: RecursionError",
    "import json\njson.loads('{')": r"bad\.py, line 2: JSONDecodeError",
    f"{GET}return None": r"get_config of .*bad\.py returns None; let it return",
    f"{GET}return 5": r"returns 5;",
    f"{GET}return [('a', 1)]": r"returns \[\('a', 1\)\];",
    f"{GET}return 'x' * 10**6": r"returns 'xxx",
    f"{GET}\n  d = {{}}\n  d['d'] = d\n  return d": r"contains itself",
    f"from ml_collections import ConfigDict, config_dict\n{GET}\n"
    "  return ConfigDict({'a': config_dict.required_placeholder(int)})": r"bad\.py: RequiredValueError: ",
    "get_config = 5": r"does not define get_config\(arg=''\)",
    "": r"does not define get_config",
    "def get_config(arg): return {}": r"get_config of .* needs an argument; write .*bad\.py:ARG",
}
"""A file -> what is said of it."""
TAKES_NONE = ("def get_config(): return {}", "def get_config(a, b=1, *, c): return {}")


@pytest.mark.parametrize(
    ("text", "arg", "says"),
    [(text, "", says) for text, says in WRONG.items()]
    + [(text, ":sam", r"takes no argument such as 'sam'; write .*bad\.py\.$") for text in TAKES_NONE],
)
def test_what_goes_wrong_in_a_file(tmp_path, text, arg, says):
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(UsageError, match=says) as e:
        config.load(f"{file}{arg}")
    assert "\n" not in str(e.value) and len(str(e.value)) < 500


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xfe\0", b"# coding: nonsense\n", b"\0", b"("]
)
def test_a_file_of_another_kind(tmp_path, content):
    file = tmp_path / "picture.py"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(str(file))):
        configfile.run(str(file))


def test_a_syntax_error_in_what_a_file_imports_names_that_file(tmp_path, monkeypatch):
    (tmp_path / "helper_of_a_test.py").write_text("x = 1\ny = = 2\n")
    (tmp_path / "main.py").write_text("import helper_of_a_test\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=r"helper_of_a_test\.py, line 2: SyntaxError"):
        configfile.run(str(tmp_path / "main.py"))


def test_a_users_error_stays_as_it_is(tmp_path):
    (tmp_path / "a.py").write_text(
        "from vit_jax.config import lookup\ndef get_config(arg=''):\n  lookup({'sam': 1}, arg, 'argument of a.py')"
    )
    with pytest.raises(UserError, match=r"^unknown argument of a\.py 'san'; did you mean 'sam'\?$"):
        configfile.run(f"{tmp_path}/a.py:san")


@pytest.mark.parametrize("name", ["digit.py", "no/digits.py:sam", "x" * 300 + ".py", "a\0b.py", "", "."])
def test_no_such_file(tmp_path, monkeypatch, name):
    (tmp_path / "digits.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"^no config file '"):
        configfile.run(name)


def test_recipes_by_name(tmp_path, monkeypatch):
    """From anywhere; a file of that name comes first, a folder does not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert {"digits", "clip", "finetune"} <= set(configfile.recipes())
    assert configfile.run("digits") == configfile.run(str(configfile.RECIPES / "digits.py"))
    assert configfile.run("clip:digits")["data"]["path"] == "digits_pairs"
    assert configfile.run("finetune:vit_b16")["model"]["name"] == "vit_b16"
    assert configfile.title("clip").startswith("CLIP: two towers")
    (tmp_path / "clip").write_text(GOOD)
    assert configfile.run("clip:x") == {"a": 1, "b": {"c": "x"}}
    with pytest.raises(UsageError, match=r"^no recipe 'digit'; did you mean 'digits' .* The recipes are cifar, clip, "):
        configfile.run("digit:sam")
    with pytest.raises(UsageError, match=r"^no recipe 'nothing'; allowed: cifar, clip, "):
        configfile.run("nothing")


def test_what_a_run_keeps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "config.json").write_text('{"a": [1, null]}')
    assert configfile.run("runs/a") == configfile.run("runs/a/config.json") == {"a": [1, None]}
    with pytest.raises(UsageError, match="takes no argument such as 'x'"):
        configfile.run("runs/a:x")
    with pytest.raises(
        UsageError, match=r"^no config file 'runs': it is a folder without config\.json, so it holds no"
    ):
        configfile.run("runs")
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(UserError, match=r"bad\.json holds a JSON list; name a recipe"):
        configfile.run("bad.json")


def test_a_colon_without_an_argument_and_a_file_that_is_none(tmp_path):
    with pytest.raises(UsageError, match="ends with a colon"):
        configfile.run("configs/digits.py:")
    with pytest.raises(UsageError, match=r"unknown argument of digits\.py ':'"):
        configfile.run("configs/digits.py::")
    with open(tmp_path / "huge.py", "wb") as f:
        f.truncate(2**33)
    with pytest.raises(UsageError, match="has more than 1,048,576 bytes"):
        configfile.run(str(tmp_path / "huge.py"))


def test_a_configuration_in_itself():
    with pytest.raises(UsageError, match="contains itself"):
        inner: dict = {}
        inner["a"] = {"b": inner}
        config.plain(inner)
    assert config.plain(ConfigDict({"a": {"b": 1}})) == {"a": {"b": 1}}
