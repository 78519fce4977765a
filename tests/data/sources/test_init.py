import importlib
import subprocess
import sys
from unittest import mock

import pytest

from vit_jax.data.loader import train_batches
from vit_jax.data.sources import SOURCES, open_parts, open_source
from vit_jax.types import UsageError, UserError


def test_unknown_kind_names_the_nearest():
    with pytest.raises(UsageError, match="unknown source 'fodler'; did you mean 'folder'"):
        open_source("fodler:/x")
    with pytest.raises(UserError, match=r"does not say what it holds; write .*'folder:/my/images'"):
        open_source("/my/images")


def test_a_file_without_its_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.csv").touch()
    (tmp_path / "images").mkdir()
    for name, kind in (("pairs.csv", "csv"), ("images", "folder")):
        with pytest.raises(UserError, match=f"does not say what it holds; write for example '{kind}:{name}'"):
            open_source(name)


def test_table():
    assert set(SOURCES) == {
        "csv",
        "digits",
        "digits_pairs",
        "fake",
        "folder",
        "jsonl",
        "mix",
        "parquet",
        "tar",
        "tfds",
    }


HEAVY = ("sklearn", "pyarrow", "tensorflow_datasets", "tensorflow", "grain", "matplotlib")


def test_import_is_light():
    """The loader is imported anew, where nothing heavy can be."""
    with mock.patch.dict(sys.modules, dict.fromkeys(HEAVY)):
        for name in [name for name in sys.modules if name.split(".")[0] == "vit_jax"]:
            del sys.modules[name]
        assert importlib.import_module("vit_jax.data.loader").train_batches is not train_batches
    assert importlib.import_module("vit_jax.data.loader").train_batches is train_batches


@pytest.mark.slow
def test_import_is_light_in_a_new_process():
    code = f"import vit_jax.data.loader, sys; print([m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"


def test_parts_of_its_own_or_all_of_it(tmp_path):
    train, val = open_parts("digits")
    assert (len(train), len(val)) == (1437, 360)
    for name in ("a/x", "b/y"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.png").write_bytes(b"")
    train, val = open_parts(f"folder:{tmp_path}")
    assert train is None and len(val) == 2
    with pytest.raises(UserError, match="does not exist"):
        open_parts("folder:/not/here")
