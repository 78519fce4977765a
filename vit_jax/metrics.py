"""Metrics: means that add up over micro-batches, batches and devices, and the files they are written to.

``metrics.jsonl`` in a workdir holds one JSON object a line, ``{"step": 100, "train/loss": 0.25}``; loggers
(:mod:`vit_jax.loggers`) are given the same names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.io import atomic, jsonfile
from vit_jax.io.retry import retried
from vit_jax.loggers import Logger, LoggerSpec, Run, TensorBoard
from vit_jax.types import Array, UserError

FILE = "metrics.jsonl"
Row = dict[str, float]
"""``{"step": int, name: float, ...}``; what is not finite reads as NaN."""

log = logging.getLogger(__name__)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A weighted mean kept as its numerator and denominator, so that partial means add up to the exact whole.

    A pytree: ``jax.tree.map(operator.add, a, b)`` adds dictionaries of them, and a sum over the leading axis those that
    a scan stacked.

    Attributes:
      total: sum of weight x value, float32 scalar.
      count: sum of weights, float32 scalar; whole numbers are exact up to 2^24.
    """

    total: Array
    count: Array

    @classmethod
    def of(cls, values: Array, weights: Array | None = None) -> Mean:
        """Mean of ``values`` [B] (any number type) under ``weights`` [B], such as the batch mask; by default all count.

        An entry of weight 0 does not count even if its value is NaN.
        """
        values = jnp.asarray(values).astype(jnp.float32)
        weights = jnp.ones_like(values) if weights is None else jnp.asarray(weights).astype(jnp.float32)
        assert values.shape == weights.shape, (values.shape, weights.shape)
        return cls(jnp.sum(jnp.where(weights == 0, 0.0, values) * weights), jnp.sum(weights))

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> jax.Array:
        """total / count, float32 scalar; NaN if nothing was counted (and then with a zero gradient)."""
        empty = self.count == 0
        return jnp.where(empty, jnp.nan, self.total / jnp.where(empty, 1.0, self.count))


def compute(metrics: Mapping[str, Mean]) -> dict[str, float]:
    """The values on the host, in one transfer; NaN where nothing was counted."""
    host = jax.device_get(dict(metrics))
    return {k: float(m.total) / float(m.count) if m.count else math.nan for k, m in host.items()}


class MetricsWriter:
    """Appends to ``metrics.jsonl`` and to loggers; every row is with the system when :meth:`write` returns, and on
    the disk when :meth:`sync` does.

    Args:
      workdir: the run's folder.
      loggers: where the rows go besides; they are opened by :meth:`open`, or with the first row.

    Of a run on several hosts only process 0 writes; the others may call the same methods. A line that a kill cut short
    is dropped on opening, and logged.

    Attributes:
      rows: number of rows in the file; 0 on processes that do not write.

    Raises:
      UserError: a line in the middle of an existing file is no JSON object.
        From every method: the files cannot be written.
    """

    def __init__(self, workdir: str | os.PathLike[str], loggers: Sequence[LoggerSpec] = (TensorBoard(),)) -> None:
        self._path = pathlib.Path(workdir) / FILE
        self._writes = jax.process_index() == 0
        self._specs: Sequence[LoggerSpec] = loggers if self._writes else ()
        self._loggers: list[Logger] = []
        self._start: int | None = None
        self._file: Any = None
        self.rows = 0
        if self._writes:
            self._open_file()

    def open(self, config: Mapping[str, Any] | None = None) -> None:
        """Opens the loggers, for a run of this plain configuration."""
        specs, self._specs = self._specs, ()
        self._loggers += [spec.open(Run(self._path.parent, self._start, config or {})) for spec in specs]

    def _open_file(self) -> None:
        with atomic.writing(str(self._path)):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            rows = read(self._path.parent)
            if not _ends_clean(self._path):
                atomic.write_text(self._path, "".join(map(_line, rows)))
            self._file = open(self._path, "ab", 0, opener=_no_link)  # noqa: SIM115 - closed by close()
            self.rows = len(rows)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One row. ``values`` are numbers or scalar arrays; NaN and infinities become ``null`` in the file."""
        if not self._writes:
            return
        row = {k: float(v) for k, v in values.items()}
        line = _line({"step": int(step), **row}).encode()
        with atomic.writing(str(self._path)):
            while line:  # a disk that fills up takes a part, and says why at the rest
                line = line[retried(functools.partial(self._file.write, line), str(self._path)) :]
        self.rows += 1
        self.open()
        for logger in self._loggers:
            logger.write(int(step), {k: v for k, v in row.items() if math.isfinite(v)})

    def sync(self) -> None:
        """Returns once all rows are on the disk, in the file that bears the name."""
        if not self._writes:
            return
        with atomic.writing(str(self._path)):
            os.fsync(self._file.fileno())
            if not os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path)):
                raise FileNotFoundError("it was replaced while the run went on")

    def truncate(self, after_step: int) -> int:
        """Drops the rows of steps > ``after_step``, atomically: what a resumed run is about to compute again.

        Returns:
          The number of rows dropped (0 on processes that do not write).
        """
        if not self._writes:
            return 0
        assert not self._loggers, "truncate() comes before the loggers are opened: they are to forget as much"
        rows = read(self._path.parent)
        kept = [row for row in rows if row["step"] <= after_step]
        self._start = after_step
        if len(kept) < len(rows):
            self._file.close()
            with atomic.writing(str(self._path)):
                atomic.write_text(self._path, "".join(map(_line, kept)))
            self._open_file()
        return len(rows) - len(kept)

    def close(self) -> None:
        """Closes the file and the loggers."""
        with atomic.writing(str(self._path.parent)), contextlib.ExitStack() as stack:
            for opened in (*self._loggers, self._file):
                if opened is not None:
                    stack.callback(opened.close)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        with atomic.unsaid_under(error):
            self.close()


def read(workdir: str | os.PathLike[str]) -> list[Row]:
    """The rows of ``metrics.jsonl`` in order; none if there is no file. A torn last line is left out, and logged.

    Raises:
      UserError: a line before the last is no JSON object with an integer ``step``.
    """
    path = pathlib.Path(workdir) / FILE
    try:
        lines = retried(path.read_bytes, str(path)).split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}); move it away, or use a new workdir.") from e
    while lines and not lines[-1].strip():
        lines.pop()
    rows = []
    for number, text in enumerate(lines, 1):
        row = _parse(text)
        if row is not None:
            rows.append(row)
        elif number == len(lines):
            log.warning("%s: dropped the last line, cut short when the run was killed: %r", path, text[:80])
        else:
            raise UserError(f"{path}, line {number} is not a metrics row: {text[:80]!r}; delete that line or the file.")
    return rows


def _parse(text: bytes) -> Row | None:
    try:
        row = jsonfile.loads(text)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    return {k: math.nan if v is None else v for k, v in row.items()}


def _line(row: Mapping[str, float]) -> str:
    return json.dumps({k: v if math.isfinite(v) else None for k, v in row.items()}, allow_nan=False) + "\n"


def _ends_clean(path: pathlib.Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return True
    with path.open("rb") as f:
        f.seek(-1, os.SEEK_END)
        return f.read(1) == b"\n"


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
