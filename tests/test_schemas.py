"""Runs of every earlier schema of checkpoints are read: predicted with, evaluated, continued and started from."""

import pathlib
import tarfile

import numpy as np
import pytest

import vit_jax as vj
from tests import runs
from vit_jax.train import loop, workdir

RUNS = sorted((pathlib.Path(__file__).parent / "golden").glob("run_*.tar.gz"))
FOUND = {  # what the version that wrote it found
    name: {"loss": 2.7706403881311417, "p": [0.49965476989746094, 0.49991506338119507]}
    for name in ("run_0.2.0.tar.gz", "run_schema_2.tar.gz")
}


@pytest.fixture(params=RUNS, ids=lambda path: path.name)
def run(request, tmp_path):
    """A run as its version wrote it, and what it found."""
    with tarfile.open(request.param) as tar:
        tar.extractall(tmp_path / "run", filter="data")
    return tmp_path / "run", FOUND[request.param.name]


def test_there_is_one():
    assert [path.name for path in RUNS] == list(FOUND)


@pytest.fixture
def _one_device():
    with runs.alone():
        yield


@pytest.mark.first(1)
@pytest.mark.usefixtures("_one_device")
def test_a_run_is_read(run, tmp_path, capsys):
    folder, found = run
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    rows = vj.predict(folder, images, top=1)
    assert [row["predictions"][0]["probability"] for row in rows] == pytest.approx(found["p"], rel=1e-5)
    assert vj.evaluate(folder).metrics["loss"] == pytest.approx(found["loss"], rel=1e-5)
    raw = workdir.load(folder)
    assert loop.run(raw, folder).report.metrics["loss"] == pytest.approx(found["loss"], rel=1e-5)
    longer = {**raw, "duration": 6, "resume_from": str(folder)}
    assert int(loop.run(longer, tmp_path / "longer").state.step) == 6
    loop.run({**raw, "init": str(folder)}, tmp_path / "tuned")
    said = capsys.readouterr().out
    assert "resumed at step 4 (it does not tell of its data, as those of earlier versions: whether" in said
    assert "continues " in said and "every parameter taken as it is" in said
