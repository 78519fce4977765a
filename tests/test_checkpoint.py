"""Checkpoints: what comes back is what went in, and damage is noticed, named and survived."""

import errno
import gc
import json
import logging
import os
import pathlib
import pickle
import resource
import shutil
import sys
import types

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax import checkpoint
from vit_jax.checkpoint import SCHEMA, Checkpoints, load_params, read_item, restore
from vit_jax.sharding import MeshConfig, make_mesh
from vit_jax.types import UserError

META = {"config": {"seed": 1, "names": ["ä", None]}, "class_names": ["a", "b"], "provenance": {}}


def tree(seed=0):
    """Every type a state holds: float32, bfloat16, bool, integers, scalars, odd shapes."""
    r = np.random.default_rng(seed)
    host = {
        "block_0": {"kernel": r.normal(size=(16, 8)).astype(np.float32), "bias": np.zeros(8, np.float32)},
        "head": {"mu": r.normal(size=(7, 3)).astype(ml_dtypes.bfloat16), "finite": r.random(5) > 0.5},
        "count": np.int32(seed),
        "norm": np.float32(0.1),
    }
    return jax.tree.map(jnp.asarray, host)


def items(step):
    return {"params": tree(step), "opt_state": {"mu/0": tree(step + 100)["head"]["mu"]}}


def like(values, sharding=None):
    one = sharding or NamedSharding(jax.sharding.Mesh(jax.devices()[:1], "x"), P())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), values)


def restored(workdir, step):
    """What :func:`restore` finds, as (step, items), laid out like those of ``step``."""
    found, values = restore(workdir, like(items(step)))
    return found, {k: v for k, v in values.items() if k != "meta"}


def save(workdir, metrics, **options):
    """One checkpoint for each (step, metrics)."""
    checkpoints = Checkpoints(workdir, **options)
    for step, values in metrics.items():
        checkpoints.save(step, items(step), META, values)
    checkpoints.close()


def names(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints 4 and 8; copy it before breaking it."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    save(folder, {4: {}, 8: {}})
    return folder


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def test_round_trip(run):
    step, found = restored(run, 8)
    assert step == 8
    chex.assert_trees_all_equal(found, items(8))
    chex.assert_trees_all_equal_dtypes(found, items(8))
    meta = restore(run, like(items(8)))[1]["meta"]
    assert meta == read_item(run / "checkpoints" / "8", "meta")
    assert {k: v for k, v in meta.items() if k != "checksums"} == {"schema": SCHEMA, **META}


def test_without_a_description_the_tree_on_disk_is_read(run):
    params, meta, folder = load_params(run)
    chex.assert_trees_all_equal(params, items(8)["params"])
    assert meta["class_names"] == ["a", "b"] and folder == run / "checkpoints" / "8"
    for path in (run / "checkpoints", folder, str(folder)):
        assert load_params(path)[2] == folder
    assert load_params(run / "checkpoints" / "4")[0]["count"] == 4


def test_the_average_is_what_is_evaluated(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"params": tree(1), "ema": tree(2)}, META, {})
    checkpoints.close()
    params, _, folder = load_params(tmp_path)
    chex.assert_trees_all_equal(params, tree(2))
    shutil.rmtree(folder / "ema")  # lost: the parameters are no substitute
    with pytest.raises(UserError, match=r"cannot be read \(ema: "):
        load_params(tmp_path)


