"""Names that are no UTF-8, and names that a terminal cannot show, through training, predicting and embedding."""

import io
import json
import os
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vit_jax.cli import main

CLASSES = (b"chat", b"chien_\xe9t\xe9", "猫".encode(), b'a "b"\\\n')


@pytest.fixture(scope="module")
def odd(tmp_path_factory, run):
    """A folder of classes with such names, and the workdir of a run on it."""
    root = tmp_path_factory.mktemp("odd")
    for label, name in enumerate(CLASSES):
        folder = os.fsencode(root / "classes") + b"/" + name
        os.makedirs(folder)
        for i in range(6):
            pixels = np.full((8, 8, 3), 40 * label + i, np.uint8)
            with open(folder + b"/caf\xe9%d.png" % i, "wb") as f:
                Image.fromarray(pixels).save(f, "PNG")
    argv = ["train", "--config", str(run.config), "--workdir", str(root / "run")]
    argv += [f"--config.data.path=folder:{root}/classes", "--config.data.holdout=4"]
    assert main(argv) == 0
    return root / "classes", root / "run"


def test_a_run_ends_with_its_results(odd):
    _, workdir = odd
    results = json.loads((workdir / "results.json").read_text("utf-8"))
    assert "chien_\udce9t\udce9" in json.dumps(results, ensure_ascii=False) and "猫" in (
        workdir / "results.json"
    ).read_text("utf-8")
    assert (workdir / "confusion.png").exists()
    assert not [p for p in workdir.iterdir() if p.name.startswith(".unfinished")]
    assert main(["evaluate", "--workdir", str(workdir), "--json", str(workdir / "x.json")]) == 0


def test_predictions_and_embeddings(odd, tmp_path, capsys):
    images, workdir = odd
    assert main(["predict", "--workdir", str(workdir), str(images), "--json", str(tmp_path / "p.json")]) == 0
    rows = json.loads((tmp_path / "p.json").read_text("utf-8"))
    assert len(rows) == 24 and sum("caf\udce9" in row["path"] for row in rows) == 24
    for name in ("e.npy", "e.parquet"):
        assert main(["embed", "--workdir", str(workdir), str(images), "--output", str(tmp_path / name)]) == 0
    paths = [row["path"] for row in json.loads((tmp_path / "e.json").read_text("utf-8"))]
    assert paths == [row["path"] for row in rows]
    written = pq.read_table(tmp_path / "e.parquet")["path"].to_pylist()
    assert written == [path.encode("utf-8", "backslashreplace").decode() for path in paths]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_terminals(odd, monkeypatch, encoding):
    images, workdir = odd
    for errors in ("strict", "surrogateescape"):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["predict", "--workdir", str(workdir), str(images), "--top", "4"]) == 0
        out.flush()
        assert b"caf\\udce9" in out.buffer.getvalue() and (b"\\u732b" in out.buffer.getvalue()) == (encoding != "utf-8")
        assert main(["data", "check", f"folder:{images}", "--json", "-"]) == 0
