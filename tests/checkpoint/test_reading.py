"""What comes back is what went in, and damage is noticed, named and survived."""

import gc
import json
import logging
import os
import pathlib
import pickle
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.checkpoint.conftest import META, items, largest, like, names, restored, save, tree, truncate
from vit_jax import checkpoint
from vit_jax.checkpoint import SCHEMA, Checkpoints, load_params, read_item, reading, restore
from vit_jax.io import mirror, store
from vit_jax.sharding import MeshConfig, make_mesh
from vit_jax.types import UserError


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


def test_a_run_at_an_address(run, tmp_path, monkeypatch, caplog):
    """Of its newest checkpoint the parameters are fetched alone; one that is damaged there is moved aside there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    address = f"memory://{tmp_path.name}/run"
    for path in run.rglob("*"):
        if path.is_file():
            store.upload(path, f"{address}/{path.relative_to(run)}")
    params, _, folder = load_params(address)
    chex.assert_trees_all_equal(params, items(8)["params"])
    fetched = {path.relative_to(folder).parts[0] for path in folder.rglob("d/*")}
    assert mirror.shown(str(folder)) == f"{address}/checkpoints/8" and fetched == {"params"}
    assert load_params(f"{address}/checkpoints/4")[0]["count"] == 4
    files = (path for path in store.tree(address) if "8/params/" in path and "/d/" in path)
    broken = max(files, key=lambda path: store.info(f"{address}/{path}").size)
    store.write(f"{address}/{broken}", bytes(100))
    step, found = restored(mirror.local(address), 8)
    assert step == 4
    chex.assert_trees_all_equal(found, items(4))
    assert f"now lies in {address}/checkpoints/damaged-8" in caplog.text
    assert {path.split("/")[1] for path in store.tree(address) if "checkpoints" in path} == {"4", "damaged-8"}


def test_the_average_is_what_is_evaluated(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"params": tree(1), "ema": tree(2)}, META, {})
    checkpoints.close()
    params, _, folder = load_params(tmp_path)
    chex.assert_trees_all_equal(params, tree(2))
    shutil.rmtree(folder / "ema")  # lost: the parameters are no substitute
    with pytest.raises(UserError, match=r"cannot be read \(ema: "):
        load_params(tmp_path)


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


@pytest.mark.first(4)
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

    monkeypatch.setattr(reading, "read_item", replaced)
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


def test_another_model_is_an_error(run):
    wrong = like(items(8))
    wrong["params"]["block_0"]["kernel"] = like({"x": jnp.zeros((16, 9))})["x"]
    with pytest.raises(UserError, match=r"\(params: block_0/kernel has the shape \(16, 8\) there, not \(16, 9\)\)"):
        restore(run, wrong)
    more = like(items(8)) | {"params": {"block_1": like(tree())["norm"]}}
    with pytest.raises(UserError, match=r"\(params: block_1 is not there, which a model of this configuration has\)"):
        restore(run, more)


def test_nothing_is_unpickled(run, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    assert restore(run, like(items(8)))[0] == 8
    assert load_params(run)[1]["class_names"] == ["a", "b"]


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
            m.setattr(reading, "read_item", lambda *_: {"config": config})
            return checkpoint.best(tmp_path).name

    assert best({"best": "val/loss"}) == "3" and best({}) == best(None) == "1"
    with pytest.raises(UserError, match="was evaluated by 'val/top5', so none of them is known as the best"):
        best({"best": "val/top5"})
    with pytest.raises(UserError, match="no checkpoint at"):
        checkpoint.best(tmp_path / "nowhere")


def test_a_disk_that_fails_for_a_while_damages_nothing(run, fails, caplog):
    """It is read again, of one host; an error that stays names the checkpoint, and moves it aside as any other."""
    fails(ocp.StandardCheckpointer, "restore", 3)
    assert restored(run, 8)[0] == 8 and "damaged" not in caplog.text
    fails(ocp.StandardCheckpointer, "restore", 4)
    with pytest.raises(UserError, match=r"checkpoint .*/8 cannot be read \(params: .*Stale file handle"):
        read_item(run / "checkpoints" / "8", "params")