@pytest.mark.parametrize(
    ("best", "values", "kept"),
    [
        ("val/accuracy", [0.1, 0.9, 0.3, None, 0.5, 0.4], [2, 5, 6]),
        ("val/loss", [0.1, 0.9, 0.3, None, 0.5, 0.4], [1, 5, 6]),
        ("val/ece", [0.4, 0.1, 0.3, None, 0.5, 0.4], [2, 5, 6]),
        ("val/accuracy", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [5, 6]),
        ("val/loss", [0.5, 0.1, float("nan"), None, 0.3, 0.4], [2, 5, 6]),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, best, values, kept):
    save(tmp_path, {i: {} if v is None else {best: v} for i, v in enumerate(values, 1)}, keep=2, best=best)
    assert names(tmp_path) == kept
    save(tmp_path, {7: {best: 0.45}}, keep=1, best=best)  # another process goes on and remembers which was best
    assert names(tmp_path) == sorted({kept[0] if len(kept) == 3 else 6, 7})
    save(tmp_path, {8: {"val/other": 0.1}}, keep=1, best="val/other")  # and may from now on judge by another metric
    assert names(tmp_path) == [8]


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(folder):
    """One bit of one stored array, in an uncompressed copy of it: the storage format itself sees nothing wrong."""
    path = folder / "params"
    with ocp.StandardCheckpointer() as c:
        values = c.restore(path)
        kernel = np.array(values["block_0"]["kernel"])
        kernel.view(np.uint32)[3, 5] ^= 1
        values["block_0"]["kernel"] = kernel
        c.save(path, values, force=True)


def flip_on_disk(folder):
    file = largest(folder / "params")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


def truncate(folder):
    file = largest(folder / "params")
    os.truncate(file, file.stat().st_size // 2)


def empty_meta(folder):
    file = largest(folder / "meta")
    os.truncate(file, 0)


def edit_meta(old, new):
    def damage(folder):
        file = folder / "meta" / "metadata"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return damage


def pickled(folder):
    """A file that would run code if anything unpickled it."""
    shutil.rmtree(folder / "params")
    (folder / "params").mkdir()
    for name in ("checkpoint", "_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"):
        (folder / "params" / name).write_bytes(pickle.dumps(Bomb(str(folder.parent.parent / "exploded"))))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


@pytest.mark.parametrize(
    "damage",
    [
        flip, flip_on_disk, truncate, empty_meta, pickled,
        edit_meta('"b"', '"c"'), edit_meta('"seed": 1', '"seed": 3'), edit_meta('"checksum"', '"checksun"'),
        edit_meta('"schema": 3', '"schema": 2'),
        *(lambda f, name=name: shutil.rmtree(f / name) for name in ("params", "opt_state", "meta")),
    ],
    ids=["flipped bit", "flipped byte", "truncated", "no checksums", "pickle", "class name", "setting", "no checksum",
         "schema", "no params", "no opt_state", "no meta"],
)  # fmt: skip
def test_damage_falls_back_and_says_so(run, damage, caplog):
    newest = run / "checkpoints" / "8"
    damage(newest)
    with caplog.at_level(logging.WARNING):
        step, found = restored(run, 8)
    assert step == 4
    chex.assert_trees_all_equal(found, items(4))
    text = caplog.text
    assert f"checkpoint {newest} cannot be read" in text and "Trying the checkpoint before it." in text
    assert "The damaged checkpoint now lies in" in text
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["4", "damaged-8"]
    assert not (run / "exploded").exists()

    save(run, {8: {}})  # the step is computed again, in the same folder; so is its damage
    assert restore(run, like(items(8)))[0] == 8
    truncate(newest)
    assert restore(run, like(items(8)))[0] == 4
    gc.collect()  # nothing is left behind that would complain later
    assert len(list((run / "checkpoints").glob("damaged-8*"))) == 2


def test_evaluation_falls_back_and_moves_nothing(run, caplog):
    truncate(run / "checkpoints" / "8")
    with caplog.at_level(logging.WARNING):
        params, _, folder = load_params(run)
    assert folder.name == "4" and "Trying the checkpoint before it." in caplog.text
    chex.assert_trees_all_equal(params, items(4)["params"])
    assert names(run) == [4, 8]


def test_a_run_that_goes_on_meanwhile_is_not_damaged(run, caplog, monkeypatch):
    """Between listing and reading a checkpoint the run has replaced it: the new one is read, without a word."""
    read = checkpoint.read_item

    def replaced(folder, *args):
        if folder.name == "8" and folder.exists():
            save(run, {12: {}, 16: {}})
        return read(folder, *args)

    monkeypatch.setattr(checkpoint, "read_item", replaced)
    with caplog.at_level(logging.WARNING):
        params, _, folder = load_params(run)
    assert folder.name == "16" and not caplog.text
    chex.assert_trees_all_equal(params, items(16)["params"])


def test_a_check_ends_the_search_and_moves_nothing(run):
    """A sound checkpoint that is not to be taken is no damage, nor is one before it to be taken."""
    truncate(run / "checkpoints" / "8")

    def check(meta, folder):
        raise checkpoint.Unsuitable(f"{folder.name} {meta['class_names']}")

    with pytest.raises(checkpoint.Unsuitable, match=r"8 \['a', 'b'\]"):
        restore(run, like(items(8)), check)
    assert names(run) == [4, 8]


def test_a_folder_that_is_gone_is_said(run):
    """Deleted or moved while the run goes on: it is not made anew, to hold one checkpoint and nothing else."""
    with (
        pytest.raises(UserError, match=r"cannot save to .*: the folder was deleted or moved.*; there is no checkpoint"),
        Checkpoints(run) as checkpoints,
    ):
        shutil.rmtree(run)
        checkpoints.save(12, items(12), META, {})
    assert not run.exists()


def test_closing_leaves_an_error_under_way(run, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", full)
    with pytest.raises(UserError, match="the disk is full"), Checkpoints(run):
        pass
    with pytest.raises(ZeroDivisionError), Checkpoints(run):
        raise ZeroDivisionError


def test_all_damaged(run):
    for step in ("4", "8"):
        truncate(run / "checkpoints" / step)
    with pytest.raises(
        UserError, match=r"checkpoint .*/8 cannot be read .* No other checkpoint of the run can be read"
    ):
        restore(run, like(items(8)))
    with pytest.raises(UserError, match=r"checkpoint .*/8 cannot be read"):
        load_params(run)
    assert names(run) == [4, 8]  # nothing was moved


def test_an_unfinished_save_is_no_checkpoint(run):
    folder = run / "checkpoints"
    shutil.copytree(folder / "8", folder / "12.orbax-checkpoint-tmp-3")
    shutil.rmtree(folder / "12.orbax-checkpoint-tmp-3" / "meta")
    assert [p.name for p in checkpoint.find(run)] == ["8", "4"]
    assert restore(run, like(items(8)))[0] == 8
    save(run, {12: {}})
    assert [p.name for p in folder.iterdir() if "tmp" in p.name] == []
    assert restore(run, like(items(12)))[0] == 12


def test_a_failing_disk_is_a_sentence(run):
    """A real failure, while arrays are written in the background: files may not grow beyond 1 MiB."""
    checkpoints = Checkpoints(run)
    noise = jnp.asarray(np.random.default_rng(0).normal(size=2**20).astype(np.float32))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, old[1]))
    try:
        with pytest.raises(
            UserError, match=r"cannot save to .*: the disk is full; .*; the checkpoint of step 8 is intact\.$"
        ):
            checkpoints.save(12, {"params": {"noise": noise}}, META, {})
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    checkpoints.close()
    assert restore(run, like(items(8)))[0] == 8
    save(run, {12: {}})  # once there is space, the step is saved
    assert restore(run, like(items(8)))[0] == 12


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        ValueError("RESOURCE_EXHAUSTED: Error writing 'a'"),  # as tensorstore says it
    ],
)
def test_a_full_disk_is_named(tmp_path, monkeypatch, error):
    def full(*_, **__):
        raise error

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(UserError) as e:
        checkpoints.save(12, {}, META, {})
    checkpoints.close()
    assert str(e.value) == (
        f"cannot save to {tmp_path / 'checkpoints'}: the disk is full; free some space and run the same command again; "
        "there is no checkpoint yet."
    )


