import errno
import functools
import uuid

import pytest

from tests import stores
from vit_jax.io import files, retry, store, text
from vit_jax.types import UserError

SERVERS = {"gs": stores.gcs, "s3": stores.s3}


@pytest.fixture(params=["memory", "file", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SERVERS)])
def place(request, tmp_path, monkeypatch):
    """An empty folder at an address; at a server every fourth request fails."""
    if request.param == "memory":
        yield f"memory://{uuid.uuid4().hex}"
    elif request.param == "file":
        yield f"file://{tmp_path}/store"
    else:
        with SERVERS[request.param]("bucket") as (proxy, variables):
            for name, value in variables.items():
                monkeypatch.setenv(name, value)
            monkeypatch.setattr(store, "_file_system", functools.lru_cache(store._file_system.__wrapped__))
            proxy.fail = 4
            yield f"{request.param}://bucket/{uuid.uuid4().hex}"


@pytest.fixture
def faulty(monkeypatch):
    """The file system of memory://, whose calls by name fail as many times as one says."""
    monkeypatch.setattr(retry, "WAITS", (0.0,) * 3)
    monkeypatch.setattr(retry, "_counts", type(retry._counts)())
    system, _ = store.file_system("memory://x")

    def fail(name, times, error):
        real, left = getattr(system, name), [times]

        def call(*args, **more):
            if left[0]:
                left[0] -= 1
                raise error
            return real(*args, **more)

        monkeypatch.setattr(system, name, call)

    return fail


def test_writing_reading_listing_and_removing(place, tmp_path):
    store.write(f"{place}/a/one.txt", b"1")
    (tmp_path / "two").write_bytes(b"0123456789")
    store.upload(tmp_path / "two", f"{place}/a/b/two")
    assert store.read(f"{place}/a/one.txt") == b"1"
    assert store.ranges(f"{place}/a/b/two", [(2, 3), (8, 5), (0, 0)]) == [b"234", b"89", b""]
    assert {e.name: (e.size, e.folder) for e in store.entries(f"{place}/a")} == {"one.txt": (1, False), "b": (0, True)}
    assert {path: e.size for path, e in store.tree(place).items()} == {"a/one.txt": 1, "a/b/two": 10}
    assert store.tree(f"{place}/nothing") == {}
    assert store.glob(f"{place}/a/*.txt") == [f"{place}/a/one.txt"]
    assert [store.is_dir(f"{place}/{name}") for name in ("a", "a/one.txt", "z")] == [True, False, False]
    assert [store.exists(f"{place}/{name}") for name in ("a", "a/one.txt", "z")] == [True, True, False]
    store.download(f"{place}/a/b/two", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"0123456789"
    store.remove([f"{place}/a/one.txt", f"{place}/a/none"])
    assert list(store.tree(place)) == ["a/b/two"]


def test_what_is_written_anew_is_of_another_version(place):
    store.write(f"{place}/x", b"1")
    first, listed = store.info(f"{place}/x").version, store.tree(place)["x"].version
    assert store.info(f"{place}/x").version == first and store.tree(place)["x"].version == listed
    store.write(f"{place}/x", b"2")
    assert first and store.info(f"{place}/x").version != first
    assert listed and store.tree(place)["x"].version != listed


def test_a_file_is_made_once(place):
    store.write(f"{place}/lock", b"mine", new=True)
    with pytest.raises(FileExistsError):
        store.write(f"{place}/lock", b"yours", new=True)
    assert store.read(f"{place}/lock") == b"mine"


def test_one_listing_serves_all_folders(place, monkeypatch):
    for name in ("a/x", "a/y", "b/c/z"):
        store.write(f"{place}/{name}", b"")
    with store.listed(place):
        monkeypatch.setattr(store, "_asked", None)
        found = {
            folder: sorted(e.name for e in store.entries(f"{place}{folder}")) for folder in ("", "/a", "/b", "/b/c")
        }
    assert found == {"": ["a", "b"], "/a": ["x", "y"], "/b": ["c"], "/b/c": ["z"]}


def test_reading_piece_by_piece(place):
    data = bytes(range(256)) * 400
    store.write(f"{place}/x", data)
    for block in (0, 1000, store.BLOCK):
        with store.open_read(f"{place}/x", block) as file:
            assert file.read(10) == data[:10]
            file.seek(50_000)
            assert file.read(20_000) == data[50_000:70_000] and file.tell() == 70_000
            file.seek(-5, 2)
            assert file.read(100) == data[-5:]


def test_files_are_read_by_the_same_functions(place):
    store.write(f"{place}/t.csv", "a,é\nb\n".encode())
    assert list(text.stream(f"{place}/t.csv")) == ["a,é\n", "b\n"]
    assert text.read(f"{place}/t.csv") == "a,é\nb\n"
    assert files.ranges(f"{place}/t.csv", [(0, 1)]) == [b"a"]
    with pytest.raises(OSError, match="more than 3 bytes"):
        files.read(f"{place}/t.csv", 3)
    with pytest.raises(UserError, match=r"nothing cannot be read \(it does not exist\)\."):
        text.read(f"{place}/nothing")
    assert files.is_dir(place) and files.is_file(f"{place}/t.csv") and not files.is_file(place)


def test_errors_that_pass_are_tried_again(faulty):
    store.write("memory://x/a", b"1")
    faulty("cat_file", 2, OSError(errno.EIO, "Input/output error"))
    assert store.read("memory://x/a") == b"1"
    assert retry.counts() == {"memory://x": 2}


def test_a_folder_that_cannot_be_listed_is_not_passed_over(faulty):
    """fsspec leaves such folders out."""
    for name in ("a/x", "b/y"):
        store.write(f"memory://listed/{name}", b"1")
    for call in (lambda: store.tree("memory://listed"), lambda: store.glob("memory://listed/*/*")):
        faulty("ls", 99, OSError(errno.EIO, "Input/output error"))
        with pytest.raises(OSError, match="Input/output error"):
            call()


class Refused(Exception):
    code = 403


class NoCredentialsError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (FileNotFoundError("The specified bucket does not exist"), FileNotFoundError, "no such bucket"),
        (FileNotFoundError("x/a"), FileNotFoundError, "it does not exist"),
        (Refused("not for you"), PermissionError, "access is refused"),
        (OSError("Forbidden: https://host/o"), PermissionError, "access is refused"),
        (NoCredentialsError("Unable to locate credentials"), PermissionError, "no credentials"),
        (ConnectionResetError("by s3://me:secret@x"), OSError, "check the address and the network"),
        (RuntimeError("odd\nlines"), OSError, "odd"),
    ],
    ids=str,
)
def test_errors_that_stay_say_why(faulty, error, kind, words):
    store.write("memory://x/a", b"1")
    faulty("cat_file", 99, error)
    with pytest.raises(kind) as e:
        store.read("memory://x/a")
    assert words in e.value.strerror and "secret" not in str(e.value) and "\n" not in e.value.strerror
    assert e.value.filename == "memory://x/a"


