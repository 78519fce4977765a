"""Where weights are fetched from: paths, and addresses behind fsspec (the hub has its own test)."""

import functools
import hashlib
import http.server
import threading

import pytest

from vit_jax.io import hub
from vit_jax.io.remote import downloads, fetch
from vit_jax.types import UserError

URL = "https://host/some/vit.npz?download=true"


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """Files by address, in place of the internet."""
    import fsspec

    files = fsspec.filesystem("memory", skip_instance_cache=True)
    monkeypatch.setattr(type(files), "store", {})
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url: (files, "/" + hashlib.sha256(url.encode()).hexdigest()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return files


def put(files, url, content):
    files.pipe("/" + hashlib.sha256(url.encode()).hexdigest(), content)


def refused(source, *words):
    with pytest.raises(UserError) as e:
        fetch(source)
    message = str(e.value)
    assert "\n" not in message and message.endswith((".", "?")), message
    for word in words:
        assert word in message, message


def left(tmp_path):
    return [p for p in (tmp_path / "cache").rglob("*") if not p.is_dir()]


def test_a_path(tmp_path, monkeypatch):
    (tmp_path / "vit_b16.npz").touch()
    assert fetch(str(tmp_path)) == tmp_path
    assert fetch(str(tmp_path / "vit_b16.npz")) == tmp_path / "vit_b16.npz"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch("~/vit_b16.npz") == tmp_path / "vit_b16.npz"
    refused(str(tmp_path / "vit_b61.npz"), "does not exist; did you mean 'vit_b16.npz'?")
    refused(str(tmp_path / "a" / "b" / "vit.npz"), "does not exist.")
    for name in ("x" * 10_000, "nul\0", "~nobody/vit.npz", "a/" * 5000):
        refused(name, "does not exist")
    refused("", "the path of the weights is empty")
    monkeypatch.chdir(tmp_path)
    refused("google/vit-base", "does not exist here; a repository of the hub is written 'hf://google/vit-base'")
    refused("../vit-base", "does not exist")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "vit-base.npz").touch()
    refused("there/vit-base", "does not exist; did you mean 'vit-base.npz'?")


def test_the_hub_is_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "fetch_hub", lambda source: tmp_path / source.rpartition("/")[2])
    assert fetch("hf://org/name") == tmp_path / "name"


@pytest.mark.parametrize(
    "url", [URL, "gs://vit_models/augreg/B_16.npz", "https://host/a%20b.npz", "http://[::1]:1/a.npz"]
)
def test_an_address_is_fetched_once(bucket, tmp_path, url):
    put(bucket, url, b"weights" * 1000)
    path = fetch(url)
    assert path.read_bytes() == b"weights" * 1000
    name = {URL: "vit.npz", "https://host/a%20b.npz": "a b.npz"}.get(url, url.rpartition("/")[2])
    assert path == tmp_path / "cache" / "vit_jax" / "downloads" / hashlib.sha256(url.encode()).hexdigest() / name
    put(bucket, url, b"others")
    assert fetch(url) == path and path.read_bytes() == b"weights" * 1000
    assert left(tmp_path) == [path]


def test_where_downloads_are_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert downloads() == tmp_path / ".cache" / "vit_jax" / "downloads"


def test_what_does_not_exist_there(bucket, tmp_path):
    refused(URL, URL, "does not exist")
    assert not left(tmp_path)


@pytest.mark.parametrize("size", [9, 0])
def test_what_breaks_off(bucket, tmp_path, monkeypatch, size):
    put(bucket, URL, b"weight")
    monkeypatch.setattr(bucket, "info", lambda path: {"size": size, "type": "file"})
    refused(URL, f"broke off after 6 of {size} bytes", "run the same command again")
    assert not left(tmp_path)
    monkeypatch.setattr(bucket, "info", lambda path: {"size": None, "type": "file"})  # some servers do not say
    assert fetch(URL).read_bytes() == b"weight"


def test_what_fails(bucket, tmp_path, monkeypatch):
    def fail(remote, local):
        with open(local, "wb") as f:
            f.write(b"half")
        raise RuntimeError("403, message='Forbidden'\nurl=...")

    put(bucket, URL, b"weights")
    monkeypatch.setattr(bucket, "get_file", fail)
    refused(URL, URL, "cannot be fetched (403, message='Forbidden')", "try again")
    assert not left(tmp_path)


def test_a_cache_that_cannot_be_written(bucket, tmp_path):
    put(bucket, URL, b"weights")
    (tmp_path / "cache").touch()
    refused(URL, URL, "cannot be kept in", "Not a directory")


def test_without_the_packages(monkeypatch, tmp_path):
    def url_to_fs(url):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr("fsspec.core.url_to_fs", url_to_fs)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    refused("gs://bucket/a.npz", "Please install gcsfs", "pip install 'vit_jax[remote]'")
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    refused("gs://bucket/a.npz", "pip install 'vit_jax[remote]'")
    assert not left(tmp_path)


@pytest.mark.parametrize(
    "source", ["s3://bucket/a.npz", "http://host/a.npz", "ftp://host/a.npz", "://a", "file:///a.npz"]
)
def test_other_schemes(source):
    refused(source, "cannot be fetched; give a path, hf://ORG/NAME, gs://BUCKET/FILE or https://HOST/FILE")


@pytest.mark.parametrize(
    "url",
    ["https://host", "https://host/", "gs://bucket/a/", "https://host/a%2F..", "https://host/..", "https://h/a%5Cb"],
)
def test_addresses_of_no_file(bucket, url, tmp_path):
    put(bucket, url, b"weights")
    refused(url, "names no file")
    assert not left(tmp_path)


def test_a_server(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "vit.npz").write_bytes(b"weights" * 10_000)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=str(tmp_path / "there"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            base = f"http://127.0.0.1:{server.server_address[1]}"
            assert fetch(f"{base}/vit.npz").read_bytes() == b"weights" * 10_000
            refused(f"{base}/other.npz", "does not exist")
            refused("http://127.0.0.1:9/vit.npz", "cannot be fetched")
        finally:
            server.shutdown()
            thread.join()
    assert fetch(f"{base}/vit.npz").read_bytes() == b"weights" * 10_000


def test_an_address_that_is_none():
    refused("https://[", "is no address")
