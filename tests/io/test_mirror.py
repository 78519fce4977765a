import errno
import pathlib
import shutil
import uuid

import pytest

from vit_jax.io import mirror, store
from vit_jax.types import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(mirror, "_mirrors", {})


@pytest.fixture
def address():
    return f"memory://{uuid.uuid4().hex}/run"


def put(address, *paths):
    for path in paths:
        store.write(f"{address}/{path}", path.encode())


def step(number, *items):
    """Names of the files of a checkpoint, its arrays in ``items``."""
    arrays = (f"{item}/{name}" for item in items for name in ("manifest.ocdbt", "d/1"))
    return [f"checkpoints/{number}/{path}" for path in ("meta/metadata", *arrays, mirror.MARK)]


def here(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def write(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(path.encode())


def test_a_path_is_itself(tmp_path):
    assert mirror.local(tmp_path / "a") == tmp_path / "a" and mirror.local("b") == pathlib.Path("b")
    assert mirror.of(tmp_path) is None and mirror.shown(str(tmp_path)) == str(tmp_path)
    mirror.arrive(tmp_path)
    mirror.send(tmp_path)
    mirror.renew(tmp_path)
    uploads = mirror.Uploads(tmp_path)
    uploads.begin(1)
    uploads.wait()


def test_what_a_run_has_comes_its_arrays_once_they_are_read(address):
    put(address, "config.json", "lock", "tensorboard/events", *step(3, "params", "ema"), *step(7, "params")[:-1])
    folder = mirror.local(address)
    assert here(folder) == ["checkpoints/3/_CHECKPOINT_METADATA", "checkpoints/3/meta/metadata", "config.json"]
    assert (folder / "checkpoints/3/params").is_dir() and not (folder / "checkpoints/7").exists()
    assert mirror.shown(f"see {folder}/config.json") == f"see {address}/config.json"
    mirror.arrive(folder / "checkpoints/3/params")
    assert (folder / "checkpoints/3/params/d/1").read_bytes() == b"checkpoints/3/params/d/1"
    assert not here(folder / "checkpoints/3/ema")


@pytest.mark.parametrize("below", ["checkpoints", "checkpoints/3"])
def test_parts_of_a_run_have_addresses(address, below):
    put(address, "config.json", *step(3, "params"))
    folder = mirror.local(f"{address}/{below}/")
    assert (folder / "checkpoints/3".removeprefix(below).strip("/") / "meta/metadata").is_file()


def test_what_changed_there_is_fetched_again_and_what_went_goes(address, monkeypatch):
    put(address, "config.json", "results.json", *step(3, "params"), *step(5, "params"))
    folder = mirror.local(address)
    mirror.arrive(folder / "checkpoints/3/params")
    store.write(f"{address}/config.json", b"new")
    store.remove([f"{address}/{path}" for path in ("results.json", *step(5, "params"))])
    fetched, real = [], store.download
    monkeypatch.setattr(store, "download", lambda a, path: (fetched.append(a), real(a, path)))
    assert mirror.local(address) == folder
    assert fetched == [f"{address}/config.json"] and (folder / "config.json").read_bytes() == b"new"
    assert not (folder / "results.json").exists() and not (folder / "checkpoints/5").exists()
    mirror.arrive(folder / "checkpoints/3/params")
    assert len(fetched) == 1


def test_a_run_is_kept_there(address):
    put(address, "config.json", *step(3, "params"))
    folder = mirror.local(address, use="train-0", pull=False)
    with mirror.held(folder):
        assert store.exists(f"{address}/lock")
        with pytest.raises(UserError, match="in use by this process"), mirror.held(folder):
            pass
        uploads = mirror.Uploads(folder / "checkpoints")
        uploads.begin(6)
        write(folder, "metrics.jsonl", "tensorboard/events", "checkpoints/.unfinished-x/a")
        write(folder / "checkpoints/tmp", *(path.removeprefix("checkpoints/6/") for path in step(6, "params")))
        (folder / "checkpoints/tmp").rename(folder / "checkpoints/6")
        uploads.wait()
        assert store.read(f"{address}/metrics.jsonl") == b"metrics.jsonl"
        shutil.rmtree(folder / "checkpoints/3")
        write(folder / "checkpoints/9", *(path.removeprefix("checkpoints/9/") for path in step(9, "params")))
        uploads.begin(9)
        uploads.wait()
        write(folder, "results.json")
        uploads.close()
    there = set(store.tree(address))
    assert {
        "config.json",
        "metrics.jsonl",
        "results.json",
        "tensorboard/events",
        *step(6, "params"),
        *step(9, "params"),
    } == there
    assert not folder.exists()


def test_a_checkpoint_is_there_once_it_is_complete(address, monkeypatch):
    """Its mark is sent last; one that fails is told of, and what is there stays."""
    put(address, *step(3, "params"))
    folder = mirror.local(address, use="train-0", pull=False)
    sent, real = [], store.write

    def fail(a, data, **more):
        sent.append(a)
        if a.endswith("6/params/d/1"):
            raise OSError(errno.EIO, "Service Unavailable")
        real(a, data, **more)

    with mirror.held(folder):
        monkeypatch.setattr(store, "write", fail)
        uploads = mirror.Uploads(folder / "checkpoints")
        write(folder, *step(6, "params"))
        uploads.begin(6)
        with pytest.raises(UserError, match=rf"cannot save to {address}/checkpoints/6 \(Service Unavailable\)\."):
            uploads.wait()
        uploads.close()
    assert f"{address}/checkpoints/6/{mirror.MARK}" not in store.tree(address)
    assert mirror.local(address).joinpath("checkpoints/3").is_dir()
    assert not mirror.local(address).joinpath("checkpoints/6").exists()


def test_one_that_could_not_be_written_is_not_waited_for(address):
    folder = mirror.local(address, use="train-0", pull=False)
    with mirror.held(folder):
        uploads = mirror.Uploads(folder / "checkpoints")
        uploads.begin(6)
        uploads.wait()
        uploads.close()
    assert list(store.tree(address)) == []


def test_who_lost_the_place_writes_no_more(address):
    folder = mirror.local(address, use="train-0", pull=False)
    with pytest.raises(UserError, match="was taken by"), mirror.held(folder):
        store.write(f"{address}/lock", b'{"token": "other", "host": "elsewhere"}')
        write(folder, "results.json")
    assert list(store.tree(address)) == ["lock"]


def test_a_checkpoint_that_is_moved_is_moved_there(address):
    put(address, *step(3, "params"))
    folder = mirror.local(address)
    new = (folder / "checkpoints/3").rename(folder / "checkpoints/damaged-3")
    mirror.moved(folder / "checkpoints/3", new)
    assert set(store.tree(address)) == {path.replace("/3/", "/damaged-3/") for path in step(3, "params")}


def test_pictures_of_an_evaluation_are_sent(address):
    put(address, "config.json")
    folder = mirror.local(address)
    write(folder, "evaluation/results.json", "other/x")
    mirror.send(folder / "evaluation")
    assert set(store.tree(address)) == {"config.json", "evaluation/results.json"}


@pytest.mark.parametrize(
    ("place", "words"), [("s3://me:secret@b/run", "may give access"), ("foo://b/run", "no kind of address")]
)
def test_addresses_that_are_none(place, words):
    with pytest.raises(UserError, match=words) as e:
        mirror.local(place)
    assert "secret" not in str(e.value)


def test_names_that_lead_out_are_refused(address, tmp_path, monkeypatch):
    put(address, *step(3, "params"))
    own = store.file_system(f"{address}/checkpoints")[1]
    monkeypatch.setattr(store, "_found", lambda _: {f"{own}/3/../../../x": {"type": "file", "size": 1}})
    with pytest.raises(UserError, match="no path below it"):
        mirror.local(address)
