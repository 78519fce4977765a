"""Writing checkpoints in the background, and keeping the newest and the best."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from vit_jax import hosts, sharding
from vit_jax.checkpoint import noise, schema
from vit_jax.checkpoint.places import BEST, FOLDER, kept, sign, steps
from vit_jax.checkpoint.sums import checksums, text_sum
from vit_jax.io import atomic, jsonfile, mirror
from vit_jax.io.retry import passing, retried
from vit_jax.types import UserError

T = TypeVar("T")

log = logging.getLogger(__name__)
logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs tracebacks of what it also raises


LOST = 2
"""Checkpoints in a row that a run may fail to write because of errors that pass, before it ends: the next takes their
place, as what was to be written has been overwritten by the steps after it.
"""


class Checkpoints:
    """The checkpoints of one run.

    A disk or a file server that fails for a while is tried again (see :func:`vit_jax.io.retry.retried`); of several
    hosts, which write together, none does so by itself. Hosts that share no disk, as the run lives at an address
    (:mod:`vit_jax.io.mirror`), give what they have to the first, which writes alone.

    Args:
      workdir: the run's folder.
      keep: how many of the newest to keep.
      best: name of the metric whose best checkpoint (see :func:`sign`) is kept besides.
      buffer: bytes of ``params`` that may be on their way to the disk at a time, more than its largest array has; None
        sets no limit: the fastest, at the price of another copy.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 2, best: str = BEST, buffer: int | None = None) -> None:
        self.folder = workdir.absolute() / FOLDER

        def score(metrics: Mapping[str, float]) -> float:
            value = metrics.get(best)
            return sign(best) * value if isinstance(value, int | float) and not math.isnan(value) else -math.inf

        self._alone = hosts.count() > 1 and mirror.of(self.folder) is not None
        policies = ocp.checkpoint_managers
        keep_best = policies.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=score,  # without it orbax does not write metrics, and a resumed run forgets which was best
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), keep_best]),
            cleanup_tmp_directories=True,
            create=not self._alone,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                **({"active_processes": {0}} if self._alone else {})
            ),
        )
        handlers: Any = None
        if buffer is not None:
            gigabytes: Any = buffer / 1e9  # orbax multiplies; a fraction is as good
            handlers = {
                "params": ocp.StandardCheckpointHandler(save_concurrent_gb=gigabytes),
                "variables": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            }
        noise.hush()
        for step in steps(self.folder) if jax.process_index() == 0 else ():
            _check_metrics(step / "metrics" / "metrics")
        self._open = functools.partial(ocp.CheckpointManager, self.folder, options=options, item_handlers=handlers)
        self._lost, self._begin, self._arrays = 0, lambda: None, list[Any]()
        self._manager: Any = None
        if hosts.first() or not self._alone:
            with _writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._manager = self._tried(self._open)
        self._uploads = mirror.Uploads(self.folder)

    def save(self, step: int, items: Mapping[str, Any], meta: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Starts writing ``items`` (pytrees of arrays) and ``meta`` (JSON); returns once they left the device.

        Raises:
          UserError: this save or the one before it failed, for want of space for instance; earlier ones stay.
        """
        about = {"schema": schema.SCHEMA, **meta, "checksums": {k: checksums(v) for k, v in items.items()}}
        if self._alone:
            items = {k: sharding.whole(v, self._manager is not None) for k, v in items.items()}
        if self._manager is None:
            return
        args = {k: ocp.args.StandardSave(v) for k, v in items.items()}
        args["meta"] = ocp.args.JsonSave(about | {"checksum": text_sum(about)})

        def begin() -> None:
            self._manager.save(step, args=ocp.args.Composite(**args), metrics=dict(metrics) or None, force=True)

        with _writing(self.folder):
            self._settle()
            self._uploads.settle()  # what is on its way must not be deleted here
            if not self.folder.is_dir():  # the storage would make it anew, and nothing else of the run be there
                raise FileNotFoundError("the folder was deleted or moved while the run went on")
            self._begin, self._arrays = begin, jax.tree.leaves(dict(items))
            try:
                begin()
            except Exception as e:
                if not self._may_pass(e):
                    raise
                self._tried(self._anew)
        self._uploads.begin(step)

    def wait(self) -> None:
        """Returns once everything is on disk.

        Raises:
          UserError: the last save failed.
        """
        if self._manager is None:
            return
        with _writing(self.folder):
            try:
                self._manager.wait_until_finished()
            except Exception as e:
                if not self._may_pass(e) or any(x.is_deleted() for x in self._arrays if isinstance(x, jax.Array)):
                    raise
                self._tried(self._anew)
        self._uploads.wait()

    def _settle(self) -> None:
        """Waits for the last save; if it was lost to an error that passes, says so."""
        try:
            self._manager.wait_until_finished()
            self._lost = 0
        except Exception as e:
            if not self._may_pass(e) or self._lost == LOST:
                raise
            self._lost += 1
            log.warning("A checkpoint could not be written (%s); the next one takes its place.", atomic.reason(e))
            self._tried(self._reopen)

    def _anew(self) -> None:
        """Makes the last save once more."""
        self._reopen()
        self._begin()
        self._manager.wait_until_finished()

    def _reopen(self) -> None:
        """Forgets what failed, and removes what is left of it."""
        noise.GAVE_UP.set()
        with contextlib.suppress(Exception):
            self._manager.close()
        self._manager = self._open()

    def _may_pass(self, error: Exception) -> bool:
        return hosts.count() == 1 and passing(error)

    def _tried(self, call: Callable[[], T]) -> T:
        return retried(call, str(self.folder)) if hosts.count() == 1 else call()

    def close(self) -> None:
        """As :meth:`wait`; nothing can be saved thereafter."""
        try:
            self.wait()
        finally:
            self._uploads.close()
            if self._manager is not None:
                with _writing(self.folder):
                    self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        with atomic.unsaid_under(error):
            self.close()


class _writing:
    """Turns what orbax raises on a full disk or a lost folder into a sentence."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, UserError):
            return
        if not isinstance(error, OSError | ValueError | RuntimeError):
            return
        noise.GAVE_UP.set()
        reason = atomic.reason(error)
        raise UserError(f"cannot save to {self._folder}: {reason}; {kept(self._folder)}.") from error


def _check_metrics(path: pathlib.Path) -> None:
    """Moves damaged metrics of a checkpoint aside: it is sound without, and only counts no more for the best."""
    try:
        jsonfile.read(path)
    except UserError as e:
        if path.is_file():
            log.warning("%s The checkpoint is not affected, but is no longer considered for the best.", e)
            path.rename(path.with_name("damaged"))
