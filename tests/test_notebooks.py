"""Every notebook runs from top to bottom, small, and defines nothing."""

import ast
import os
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
SMALL = {"DURATION": '"12 steps"'}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore")  # of the notebook client's own dependencies; the kernel is another process
def test_runs(path, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs before committing"
    parameters = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    for name, value in SMALL.items():
        assert f"{name} = " in parameters.source
        parameters.source += f"\n{name} = {value}"
    parameters.source += f"\nWORKDIR = pathlib.Path({str(tmp_path / 'run')!r})"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()
    text = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", ()))
    assert "360 held-out digits are right" in text and "expected calibration error after" in text
    pictures = [o for c in notebook.cells for o in c.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert len(pictures) >= 4


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.stem)
def test_imports_and_never_defines(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
            kinds = {type(node) for node in ast.walk(ast.parse(source))}
            assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef}
