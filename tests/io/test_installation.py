"""Where the code comes from: checkouts, and what pip leaves of what it installs."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import vit_jax
from vit_jax.io import installation

ROOT = pathlib.Path(__file__).parents[2]
RECORD = """vit_jax/__init__.py,sha256=abc,10
vit_jax/types.py,sha256=def,20
vit_jax/__pycache__/types.cpython-311.pyc,,
vit_jax-0.2.0.dist-info/INSTALLER,sha256=ghi,4
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that does what pip does: a package, its record and where it came from; returns the package."""

    def make(origin=None, record=RECORD, name="site"):
        about = tmp_path / name / "vit_jax-0.2.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vit_jax\nVersion: 0.2.0\n")
        (about / "RECORD").write_text(record)
        if origin is not None:
            (about / "direct_url.json").write_text(origin if isinstance(origin, str) else json.dumps(origin))
        monkeypatch.syspath_prepend(tmp_path / name)
        (tmp_path / name / "vit_jax").mkdir()
        return tmp_path / name / "vit_jax"

    return make


def test_this_checkout(monkeypatch):
    found = installation.find()
    assert (found.folder, found.record) == (ROOT, None)
    assert installation.provenance() == {"vit_jax": vit_jax.__version__, "commit": found.commit, "record": None}
    monkeypatch.setenv("PATH", "")  # no git, no commit
    assert installation.find().commit is None


def test_from_an_index(installed):
    found = installation.find(installed())
    assert (found.folder, found.editable, found.requirement, found.commit) == (None, False, "vit_jax", None)
    assert re.fullmatch("[0-9a-f]{64}", found.record)
    lines = RECORD.split("\n")
    same = "\r\n".join([lines[3].replace("ghi", "xyz"), lines[1], lines[0]])  # another pip, another Python
    assert installation.find(installed(record=same, name="again")).record == found.record
    other = installation.find(installed(record=RECORD.replace("def", "xyz"), name="other"))
    assert other.record != found.record
    assert installation.find(installed("{", name="damaged")).record == found.record


def test_from_a_repository(installed):
    origin = {"url": "https://example.org/v.git", "vcs_info": {"vcs": "git", "commit_id": "12ab"}}
    found = installation.find(installed(origin))
    assert (found.commit, found.requirement) == ("12ab", "vit_jax @ git+https://example.org/v.git@12ab")
    assert found.folder is None and found.record


def test_from_a_folder(installed, tmp_path):
    here = tmp_path / "my checkout"
    origin = {"url": here.as_uri(), "dir_info": {}}
    assert installation.find(installed(origin, name="gone")).folder is None
    (here / "vit_jax").mkdir(parents=True)
    (here / "pyproject.toml").write_text("")
    found = installation.find(installed(origin))
    assert (found.folder, found.editable, found.commit) == (here, False, None) and found.record
    found = installation.find(here / "vit_jax")  # the checkout itself, beside what was installed from it
    assert (found.folder, found.editable, found.record) == (here, False, None)
    installed({**origin, "dir_info": {"editable": True}}, name="editable")
    found = installation.find(here / "vit_jax")
    assert (found.folder, found.editable, found.record) == (here, True, None)


def test_a_copy_of_which_nothing_is_known(tmp_path):
    assert installation.find(tmp_path / "vit_jax") == installation.Installation(None, False, "vit_jax", None, None)


@pytest.mark.slow
def test_a_wheel(tmp_path):
    """Built and installed by pip, in an environment of its own that borrows the packages of this one."""
    source = tmp_path / "source"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in files.split("\0"):
        if name.startswith(("vit_jax/", "configs/")) or name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    pip = [sys.executable, "-m", "pip", "--python", python]
    pip += ["install", "--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    (own,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (own / "borrowed.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    subprocess.run([*pip, source], check=True, cwd=tmp_path)
    script = "import json\nfrom vit_jax.io import extras, installation\n"
    script += "print(json.dumps([installation.provenance(), extras.command('wandb')]))"
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH",) and not k.startswith("COV")}
    done = subprocess.run([python, "-c", script], check=True, cwd=tmp_path, env=env, capture_output=True, text=True)
    provenance, command = json.loads(done.stdout)
    assert provenance["vit_jax"] == vit_jax.__version__ and re.fullmatch("[0-9a-f]{64}", provenance["record"])
    assert provenance["commit"] is None and command == f"pip install '{source}[wandb]'"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A function that makes a repository with a package in it, and the file that its settings would have made."""
    for key in [key for key in os.environ if key.startswith("GIT_")]:
        monkeypatch.delenv(key)
    ran = tmp_path / "ran"
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {ran}\n")
    hook.chmod(0o755)

    def make(name, package, project):
        root = tmp_path / name
        (root / package / "vit_jax").mkdir(parents=True)
        (root / "pyproject.toml").write_text(f'[project]\nname = "{project}"\n')
        run = ("git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b")
        for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"], ["config", "core.fsmonitor", str(hook)]):
            subprocess.run([*run, *command], check=True)
        ran.unlink(missing_ok=True)
        return root / package / "vit_jax", ran

    return make


def test_the_commit_is_that_of_our_own_repository(checkout, monkeypatch):
    """A package in somebody's repository has no commit, and none of that repository's programs is run."""
    package, ran = checkout("ours", ".", "vit_jax")
    own = installation.commit(package)
    assert re.fullmatch(r"[0-9a-f]{7,}", own) and not ran.exists()
    (package.parent / "pyproject.toml").write_text('name = "vit_jax"\n')
    assert installation.commit(package) == f"{own}-dirty" and not ran.exists()
    others = [("installed", ".venv/lib/site-packages", "app"), ("vendored", ".", "app"), ("nested", "src", "vit_jax")]
    for name, place, project in others:
        package, ran = checkout(name, place, project)
        assert installation.commit(package) is None and not ran.exists()
    monkeypatch.setenv("GIT_DIR", str(package.parents[1] / ".git"))  # as inside a hook of that repository
    assert installation.commit(checkout("again", ".venv", "app")[0]) is None and not ran.exists()


def test_children_find_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = "import os, vit_jax; print(vit_jax.__file__, os.environ['PYTHONPATH'].split(os.pathsep)[1])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | installation.for_children(), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [vit_jax.__file__, str(tmp_path)]
