"""The finders on a run's own step."""

import json

import jax
import numpy as np
import pytest

import vit_jax
from vit_jax.cli import main
from vit_jax.find import batch_size
from vit_jax.metrics import read


def test_lr(run, tmp_path, capsys):
    """Its first loss is that of the run, whatever the rate; the steps that follow are at other rates."""
    argv = ["find", "lr", "--config", str(run.config), "--steps", "12", "--output", str(tmp_path / "found")]
    status = main([*argv, "--least", "1e-4", "--most", "10"])
    out, err = capsys.readouterr()
    found = json.loads((tmp_path / "found" / "lr.json").read_text())
    assert (tmp_path / "found" / "lr.png").stat().st_size > 10_000
    np.testing.assert_allclose(np.diff(np.log(found["rates"])), np.log(1e5) / 12, rtol=1e-4)
    first, second, _ = [row for row in read(run.workdir) if "train/loss" in row]
    assert found["losses"][0] == pytest.approx(first["train/loss"], rel=1e-6)
    assert abs(found["losses"][1] - second["train/loss"]) > 1e-6 and found["batch size"] == 8
    assert f"{len(found['rates'])} steps of 8, up to a rate of " in out
    if found["suggestion"] is None:
        assert status == 1 and "no learning rate to suggest" in err
    else:
        assert status == 0 and f"--config.optim.lr={found['suggestion']:.2g} is a tenth" in out


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--least", "1", "--most", "0.1"], 2, "rise from least to most"),
        (["--least", "-1"], 2, "least=-1.0 is not allowed"),
        (["--config.resume_from=runs/x"], 2, "resume_from goes on in the middle of a schedule"),
        (["--config.optim.lrr=1"], 2, "did you mean 'lr'"),
    ],
)
def test_mistakes(run, capsys, words, status, says):
    assert main(["find", "lr", "--config", str(run.config), *words]) == status
    assert says in capsys.readouterr().err


@pytest.mark.thorough
def test_batch(run, capsys, tmp_path, monkeypatch):
    """Each size takes the state, its rows and what is in between; where there is room for 16, 16 is the largest."""
    argv = ["find", "batch", "--config", str(run.config), "--most", "32"]
    assert main([*argv, "--json", str(tmp_path / "all.json")]) == 0
    out = capsys.readouterr().out
    rows = {row["size"]: row for row in json.loads((tmp_path / "all.json").read_text())["rows"]}
    assert set(rows) >= {jax.device_count(), 32} and all(row["fits"] for row in rows.values())
    pixels = 8 * 8 * 3
    assert rows[32]["memory"] - rows[8]["memory"] >= 24 * pixels / jax.device_count()
    assert "--config.batch_size=32 fits, the largest tried (--most; there are 22 examples)" in out
    assert "what this machine has free for each of 8 devices" in out
    monkeypatch.setattr(batch_size, "room", lambda _: (rows[32]["memory"] - 1, "a device"))
    monkeypatch.setattr(batch_size, "_rate", lambda *_: 1.0)
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "does not fit" in out and "--config.batch_size=16 fits: it takes" in out


def test_batch_of_an_objective_that_compares(run, capsys, monkeypatch):
    rows = (
        batch_size.BatchSize(8, 2**29, True, 10.0),
        batch_size.BatchSize(16, 2**30, True, 20.0),
        batch_size.BatchSize(32, 2**31, False),
    )
    monkeypatch.setattr(
        vit_jax, "find_batch", lambda *_, **__: batch_size.BatchSearch(rows, 2**30, "a device", 99, True)
    )
    assert main(["find", "batch", "--config", str(run.config)]) == 0
    out = capsys.readouterr().out
    assert "another size is another loss" in out and "16 fits: it takes 1 GiB, and a device is 1 GiB" in out
    assert "--config.batch_size=16 is as fast" in out
