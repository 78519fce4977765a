"""Python files of one's own: run once, known by path and content; sentences for what is wrong with them."""

import os
import sys

import pytest

from vit_jax import imports
from vit_jax.config import parse
from vit_jax.imports import Import, Recorded
from vit_jax.types import UsageError

PARTS = """
from __future__ import annotations
import dataclasses
from helper import HALF, Base
@dataclasses.dataclass(frozen=True)
class Focal(Base):
    gamma: HALF = 2.0
class _Hidden: pass
"""
HELPER = "import dataclasses\nHALF = float\n@dataclasses.dataclass(frozen=True)\nclass Base:\n  a: int = 1\n"


@pytest.fixture
def parts(tmp_path):
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "parts.py").write_text(PARTS)
    return tmp_path / "parts.py"


def opened(place):
    return parse(Import, str(place), "config.imports")


def says(place) -> str:
    with pytest.raises(UsageError) as e:
        parse(Import, place, "config.imports")
    assert "\n" not in str(e.value)
    return str(e.value)


def test_a_file_and_what_it_defines(parts, monkeypatch):
    before, path = set(sys.modules), list(sys.path)
    found = opened(parts)
    assert set(found.classes) == {"Focal", "Base"}  # public, of it and of what lies beside it
    assert str(found) == f"{parts}#sha256={found.sha256}" and len(found.sha256) == 64
    assert sys.path == path and not {"parts", "helper"} & set(sys.modules)
    assert all("@" in name for name in set(sys.modules) - before)
    monkeypatch.chdir(parts.parent)
    again = opened("parts.py")
    assert again == found and again.classes["Focal"] is found.classes["Focal"]  # the same class, whoever asks
    assert parse(found.classes["Focal"], {"gamma": 3}) == found.classes["Focal"](gamma=3.0)  # types written as text
    assert not list(parts.parent.glob("**/*.pyc"))


@pytest.mark.parametrize("which", ["parts", "helper"])
def test_a_file_that_changed_is_run_again(parts, which):
    old = opened(parts).classes["Focal"]
    file = parts.with_name(f"{which}.py")
    file.write_text(file.read_text().replace("a: int = 1", "a: int = 2").replace("2.0", "3.0"))
    new = opened(parts).classes["Focal"]
    assert new is not old and (new().a, new().gamma) != (old().a, old().gamma)


def test_two_files_of_one_name_are_two(parts, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "helper.py").write_text(HELPER.replace("1", "5"))
    other = tmp_path / "other" / "parts.py"
    other.write_text(PARTS)
    first, second = opened(parts).classes, opened(other).classes
    assert (first["Focal"]().a, second["Focal"]().a) == (1, 5)
    assert opened(parts.with_name("helper.py")).classes["Base"] is first["Base"]
    (tmp_path / "third.py").write_text("from helper import Base")
    assert opened(tmp_path / "third.py").classes["Base"] is first["Base"]  # run once for all


def test_a_module(tmp_path, monkeypatch):
    package = tmp_path / "a_package_of_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "parts.py").write_text("class Own: pass\nfrom pathlib import Path\n")
    (package / "bad.py").write_text("\n1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = opened("a_package_of_a_test.parts")
    assert set(found.classes) == {"Own"} and str(found) == "a_package_of_a_test.parts"
    assert says("a_package_of_a_test.bad").endswith("bad.py, line 2: ZeroDivisionError: division by zero.")
    assert "ModuleNotFoundError: No module named 'a_package_of_a_test.no'" in says("a_package_of_a_test.no")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\nimport no_such_module_xyz", "line 2: ModuleNotFoundError: No module named 'no_such_module_xyz'"),
        ("def f(:", "line 1: SyntaxError"),
        ("raise SystemExit(3)", "line 1: SystemExit: 3."),
        ("\nfrom right import No", "line 2: ImportError: cannot import name 'No' from 'right' ("),
        (
            "from circular import X\nclass Y: pass",
            "own_bad.py import each other; move what both need.",
        ),
    ],
)
def test_what_goes_wrong_in_a_file(tmp_path, text, sentence):
    (tmp_path / "circular.py").write_text("from own_bad import Y\nclass X: pass\n")
    (tmp_path / "right.py").write_text("x = 1")
    file = tmp_path / "own_bad.py"
    file.write_text(text)
    assert sentence in says(str(file)) and says(str(file)).startswith(str(tmp_path))
    assert not {"own_bad", "circular", "right"} & set(sys.modules)


