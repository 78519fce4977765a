"""Means that add up exactly, and a metrics file that survives kills."""

import errno
import json
import logging
import math
import operator
import os
import pathlib
import resource
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax import metrics
from vit_jax.metrics import Mean, MetricsWriter
from vit_jax.types import UserError


def test_mean_of_parts_is_the_mean_of_the_whole(rng: np.random.Generator) -> None:
    values, mask = rng.normal(size=23).astype(np.float32), rng.random(23) < 0.7
    parts = [{"loss": Mean.of(values[i : i + 5], mask[i : i + 5])} for i in range(0, 23, 5)]
    whole = parts[0]
    for part in parts[1:]:
        whole = jax.tree.map(operator.add, whole, part)
    assert float(whole["loss"].count) == mask.sum()
    np.testing.assert_allclose(metrics.compute(whole)["loss"], np.mean(values[mask], dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(whole["loss"].value(), np.mean(values[mask]), rtol=1e-6)
    total = parts[0]["loss"] + parts[1]["loss"]
    np.testing.assert_allclose(total.value(), values[:10][mask[:10]].mean(), rtol=1e-6)


def test_mean_through_scan_and_devices(rng: np.random.Generator) -> None:
    values, weights = rng.normal(size=(3, 16)).astype(np.float32), rng.integers(0, 3, (3, 16)).astype(np.int32)
    mesh = jax.make_mesh((8,), ("data",))
    put = lambda x: jax.device_put(x, NamedSharding(mesh, P(None, "data")))  # noqa: E731

    @jax.jit
    def run(values: jax.Array, weights: jax.Array) -> Mean:
        zero = Mean(jnp.float32(0), jnp.float32(0))
        return jax.lax.scan(lambda m, x: (m + Mean.of(*x), None), zero, (values, weights))[0]

    got = run(put(values), put(weights))
    np.testing.assert_allclose(metrics.compute({"m": got})["m"], np.average(values, weights=weights), rtol=2e-6)
    assert float(got.count) == weights.sum()


def test_mean_takes_booleans_integers_and_no_weights() -> None:
    assert float(Mean.of(np.array([True, False, True, True])).value()) == 0.75
    assert float(Mean.of(np.array([1, 2, 6], np.int32), np.array([True, True, False])).value()) == 1.5


def test_padding_may_be_nan_and_nothing_counted_is_nan() -> None:
    assert float(Mean.of(np.array([2.0, np.nan], np.float32), np.array([True, False])).value()) == 2.0
    assert math.isnan(metrics.compute({"m": Mean.of(np.array([np.nan, 1.0], np.float32))})["m"])
    empty = Mean.of(np.ones(3, np.float32), np.zeros(3, bool))
    assert math.isnan(float(empty.value())) and math.isnan(metrics.compute({"m": empty})["m"])
    gradient = jax.grad(lambda x: Mean.of(x, jnp.zeros(3)).value())(jnp.ones(3))
    np.testing.assert_array_equal(gradient, np.zeros(3))


def test_gradient_of_the_mean_ignores_padding() -> None:
    gradient = jax.grad(lambda x: Mean.of(x, jnp.asarray([1, 1, 0])).value())(jnp.asarray([1.0, 2.0, jnp.nan]))
    np.testing.assert_array_equal(gradient, [0.5, 0.5, 0.0])


def test_rows_round_trip_and_nan_is_null(tmp_path: pathlib.Path) -> None:
    with MetricsWriter(tmp_path / "run", loggers=()) as writer:
        writer.write(1, {"train/loss": np.float32(0.1), "lr": jnp.float32(1e-3)})
        assert len(metrics.read(tmp_path / "run")) == 1, "a row is on disk before close"
        writer.write(np.int64(2), {"train/loss": math.nan, "lr": math.inf})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    strict = [json.loads(line, parse_constant=lambda x: pytest.fail(f"bare {x}")) for line in lines]
    assert strict[1] == {"step": 2, "train/loss": None, "lr": None}
    rows = metrics.read(tmp_path / "run")
    assert rows[0] == {"step": 1, "train/loss": float(np.float32(0.1)), "lr": float(np.float32(1e-3))}
    assert rows[1]["step"] == 2 and math.isnan(rows[1]["train/loss"]) and math.isnan(rows[1]["lr"])
    assert metrics.read(tmp_path) == []


def test_a_torn_line_at_any_byte_is_dropped_and_said(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    first, last = b'{"step": 1, "loss": 2.0}\n', b'{"step": 22, "loss": 1.5}\n'
    for cut in range(len(last) + 1):
        path.write_bytes(first + last[:cut])
        caplog.clear()
        with caplog.at_level(logging.WARNING), MetricsWriter(tmp_path, loggers=()) as writer:
            writer.write(3, {"loss": 1.0})
        whole = cut >= len(last) - 1
        assert [row["step"] for row in metrics.read(tmp_path)] == ([1, 22, 3] if whole else [1, 3]), cut
        assert ("cut short" in caplog.text) == (0 < cut < len(last) - 1), cut
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_truncate_on_resume(tmp_path: pathlib.Path) -> None:
    with MetricsWriter(tmp_path, loggers=()) as writer:
        for step in range(1, 8):
            writer.write(step, {"loss": 1 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    before = metrics.read(tmp_path)
    with MetricsWriter(tmp_path, loggers=()) as writer:
        assert writer.truncate(4) == 3
        assert metrics.read(tmp_path) == before[:4]
        for step in range(5, 8):
            writer.write(step, {"loss": 1 / step})
    assert metrics.read(tmp_path) == before
    with MetricsWriter(tmp_path, loggers=()) as writer:
        assert writer.truncate(7) == 0


def test_a_kill_while_truncating_leaves_the_old_rows(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MetricsWriter(tmp_path, loggers=()) as writer:
        writer.write(1, {"loss": 1.0})
        writer.write(2, {"loss": 2.0})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(pathlib.Path, "replace", killed)
        writer = MetricsWriter(tmp_path, loggers=())
        with pytest.raises(KeyboardInterrupt):
            writer.truncate(0)
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2]


@pytest.mark.parametrize("bad", ["nonsense", '{"loss": 1}', "[1]"])
def test_a_broken_line_in_the_middle_is_an_error(bad: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{bad}\n{{"step": 3}}\n')
    with pytest.raises(UserError, match="line 2 is not a metrics row"):
        metrics.read(tmp_path)


def test_only_process_0_writes(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricsWriter(tmp_path / "run") as writer:
        assert writer.truncate(0) == 0
        writer.write(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """``full_disk(n)``: no file grows beyond n bytes from now on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 10, 250, 700])
def test_a_full_disk_is_a_sentence(tmp_path: pathlib.Path, full_disk: Callable[[int], None], size: int) -> None:
    """Wherever in a row or in an event the disk is full: what is there then can be gone on with."""
    sentence = r"cannot be written: the disk is full; free some space and run"
    with pytest.raises(UserError, match=sentence), MetricsWriter(tmp_path) as writer:
        full_disk(size)
        for step in range(1, 100):
            writer.write(step, {"loss": 1 / step})
    full_disk(-1)
    with MetricsWriter(tmp_path) as writer:
        there = writer.rows
        writer.write(100, {"loss": 0.0})
    assert there < 40 and [row["step"] for row in metrics.read(tmp_path)] == [*range(1, there + 1), 100]


def test_closing_leaves_an_error_under_way(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("tensorboardX.event_file_writer.EventsWriter.close", fail)
    with pytest.raises(UserError, match="cannot be written: Input/output error"), MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
    with pytest.raises(ZeroDivisionError), MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
        raise ZeroDivisionError


def test_what_is_in_the_way_is_a_sentence(tmp_path: pathlib.Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.jsonl").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "tensorboard").write_text("a file")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "metrics.jsonl").symlink_to(tmp_path / "victim2")
    for name, sentence in [("a", "cannot be read .Is a directory"), ("b", "File exists"), ("c", "symbolic links")]:
        with pytest.raises(UserError, match=sentence), MetricsWriter(tmp_path / name) as writer:
            writer.write(1, {"loss": 1.0})
    assert not (tmp_path / "victim2").exists()


@pytest.mark.parametrize("there", [False, True])
def test_a_log_that_is_taken_away_is_noticed_at_the_next_sync(tmp_path: pathlib.Path, there: bool) -> None:
    """Deleted, or replaced by another."""
    with MetricsWriter(tmp_path, loggers=()) as writer:
        writer.write(1, {"loss": 1.0})
        writer.sync()
        (tmp_path / "metrics.jsonl").rename(tmp_path / "moved")
        if there:
            (tmp_path / "metrics.jsonl").touch()
        with pytest.raises(UserError, match=r"metrics.jsonl cannot be written: (No such file|it was replaced while)"):
            writer.sync()


def test_rows_are_counted(tmp_path: pathlib.Path) -> None:
    with MetricsWriter(tmp_path, loggers=()) as writer:
        assert writer.rows == 0
        for step in (1, 2, 2, 3):
            writer.write(step, {"loss": 1.0})
        assert writer.rows == 4
    with MetricsWriter(tmp_path, loggers=()) as writer:
        assert writer.rows == 4 and writer.truncate(2) == 1 and writer.rows == 3


def test_a_disk_that_fails_for_a_while_loses_no_row(tmp_path: pathlib.Path, fails: Callable[..., Any]) -> None:
    class Flaky:
        """As the file below the writer, which has no other name."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, line: bytes) -> int:
            return self.file.write(line[:10])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    with MetricsWriter(tmp_path, ()) as writer:
        writer._file = Flaky(writer._file)
        fails(Flaky, "write", 3)
        writer.write(1, {"train/loss": 0.5})
        writer.write(2, {"train/loss": 0.25})
    fails(pathlib.Path, "read_bytes", 2)
    assert [row["train/loss"] for row in metrics.read(tmp_path)] == [0.5, 0.25]
