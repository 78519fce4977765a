"""Every notebook runs from top to bottom, small, and defines nothing."""

import ast
import importlib.metadata
import importlib.util
import os
import pathlib
import runpy
import subprocess
import sys

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
requirements = runpy.run_path(str(FOLDER / "colab.py"))["requirements"]
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SAYS = {
    "quickstart": ("360 held-out digits are right", "expected calibration error after", "outputs differ by 0"),
    "clip_zero_shot": ("(recall at 1)", "360 held-out digits are right, without a label", "a green zero"),
    "finetune_your_images": ("starts from", "images are mistaken", "merge(12)", "outputs differ by"),
    "monarch": ("from dense to monarch(4)", "fine-tuned", "of 360 held-out digits are right", "the TPU's compiler"),
    "tpu_pod": ("it fits", "images/s", "the log of both hosts ends at step 2", "queued-resources create b16"),
}
"""Notebook -> what it prints."""
PICTURES = {"quickstart": 5, "clip_zero_shot": 3, "finetune_your_images": 5, "monarch": 3, "tpu_pod": 3}
PICTURES["monarch"] += bool(importlib.util.find_spec("libtpu"))  # drawn of what the compiler says, where it is
MARKS = {"tpu_pod": [pytest.mark.tpu]}


def code(path):
    """The code cells as Python, the commands of IPython as the calls that they stand for."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return [TransformerManager().transform_cell(cell.source) for cell in cells]


@pytest.mark.slow
@pytest.mark.parametrize("path", [
    *(pytest.param(p, id=p.stem, marks=MARKS.get(p.stem, ())) for p in NOTEBOOKS),
    pytest.param(FOLDER / "monarch.ipynb", id="monarch with the compiler", marks=pytest.mark.tpu),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")  # of the notebook client's own dependencies; the kernel is another process
def test_runs(path, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    assert "DURATION = " in parameters.source
    parameters.source += f'\nDURATION = "2 steps"\nWORKDIR = pathlib.Path({str(tmp_path / "run")!r})'
    if path.stem == "tpu_pod":
        towers = {
            f"{tower}.{key}": 2 for tower in ("model.image_tower", "model.text_tower") for key in ("depth", "heads")
        }
        parameters.source += f'\nTOPOLOGY = "v5e:2x2"\nCHANGES |= {dict(towers, batch_size=16)}'
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(FOLDER)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    assert [words for words in SAYS[path.stem] if words not in text] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PICTURES[path.stem]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_imports_and_never_defines(path):
    kinds = {type(node) for source in code(path) for node in ast.walk(ast.parse(source))}
    assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_is_clean_and_opens_in_colab(path):
    cells = nbformat.read(path, as_version=4).cells
    assert not any(cell.get("outputs") for cell in cells), "clear the outputs before committing"
    assert f"/blob/main/notebooks/{path.name})" in cells[0].source
    install = code(path)[0]
    assert "google.colab" in install and "python colab.py > /tmp/wanted.txt" in install
    assert "pip" in install and "--requirement /tmp/wanted.txt" in install


COLAB = {"jax": "0.11.0", "jaxlib": "0.11.0", "jax-cuda12-plugin": "0.11.0", "numpy": "2.1.0", "torch": "2.9.0+cu126"}
NEEDED = ["jax>=0.10.2", "numpy>=2", "tqdm>=4"]


def test_in_colab_jax_stays_as_it_is():
    lines, sentences = requirements(NEEDED, COLAB)
    assert lines == ["..", "jax==0.11.0", "jax-cuda12-plugin==0.11.0", "jaxlib==0.11.0", "numpy==2.1.0"]
    assert sentences == []


def test_a_jax_that_is_too_old_is_replaced_and_that_is_said():
    lines, (sentence,) = requirements(NEEDED, {**COLAB, "jax": "0.7.2"})
    assert lines == ["..", "jax[cuda12]", "numpy==2.1.0"]
    assert sentence.startswith("jax 0.7.2 is older than vit_jax needs (jax>=0.10.2)") and "Restart session" in sentence
    lines, sentences = requirements(NEEDED, {"numpy": "1.26"})
    assert lines == [".."] and "numpy 1.26 is older" in sentences[0]


def test_what_is_here_is_kept():
    """The script as the notebooks run it: what it prints is installed already, but for the project itself."""
    done = subprocess.run([sys.executable, "colab.py"], cwd=FOLDER, capture_output=True, text=True, check=True)
    here, *pins = done.stdout.split()
    assert here == ".." and f"jax=={importlib.metadata.version('jax')}" in pins and done.stderr == ""