def test_another_mesh_reads_the_same_bits(run):
    """One device wrote; 2 x 2 x 2 read, each its part."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    wanted = like(items(8), NamedSharding(mesh, P()))
    kernel = NamedSharding(mesh, P("fsdp", "tensor"))
    wanted["params"]["block_0"]["kernel"] = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=kernel)
    found = restore(run, wanted)[1]
    del found["meta"]
    assert found["params"]["block_0"]["kernel"].sharding == kernel
    chex.assert_trees_all_equal(jax.device_get(found), jax.device_get(items(8)))


@pytest.mark.parametrize("small", [0, 2**20], ids=["on the devices", "on the host"])
def test_checksums_do_not_depend_on_the_layout_and_see_every_bit(rng, monkeypatch, small):
    monkeypatch.setattr(checkpoint, "SMALL", small)
    x = rng.normal(size=(16, 8)).astype(np.float32)
    mesh = make_mesh(MeshConfig(2, 2, 2))
    spread = jax.device_put(x, NamedSharding(mesh, P("fsdp", "tensor")))
    sums = checkpoint.checksums({"a": jnp.asarray(x)})
    assert sums == checkpoint.checksums({"a": spread}) == {"a": mixed_sum(x.view(np.uint32))}
    for bit in (0, 17, 31):
        y = x.copy()
        y.view(np.uint32)[3, 3] ^= 1 << bit
        assert checkpoint.checksums({"a": jnp.asarray(y)}) != sums
    for dtype in ("bool", "bfloat16", "uint8"):
        leaf = jnp.asarray(x > 0).astype(dtype)
        words = (x > 0).astype(np.uint32) * (0x3F80 if dtype == "bfloat16" else 1)
        assert checkpoint.checksums({"a": leaf}) == {"a": mixed_sum(words)}
    old = int(x.view(np.uint32).astype(np.uint64).sum() % 2**32)  # what checkpoints before schema 3 hold
    assert checkpoint.checksums({"a": spread}, 2) == checkpoint.checksums({"a": x}, 1) == {"a": old}


@pytest.mark.parametrize("small", [0, 2**20], ids=["on the devices", "on the host"])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[::-1],  # rows
        lambda x: x.T.reshape(x.shape),
        lambda x: np.roll(x, 1),
        lambda x: np.where(np.arange(x.size).reshape(x.shape) // 2 == 9, -x, x),  # of a pair x, -x
    ],
    ids=["reversed", "transposed", "moved by one", "two signs"],
)
def test_checksums_see_the_order(rng, monkeypatch, small, change):
    monkeypatch.setattr(checkpoint, "SMALL", small)
    x = rng.normal(size=(8, 8)).astype(np.float32)
    x.flat[19] = -x.flat[18]
    y = np.ascontiguousarray(change(x))
    assert sorted(x.flat) == sorted(y.flat)  # the same words, elsewhere
    assert checkpoint.checksums({"a": jnp.asarray(x)}) != checkpoint.checksums({"a": jnp.asarray(y)})


def mixed_sum(words):
    """The same number in Python's integers."""
    total = 0
    for place, x in enumerate(words.ravel().tolist()):
        x ^= place * 0x9E3779B1 % 2**32
        x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
        x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
        total += x ^ x >> 16
    return total % 2**32