def test_addresses():
    assert store.is_address("gs://b/x") and store.is_address("memory://x")
    assert not any(map(store.is_address, ("/a", "a", "folder:/a", "./gs://b", "C:/a")))
    assert list(store.parents("gs://b/a/c")) == ["gs://b/a", "gs://b"]
    assert store.public("https://me:secret@host/vit.npz?token=x") == "https://host/vit.npz"
    store.check("tar:gs://b/{0..3}.tar")
    store.check("csv:gs://b/x.csv?label=y", query=True)
    for address in ("s3://me:secret@b/x", "gs://b/x?token=1"):
        with pytest.raises(UserError, match="may give access") as e:
            store.check(f"folder:{address}")
        assert "secret" not in str(e.value) and "token" not in str(e.value)


def test_what_lies_beside_a_file():
    assert store.beside("gs://b/a/t.csv", "x/1.jpg") == "gs://b/a/x/1.jpg"
    assert store.beside("gs://b/a/t.csv", "../x/./1.jpg") == "gs://b/x/1.jpg"
    for path in ("../../x", "../../b/../c", "/etc/passwd", "~/x"):
        with pytest.raises(UserError, match="is not below gs://b"):
            store.beside("gs://b/a/t.csv", path)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a//x", "a\\x", "./x"])
def test_names_that_lead_out_of_a_folder_are_refused(name, monkeypatch):
    monkeypatch.setattr(store, "_found", lambda _: {f"/x/{name}": {"type": "file", "size": 1}})
    with pytest.raises(UserError, match="no path below it"):
        store.tree("memory://x")


@pytest.mark.parametrize(
    ("address", "words"),
    [("foo://x/a", "no kind of address"), ("http://example.com/a", "not encrypted"), ("adl://x/a", "extra 'remote'")],
)
def test_what_cannot_be_reached_is_a_sentence(address, words):
    with pytest.raises(UserError, match=words):
        store.read(address)


def test_nothing_unfinished_stays(tmp_path, monkeypatch):
    system, _ = store.file_system("file:///x")
    monkeypatch.setattr(
        system, "mv", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space left"):
        store.write(f"file://{tmp_path}/a/x", b"1")
    assert list((tmp_path / "a").iterdir()) == []
