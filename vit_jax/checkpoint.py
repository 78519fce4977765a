"""Checkpoints: orbax underneath, asynchronous and atomic, the newest N and the best one kept.

A checkpoint is a folder ``checkpoints/<step>`` with the items ``params``, ``ema`` (where there is one), ``opt_state``
and ``meta`` (JSON: configuration, class names, provenance). Each is readable alone, so that evaluation never loads an
optimizer. Parameters are stored as the model's nested dictionary, other trees flat by path: neither depends on the
mesh.
``meta`` also holds a checksum of every array and of itself, because the storage format notices a lost file but not a
flipped bit.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
import logging
import math
import pathlib
import re
import sys
import traceback
import zlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax.checks import Range
from vit_jax.config import record_of
from vit_jax.io import atomic, jsonfile
from vit_jax.trees import flat
from vit_jax.types import UserError

log = logging.getLogger(__name__)
logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs tracebacks of what it also raises

FOLDER = "checkpoints"
BEST = "val/accuracy"
"""The metric that decides which checkpoint is the best, where a configuration names no other."""

SCHEMA = 3
"""Version of what a checkpoint holds. 1 had no number, and no items ``variables`` and ``objective``; 2 no checksum of
``meta``, no word on data and log, and checksums that did not see the order of an array's words."""

SMALL = 2**20
"""Bytes of an array that is summed on the host: compiling a program for its shape would take longer."""


def _mixed(words: Any, places: Any) -> Any:
    """uint32 of each word and its place: another number for every word at one place (Appleby's MurmurHash3 ends so)."""
    x = words ^ places * np.uint32(0x9E3779B1)
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    x = (x ^ x >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return x ^ x >> np.uint32(16)


def _plain(words: Any, places: Any) -> Any:
    """What checkpoints before schema 3 summed: blind to the order of words."""
    del places
    return words


@functools.partial(jax.jit, static_argnums=1)
def _device_sum(x: jax.Array, mix: Callable[[Any, Any], Any]) -> jax.Array:
    words = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}") if x.dtype != bool else x
    places, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):  # in steps that any layout over devices can take on its own
        places += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(mix(words.astype(jnp.uint32), places), dtype=jnp.uint32)


def _checksum(x: jax.Array, mix: Callable[[Any, Any], Any]) -> int:
    if x.nbytes > SMALL or not getattr(x, "is_fully_addressable", True):
        return int(_device_sum(x, mix))
    words = np.ascontiguousarray(x).view(f"uint{8 * x.dtype.itemsize}").astype(np.uint32).reshape(-1)
    return int(np.sum(mix(words, np.arange(words.size, dtype=np.uint32)), dtype=np.uint32))


def checksums(tree: Any, schema: int = SCHEMA) -> dict[str, int]:
    """Path -> sum modulo 2^32 over the array's words, each mixed with its place: equal for every layout over devices
    and hosts, and other where a bit is, or where two words changed places.

    An array at a time: XLA copies what it sums, and one program for all of them would copy the whole tree. Each is
    waited for: many small collectives in flight on more devices than cores can block each other for good.

    Args:
      tree: of arrays.
      schema: of the checkpoint; before 3 words were summed as they are.
    """
    mix = _mixed if schema >= 3 else _plain
    return {path: _checksum(leaf, mix) for path, leaf in flat(tree).items()}


def _text_sum(value: Any) -> int:
    """Of what JSON makes of ``value``, whatever the order of its keys."""
    return zlib.crc32(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode())


def sign(metric: str) -> float:
    """1 where more is better, -1 where less is: a loss or a calibration error."""
    return -1.0 if metric.endswith(("loss", "ece", "rank")) else 1.0


class Unsuitable(UserError):
    """A checkpoint that is not damaged, but not to be taken either; nor is one before it."""


META: dict[str, Any] = {
    "checksums": dict[str, dict[str, int]],
    "config": dict[str, Any] | None,
    "class_names": list[str] | None,
    "provenance": dict[str, Any] | None,
    "tokenizer": dict[str, Any] | None,
    "resize": str | None,
    "data": dict[str, dict[str, Any]] | None,
    "rows": int | None,
    "patience": dict[str, Any] | None,
}
"""Keys of ``meta`` and their types; None stands for those that a checkpoint may lack."""
MAX_META = 2**28
"""Bytes of ``meta``: vocabularies and the names of millions of classes have room."""


class NewerSchema(Unsuitable):
    """A checkpoint of a later version of this package."""