def test_another_model_is_an_error(run):
    wrong = like(items(8))
    wrong["params"]["block_0"]["kernel"] = like({"x": jnp.zeros((16, 9))})["x"]
    with pytest.raises(UserError, match=r"\(params: block_0/kernel has the shape \(16, 8\) there, not \(16, 9\)\)"):
        restore(run, wrong)
    more = like(items(8)) | {"params": {"block_1": like(tree())["norm"]}}
    with pytest.raises(UserError, match=r"\(params: block_1 has the shape None there, not \(\)\)"):
        restore(run, more)


def test_nothing_is_unpickled(run, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    assert restore(run, like(items(8)))[0] == 8
    assert load_params(run)[1]["class_names"] == ["a", "b"]


def test_a_place_that_cannot_hold_checkpoints(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match=r"cannot save to .*/checkpoints: "):
        save(tmp_path, {1: {}})


def test_nothing_there(tmp_path):
    assert restore(tmp_path, like(items(8))) is None
    with pytest.raises(UserError, match=f"no checkpoint in '{tmp_path}'; train there first"):
        checkpoint.find(tmp_path)
    with pytest.raises(UserError, match="no such folder; give a workdir or WORKDIR/checkpoints/STEP"):
        checkpoint.find(tmp_path / "no")


@pytest.mark.parametrize("text", ["", "{{{", "[1]", '{"val/accuracy": "x"}', '{"val/accuracy": null}', "{}"])
def test_damaged_metrics_of_a_checkpoint_end_nothing(tmp_path, caplog, text):
    """Without them it is no longer the best; a word is said where they cannot be read."""
    save(tmp_path, {4: {"val/accuracy": 0.5}})
    (tmp_path / "checkpoints" / "4" / "metrics" / "metrics").write_text(text)
    with caplog.at_level(logging.WARNING):
        save(tmp_path, {step: {"val/accuracy": step / 100} for step in (5, 6, 7)})
    assert names(tmp_path) == [6, 7]
    assert ("no longer considered for the best" in caplog.text) == (text in ("", "{{{", "[1]"))
    assert load_params(tmp_path)[2].name == "7"


def test_what_the_storage_prints_of_a_failed_write_is_kept_off_and_nothing_else(tmp_path, monkeypatch, caplog):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: shown.append(args.exc_value))
    checkpoint._hush.__wrapped__()
    closed, other = RuntimeError("Event loop is closed"), RuntimeError("another")
    for error in (closed, other):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert shown == [other]
    logger, text = logging.getLogger("asyncio"), "Future exception was never retrieved"
    with caplog.at_level(logging.ERROR):
        logger.error(text, exc_info=OSError(errno.ENOSPC, "No space left on device"))
        assert not caplog.records
        logger.error(text, exc_info=OSError(errno.EIO, "of somebody else"))
        logger.error("Task was destroyed but it is pending!")
    assert len(caplog.records) == 2
    logger.removeFilter(logger.filters[-1])


def test_which_is_the_best(tmp_path):
    """By the metric of the configuration, of equals the newest; what has no number does not count."""
    rows = {
        1: {"val/loss": 0.5, "val/accuracy": 0.9},
        2: {"val/loss": 0.2},
        3: {"val/loss": 0.2},
        4: {"val/loss": None},
    }
    for step, metrics in rows.items():
        folder = tmp_path / "checkpoints" / str(step)
        (folder / "params").mkdir(parents=True)
        (folder / "metrics").mkdir()
        (folder / "metrics" / "metrics").write_text(json.dumps(metrics))

    def best(config):
        with pytest.MonkeyPatch.context() as m:
            m.setattr(checkpoint, "read_item", lambda *_: {"config": config})
            return checkpoint.best(tmp_path).name

    assert best({"best": "val/loss"}) == "3" and best({}) == best(None) == "1"
    with pytest.raises(UserError, match="was evaluated by 'val/top5', so none of them is known as the best"):
        best({"best": "val/top5"})
    with pytest.raises(UserError, match="no checkpoint at"):
        checkpoint.best(tmp_path / "nowhere")
