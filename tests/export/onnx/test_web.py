"""The program in WebAssembly, as a browser runs it: node and the npm package onnxruntime-web."""

import json
import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest

from vit_jax.export import export

HERE = pathlib.Path(__file__).parent
VARIABLE = "VIT_JAX_NODE_MODULES"
"""Names the folder ``node_modules`` in which ``npm install onnxruntime-web`` has put it."""


@pytest.fixture(scope="module")
def package():
    """The folder of onnxruntime-web."""
    folder = pathlib.Path(os.environ.get(VARIABLE, "")) / "onnxruntime-web"
    if shutil.which("node") is None or VARIABLE not in os.environ:
        pytest.skip(f"node, or {VARIABLE}, the folder where npm install onnxruntime-web has put it, is missing")
    assert (folder / "package.json").is_file(), f"{VARIABLE} names no folder with onnxruntime-web"
    return folder.resolve()


@pytest.mark.slow
@pytest.mark.parametrize(("int8", "allowed"), [(False, 1e-5), (True, 0.05)])
def test_a_browser_computes_the_same(package, predictor, canvases, tmp_path, int8, allowed):
    ours = predictor()
    written = export(ours, "onnx", tmp_path / "out", int8=int8)
    rgba = np.concatenate([canvases[0], np.full((10, 10, 1), 255, np.uint8)], axis=2)
    (tmp_path / "pixels").write_bytes(rgba.tobytes())
    command = ["node", HERE / "run.mjs", package, written.folder / "model.onnx", tmp_path / "pixels", "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    theirs, expected = json.loads(done.stdout), ours.probabilities(canvases[:1])[0]
    difference = np.abs(theirs - expected).max()
    assert difference < allowed and expected.max() > 0.3, difference


def test_the_page_shows_what_is_run():
    page = HERE.parents[2] / "docs" / "convert.md"
    assert (HERE / "classify.mjs").read_text(encoding="utf-8").rstrip() in page.read_text(encoding="utf-8")
