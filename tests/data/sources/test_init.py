import subprocess
import sys

import pytest

from vit_jax.data.sources import SOURCES, open_source
from vit_jax.types import UsageError, UserError


def test_unknown_kind_names_the_nearest():
    with pytest.raises(UsageError, match="unknown source 'fodler'; did you mean 'folder'"):
        open_source("fodler:/x")
    with pytest.raises(UserError, match=r"does not say what it holds; write .*'folder:/my/images'"):
        open_source("/my/images")


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


def test_import_is_light():
    heavy = ("sklearn", "pyarrow", "tensorflow_datasets", "tensorflow", "grain", "matplotlib")
    code = f"import vit_jax.data.loader, sys; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"