class Checkpoints:
    """The checkpoints of one run.

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

        policies = ocp.checkpoint_managers
        keep_best = policies.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=score,  # without it orbax does not write metrics, and a resumed run forgets which was best
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), keep_best]),
            cleanup_tmp_directories=True,
        )
        handlers: Any = None
        if buffer is not None:
            gigabytes: Any = buffer / 1e9  # orbax multiplies; a fraction is as good
            handlers = {
                "params": ocp.StandardCheckpointHandler(save_concurrent_gb=gigabytes),
                "variables": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            }
        _hush()
        for step in steps(self.folder) if jax.process_index() == 0 else ():
            _check_metrics(step / "metrics" / "metrics")
        with _writing(self.folder):
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def save(self, step: int, items: Mapping[str, Any], meta: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Starts writing ``items`` (pytrees of arrays) and ``meta`` (JSON); returns once they left the device.

        Raises:
          UserError: this save or the one before it failed, for want of space for instance; earlier ones stay.
        """
        args = {k: ocp.args.StandardSave(v) for k, v in items.items()}
        about = {"schema": SCHEMA, **meta, "checksums": {k: checksums(v) for k, v in items.items()}}
        args["meta"] = ocp.args.JsonSave(about | {"checksum": _text_sum(about)})
        with _writing(self.folder):
            if not self.folder.is_dir():  # the storage would make it anew, and nothing else of the run be there
                raise FileNotFoundError("the folder was deleted or moved while the run went on")
            self._manager.save(step, args=ocp.args.Composite(**args), metrics=dict(metrics) or None, force=True)

    def wait(self) -> None:
        """Returns once everything is on disk.

        Raises:
          UserError: the last save failed.
        """
        with _writing(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """As :meth:`wait`; nothing can be saved thereafter."""
        try:
            self.wait()
        finally:
            with _writing(self.folder):
                self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        with atomic.unsaid_under(error):
            self.close()


Check = Callable[[Mapping[str, Any], pathlib.Path], None]
"""``check(meta, folder)`` raises :class:`Unsuitable` where a run is not to go on from a checkpoint, sound as it is."""


def restore(
    workdir: pathlib.Path, items: Mapping[str, Any], check: Check = lambda *_: None
) -> tuple[int, dict[str, Any]] | None:
    """The newest readable checkpoint of a run, as (step, items and ``meta``); None if there is none at all.

    Damaged newer ones are reported and moved aside, because their steps are about to be computed again.

    Args:
      workdir: the run's folder, which must be the caller's alone: another's live checkpoints look like damaged ones.
      items: trees of ``jax.ShapeDtypeStruct`` with shardings: how to lay out what is read.
      check: asked of every checkpoint before its arrays are read.

    Raises:
      UserError: there are checkpoints, and none can be read; whatever ``check`` raises.
    """
    damaged: list[tuple[pathlib.Path, UserError]] = []
    for folder in steps(workdir / FOLDER):
        try:
            found = {"meta": read_item(folder, "meta")}
            check(found["meta"], folder)
            found |= {k: read_item(folder, k, v) for k, v in items.items()}
        except Unsuitable:
            raise
        except UserError as e:
            log.warning("%s Trying the checkpoint before it.", e)
            damaged.append((folder, e))
            continue
        for bad, _ in damaged if jax.process_index() == 0 else ():
            free = (bad.with_name(f"damaged-{bad.name}{f'-{i}' if i else ''}") for i in itertools.count())
            aside = bad.rename(next(path for path in free if not path.exists()))
            log.warning("The damaged checkpoint now lies in %s.", aside)
        return int(folder.name), found
    if damaged:
        raise UserError(f"{damaged[0][1]} No other checkpoint of the run can be read; start in a new workdir.")
    return None


def steps(folder: pathlib.Path) -> list[pathlib.Path]:
    """The complete checkpoints in ``folder``, newest first; unfinished ones have other names."""
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted((p for p in there if re.fullmatch(r"\d+", p.name)), key=lambda p: -int(p.name))


def _check_metrics(path: pathlib.Path) -> None:
    """Moves damaged metrics of a checkpoint aside: it is sound without, and only counts no more for the best."""
    try:
        jsonfile.read(path)
    except UserError as e:
        if path.is_file():
            log.warning("%s The checkpoint is not affected, but is no longer considered for the best.", e)
            path.rename(path.with_name("damaged"))


def kept(folder: pathlib.Path) -> str:
    """What is left of a run whose checkpoints lie in ``folder``, as the end of a sentence about what went wrong."""
    there = steps(folder)
    return f"the checkpoint of step {there[0].name} is intact" if there else "there is no checkpoint yet"


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
        reason = atomic.reason(error)
        raise UserError(f"cannot save to {self._folder}: {reason}; {kept(self._folder)}.") from error


def read_item(folder: pathlib.Path, name: str, like: Any = None) -> Any:
    """One item of one checkpoint folder.

    Args:
      folder: ``checkpoints/<step>``.
      name: ``"params"``, ``"ema"``, ``"opt_state"`` or ``"meta"``.
      like: tree of ``jax.ShapeDtypeStruct`` with shardings; by default the tree on disk, on the first device.

    Raises:
      UserError: it is missing or damaged.
    """
    try:
        return _read(folder.absolute() / name, like)
    except NewerSchema:
        raise
    except Exception as e:  # orbax and tensorstore raise a dozen unrelated types for damaged files
        reason = (str(e) or type(e).__name__).splitlines()[0][:160]
    _forget_failed_read()
    raise UserError(f"checkpoint {folder} cannot be read ({name}: {reason}).")


def _read(path: pathlib.Path, like: Any) -> Any:
    if path.name == "meta":
        if sum(file.stat().st_size for file in path.iterdir()) > MAX_META:
            raise ValueError(f"more than {MAX_META:,} bytes")
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            meta = record_of(reader.restore(path), {"schema": Annotated[int, Range(1, 2**31)] | None}, "meta")
        if (schema := meta.get("schema", 1)) > SCHEMA:
            raise NewerSchema(
                f"checkpoint {path.parent} is of schema {schema}, and this version of vit_jax reads up to {SCHEMA}; "
                "upgrade vit_jax."
            )
        if schema >= 3 and meta.pop("checksum", None) != _text_sum(meta):
            raise ValueError("its checksum is wrong")
        return record_of(meta, META, "meta")
    with ocp.StandardCheckpointer() as reader:
        there = reader.metadata(path).item_metadata.tree
        if like is None:
            first = NamedSharding(jax.sharding.Mesh(jax.local_devices()[:1], "x"), P())
            like = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=first), there)
        shapes = {k: tuple(m.shape) for k, m in flat(there).items()}
        for key, leaf in flat(like).items():
            if shapes.get(key) != leaf.shape:
                raise ValueError(f"{key} has the shape {shapes.get(key)} there, not {leaf.shape}")
        tree = reader.restore(path, like)
    about = read_item(path.parent, "meta")
    expected = about["checksums"][path.name]
    if damaged := [key for key, value in checksums(tree, about.get("schema", 1)).items() if expected[key] != value]:
        raise ValueError(f"the checksum of {damaged[0]} is wrong")
    return tree