def test_what_is_no_import(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts.py").touch()
    assert says("prts.py") == "config.imports: there is no file 'prts.py'; did you mean 'parts.py'?"
    assert says("my/parts.py") == "config.imports: there is no file 'my/parts.py'."
    assert "there is no module 'parts_xyz'; install it, or name its file, such as 'parts_xyz/own.py'" in says(
        "parts_xyz.own"
    )
    for wrong in ("no module", "__main__", "a..b", ""):
        assert f"config.imports={wrong!r} is no module; give a file such as 'parts.py'" in says(wrong)
    assert says(3) == "config.imports=3 is no import; give a file such as 'parts.py', or a module."
    with open(tmp_path / "huge.py", "wb") as f:
        f.truncate(2**33)
    assert "cannot be read (more than 1,048,576 bytes)" in says("huge.py")


def test_code_of_a_run_of_others_is_not_run(tmp_path, monkeypatch):
    """What lies in its folder, by whatever way it says so; whatever it names where it was fetched."""
    run, trace = tmp_path / "run", tmp_path / "trace"
    (run / "inner").mkdir(parents=True)
    evil = f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n"
    for place in ("evil.py", "inner/evil.py", "evil_module_of_a_test.py"):
        (run / place).write_text(evil)
    (tmp_path / "link.py").symlink_to(run / "evil.py")
    (tmp_path / "linked").symlink_to(run)
    monkeypatch.chdir(run)
    monkeypatch.syspath_prepend(str(run))
    names = [run / "evil.py", run / "inner/../inner/evil.py", tmp_path / "link.py", tmp_path / "linked/evil.py"]
    for name in [*map(str, names), "evil_module_of_a_test"]:
        for of in (run, ".", tmp_path / "linked"):
            (recorded,) = imports.recorded({"imports": [name]}, of)["imports"]
            assert "from its own folder: code of others is not run unasked. Read it, and name it if you" in says(
                recorded
            )
    for name in ("evil.py", "./evil.py", "~/evil.py", f"/proc/self/cwd{run}/evil.py", "/proc/self/cwd/evil.py"):
        assert "by no absolute path: code of others" in says(Recorded(name, str(tmp_path / "elsewhere")))
    own = tmp_path / "own.py"
    own.write_text(evil)
    for name in (str(own), "json"):
        assert "hf://org/x imports" in says(Recorded(name, "hf://org/x")) and not trace.exists()
    assert not Recorded(str(own), str(run)).refused  # by a run of mine
    opened(run / "evil.py")  # named by the user
    assert trace.exists()


def test_a_file_that_is_gone_names_the_remedy(tmp_path):
    text = says(Recorded(f"{tmp_path}/gone.py#sha256=ab", "runs/a"))
    assert text == (
        f"{tmp_path}/gone.py, which the run runs/a imports, does not exist any more; name where it is now: "
        "--config.imports=PLACE, --imports PLACE where a command has it, changes={'imports': ...} in Python."
    )


def test_what_has_changed_is_said(parts):
    now = [opened(parts)]
    assert imports.changed(now, [str(now[0]), "json"]) == []
    (note,) = imports.changed(now, [f"/elsewhere/parts.py#sha256={'0' * 64}"] * 2)
    assert note.startswith(f"{parts} has changed since the run was trained with it")
    assert imports.changed(now, [f"/elsewhere/another.py#sha256={'0' * 64}"]) == []


def test_what_a_configuration_says_of_imports():
    assert imports.texts({}) == imports.texts({"imports": None}) == imports.texts({"imports": [3]}) == ()
    assert imports.texts({"imports": "a.py"}) == ("a.py",)
    assert imports.texts({"imports": ["a.py", "b"]}) == (
        "a.py",
        "b",
    )
    assert imports.recorded({"a": 1}, "x") == {"a": 1}
    assert os.fspath(imports.recorded({"imports": "a.py"}, "x")["imports"][0].of) == "x"
