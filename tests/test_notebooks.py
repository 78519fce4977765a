"""Every notebook runs from top to bottom, small, and defines nothing."""

import ast
import os
import pathlib

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SAYS = {
    "quickstart": ("360 held-out digits are right", "expected calibration error after", "outputs differ by 0"),
    "clip_zero_shot": ("(recall at 1)", "360 held-out digits are right, without a label", "a green zero"),
}
"""Notebook -> what it prints."""
PICTURES = {"quickstart": 5, "clip_zero_shot": 3}


def code(path):
    """The code cells as Python, the commands of IPython as the calls that they stand for."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return [TransformerManager().transform_cell(cell.source) for cell in cells]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore")  # of the notebook client's own dependencies; the kernel is another process
def test_runs(path, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    assert "DURATION = " in parameters.source
    parameters.source += f'\nDURATION = "2 steps"\nWORKDIR = pathlib.Path({str(tmp_path / "run")!r})'
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()
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
    assert "google.colab" in install and "--constraint" in install  # the jax that is there stays