@functools.cache
def _hush() -> None:
    """Keeps off the terminal, once for the process, what the storage prints of writes that it gave up.

    It abandons an event loop when a write fails, and each of the others, as it ends, finds that the loop is closed; and
    asyncio logs the errors that nobody fetched. The first error is raised, and is all that matters.
    """
    shown = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
            shown(unraisable)

    def heard(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if "exception was never retrieved" not in record.getMessage() or not isinstance(error, Exception):
            return True
        files = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
        return not (atomic.is_full(error) or any(re.search(r"\b(orbax|tensorstore)\b", file) for file in files))

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(heard)


def _forget_failed_read() -> None:
    """Collects the coroutines that orbax abandons when a read fails: later they would litter the terminal."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        gc.collect(1)  # they are young; all objects of a large program would take seconds
    finally:
        sys.unraisablehook = hook


def find(path: str | pathlib.Path) -> list[pathlib.Path]:
    """Checkpoint folders under ``path`` (a workdir, its ``checkpoints`` or one step's folder), newest first.

    Raises:
      UserError: there are none.
    """
    root = pathlib.Path(path)
    if not root.is_dir():
        raise UserError(f"no checkpoint at {str(path)!r}: no such folder; give a workdir or WORKDIR/checkpoints/STEP.")
    if (root / "params").is_dir():
        return [root]
    found = steps(root / FOLDER if (root / FOLDER).is_dir() else root)
    if not found:
        raise UserError(f"no checkpoint in {str(path)!r}; train there first, or give WORKDIR/checkpoints/STEP.")
    return found


def best(path: str | pathlib.Path) -> pathlib.Path:
    """The folder of a run's best checkpoint, by the metric that its configuration names as ``best``; of equals the
    newest.

    Args:
      path: a workdir or its ``checkpoints``.

    Raises:
      UserError: there is no checkpoint, or none that carries that metric.
    """
    there = find(path)
    metric = str((read_item(there[0], "meta").get("config") or {}).get("best", BEST))
    found = {folder: metrics_of(folder).get(metric) for folder in there}
    values = {k: v for k, v in found.items() if isinstance(v, int | float) and math.isfinite(v)}
    if not values:
        raise UserError(
            f"no checkpoint in {str(path)!r} was evaluated by {metric!r}, so none of them is known as the best; leave "
            "--best out for the newest."
        )
    return max(values, key=lambda folder: sign(metric) * values[folder])


def metrics_of(folder: pathlib.Path) -> Mapping[str, Any]:
    """What a checkpoint was evaluated with; {} where it was not, or where that is damaged."""
    try:
        found = jsonfile.read(folder / "metrics" / "metrics")
    except UserError:
        return {}
    return found if isinstance(found, Mapping) else {}


def load_params(path: str | pathlib.Path, like: Any = None) -> tuple[Any, dict[str, Any], pathlib.Path]:
    """Parameters to evaluate with (the moving average where there is one), ``meta`` and the folder they came from.

    A damaged newest checkpoint is reported and the one before it taken.

    Raises:
      UserError: none can be read.
    """
    problem: UserError | None = None
    waiting = find(path)
    newest = waiting[0]
    while waiting:
        folder = waiting.pop(0)
        try:
            meta = read_item(folder, "meta")
            name = "ema" if "ema" in meta["checksums"] else "params"  # not what is there: a lost one is damage
            return read_item(folder, name, like), meta, folder
        except NewerSchema:
            raise
        except UserError as e:
            if (now := find(path))[0] != newest:  # a run goes on there, and has replaced what was listed
                waiting, newest = now, now[0]
                continue
            log.warning("%s Trying the checkpoint before it.", e)
            problem = problem or e
    assert problem is not None
    raise problem
