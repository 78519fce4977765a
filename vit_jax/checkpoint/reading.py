"""Reading checkpoints: damage is noticed and named, and the checkpoint before it taken."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax import hosts
from vit_jax.checkpoint import noise, schema
from vit_jax.checkpoint.places import BEST, FOLDER, find, sign, steps
from vit_jax.checkpoint.schema import MAX_META, META, NewerSchema, Unsuitable
from vit_jax.checkpoint.sums import checksums, text_sum
from vit_jax.checks import Range
from vit_jax.config import record_of
from vit_jax.io import atomic, files, jsonfile, mirror
from vit_jax.trees import flat
from vit_jax.types import UserError

log = logging.getLogger(__name__)


Check = Callable[[Mapping[str, Any], pathlib.Path], None]
"""``check(meta, folder)`` raises :class:`Unsuitable` where a run is not to go on from a checkpoint, sound as it is."""


def restore(
    workdir: pathlib.Path, items: Mapping[str, Any], check: Check = lambda *_: None
) -> tuple[int, dict[str, Any]] | None:
    """The newest readable checkpoint of a run, as (step, items and ``meta``); None if there is none at all.

    Damaged newer ones are reported and moved aside, because their steps are about to be computed again. All hosts take
    the same one.

    Args:
      workdir: the run's folder, which must be the caller's alone: another's live checkpoints look like damaged ones.
      items: trees of ``jax.ShapeDtypeStruct`` with shardings: how to lay out what is read.
      check: asked of every checkpoint before its arrays are read.

    Raises:
      UserError: there are checkpoints, and none can be read, or only some of the hosts can read one; whatever ``check``
        raises.
    """
    damaged: list[tuple[pathlib.Path, UserError]] = []
    listed = jsonfile.loads(hosts.share("the checkpoints", json.dumps([p.name for p in steps(workdir / FOLDER)]))[0])
    for folder in (workdir / FOLDER / name for name in listed):
        problem = None
        try:
            found = {"meta": read_item(folder, "meta")}
            check(found["meta"], folder)
            found |= {k: read_item(folder, k, v) for k, v in items.items()}
        except Unsuitable:
            raise
        except UserError as e:
            problem = e
        _check_alike(folder, problem)
        if problem is not None:
            log.warning("%s Trying the checkpoint before it.", problem)
            damaged.append((folder, problem))
            continue
        for bad, _ in damaged if hosts.first() else ():
            free = (bad.with_name(f"damaged-{bad.name}{f'-{i}' if i else ''}") for i in itertools.count())
            aside = bad.rename(next(path for path in free if not path.exists()))
            mirror.moved(bad, aside)
            log.warning("The damaged checkpoint now lies in %s.", mirror.shown(str(aside)))
        hosts.barrier("the damaged checkpoints")  # nobody lists them before they are moved
        return int(folder.name), found
    if damaged:
        raise UserError(f"{damaged[0][1]} No other checkpoint of the run can be read; start in a new workdir.")
    return None


def _check_alike(folder: pathlib.Path, problem: UserError | None) -> None:
    """Raises :class:`UserError` where some hosts could read a checkpoint and others not: damage is the same for all."""
    found = hosts.share(f"checkpoint {folder.name}", str(problem or ""))
    failed = [host for host, text in enumerate(found) if text]
    if 0 < len(failed) < len(found):
        raise UserError(f"{hosts.name(failed[0])} cannot read what others can: {found[failed[0]]}")


def read_item(folder: pathlib.Path, name: str, like: Any = None) -> Any:
    """One item of one checkpoint folder.

    Args:
      folder: ``checkpoints/<step>``.
      name: ``"params"``, ``"ema"``, ``"opt_state"`` or ``"meta"``.
      like: tree of ``jax.ShapeDtypeStruct`` with shardings; by default the tree on disk, on the first device.

    Raises:
      UserError: it is missing or damaged.
    """
    noise.hush()
    path = folder.absolute() / name
    try:
        with contextlib.suppress(FileNotFoundError):  # which is damage
            mirror.arrive(path)
    except OSError as e:
        where = mirror.shown(str(folder))
        raise Unsuitable(f"checkpoint {where} cannot be fetched ({atomic.reason(e)}); it may be sound.") from e
    alone = name == "meta" or hosts.count() == 1  # of arrays, all hosts read their parts together
    try:
        return files.tried(path, lambda: _read(path, like)) if alone else _read(path, like)
    except NewerSchema:
        raise
    except Exception as e:  # orbax and tensorstore raise a dozen unrelated types for damaged files
        reason = (str(e) or type(e).__name__).splitlines()[0][:160]
    noise.forget_failed_read()
    raise UserError(f"checkpoint {mirror.shown(str(folder))} cannot be read ({name}: {reason}).")


def _read(path: pathlib.Path, like: Any) -> Any:
    if path.name == "meta":
        if sum(file.stat().st_size for file in path.iterdir()) > MAX_META:
            raise ValueError(f"more than {MAX_META:,} bytes")
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            meta = record_of(reader.restore(path), {"schema": Annotated[int, Range(1, 2**31)] | None}, "meta")
        if (found := meta.get("schema", 1)) > schema.SCHEMA:
            raise NewerSchema(
                f"checkpoint {path.parent} is of schema {found}, and this version of vit_jax reads up to "
                f"{schema.SCHEMA}; upgrade vit_jax."
            )
        if found >= 3 and meta.pop("checksum", None) != text_sum(meta):
            raise ValueError("its checksum is wrong")
        return record_of(meta, META, "meta")
    with ocp.StandardCheckpointer() as reader:
        there = reader.metadata(path).item_metadata.tree
        if like is None:
            first = NamedSharding(jax.sharding.Mesh(jax.local_devices()[:1], "x"), P())
            like = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=first), there)
        shapes = {k: tuple(m.shape) for k, m in flat(there).items()}
        for key, leaf in flat(like).items():
            if key not in shapes:
                raise ValueError(f"{key} is not there, which a model of this configuration has")
            if shapes[key] != leaf.shape:
                raise ValueError(f"{key} has the shape {shapes[key]} there, not {leaf.shape}")
        tree = reader.restore(path, like)
    about = read_item(path.parent, "meta")
    expected = about["checksums"][path.name]
    if damaged := [key for key, value in checksums(tree, about.get("schema", 1)).items() if expected[key] != value]:
        raise ValueError(f"the checksum of {damaged[0]} is wrong")
    return tree


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
        except Unsuitable:
            raise
        except UserError as e:
            if (now := find(path))[0] != newest:  # a run goes on there, and has replaced what was listed
                waiting, newest = now, now[0]
                continue
            log.warning("%s Trying the checkpoint before it.", e)
            problem = problem or e
    assert problem is not None
    raise problem


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
