"""JSON to a file, to the terminal, or nowhere."""

import json
import os

import numpy as np
import pytest

from vit_jax.cli import output
from vit_jax.types import UserError

VALUE = {"a": np.float32(0.5), "b": [float("nan"), np.int64(3)], "ä": None}
PLAIN = {"a": 0.5, "b": [None, 3], "ä": None}


def test_to_a_file(tmp_path, capsys):
    output.write(str(tmp_path / "x.json"), VALUE)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == PLAIN
    assert os.listdir(tmp_path) == ["x.json"] and capsys.readouterr().out == ""


def test_to_the_terminal_and_nowhere(capsys):
    output.write(None, VALUE)
    assert capsys.readouterr().out == ""
    output.write("-", VALUE)
    assert json.loads(capsys.readouterr().out) == PLAIN


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"--json '.*' cannot be written \(No such file or directory\); name a file in"):
        output.write(str(tmp_path / "no" / "x.json"), 1)
