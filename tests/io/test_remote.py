"""Where weights are fetched from: paths, and addresses behind fsspec (the hub has its own test)."""

import base64
import contextlib
import hashlib
import http.server
import io
import threading

import numpy as np
import pytest

from vit_jax.io import hub, store
from vit_jax.io.remote import downloads, fetch, public, remedy
from vit_jax.types import UserError

URL, SHOWN = "https://host/some/vit.npz?download=true", "https://host/some/vit.npz"


def weights(value=1.0):
    """The bytes of a file of weights."""
    out = io.BytesIO()
    np.savez(out, x=np.full(1000, value, np.float32))
    return out.getvalue()


WEIGHTS = weights()


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """Files by address, in place of the internet."""
    import fsspec

    files = fsspec.filesystem("memory", skip_instance_cache=True)
    monkeypatch.setattr(type(files), "store", {})
    monkeypatch.setattr(
        "fsspec.core.url_to_fs", lambda url, **_: (files, "/" + hashlib.sha256(url.encode()).hexdigest())
    )
    monkeypatch.setattr("vit_jax.io.store.is_dir", lambda _: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return files


def put(files, url, content):
    files.pipe("/" + hashlib.sha256(url.encode()).hexdigest(), content)


def refused(source, *words):
    with pytest.raises(UserError) as e:
        fetch(source)
    message = str(e.value)
    assert "\n" not in message and message.endswith((".", "?", "...")), message
    assert "?download" not in message, message
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
def test_an_address_is_fetched_once(bucket, tmp_path, url, monkeypatch):
    put(bucket, url, WEIGHTS)
    path = fetch(url)
    assert path.read_bytes() == WEIGHTS
    name = {URL: "vit.npz", "https://host/a%20b.npz": "a b.npz"}.get(url, url.rpartition("/")[2])
    assert path == tmp_path / "cache" / "vit_jax" / "downloads" / hashlib.sha256(url.encode()).hexdigest() / name
    put(bucket, url, weights(2.0))
    assert fetch(url) == path and path.read_bytes() == WEIGHTS
    assert left(tmp_path) == [path]
    monkeypatch.setenv("VIT_JAX_REFRESH", "1")
    assert fetch(url) == path and path.read_bytes() == weights(2.0)
    put(bucket, url, b"<html>busy</html>")
    refused(url, "was not kept: it is a web page")
    assert path.read_bytes() == weights(2.0) and left(tmp_path) == [path]
    assert remedy(path) == " (VIT_JAX_REFRESH=1 fetches it again)" and remedy(tmp_path / "vit.npz") == ""


def test_where_downloads_are_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert downloads() == tmp_path / ".cache" / "vit_jax" / "downloads"


def test_what_does_not_exist_there(bucket, tmp_path):
    refused(URL, SHOWN, "does not exist")
    assert not left(tmp_path)


@pytest.mark.parametrize("more", [9, -5])
def test_what_breaks_off(bucket, tmp_path, monkeypatch, more):
    put(bucket, URL, WEIGHTS)
    size = len(WEIGHTS) + more
    monkeypatch.setattr(bucket, "info", lambda path: {"size": size, "type": "file"})
    refused(URL, f"broke off after {len(WEIGHTS):,} of {size:,} bytes", "run the same command again")
    assert not left(tmp_path)
    monkeypatch.setattr(bucket, "info", lambda path: {"size": None, "type": "file"})  # some servers do not say
    assert fetch(URL).read_bytes() == WEIGHTS


def test_what_fails(bucket, tmp_path, monkeypatch):
    def fail(remote, local, callback):
        with open(local, "wb") as f:
            f.write(b"half")
        raise RuntimeError(f"403, message='Forbidden', url='{URL}'\nmore")

    put(bucket, URL, WEIGHTS)
    monkeypatch.setattr(bucket, "get_file", fail)
    refused(URL, SHOWN, "cannot be fetched (403, message='Forbidden'", "try again")
    assert not left(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "was not kept: it is a web page"), (b"", "it is empty"),
        (b'{"message": "API rate limit exceeded"}', "vit.npz' was not kept"), (WEIGHTS[:-200], "cut short"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a pointer of Git LFS"),
    ],
)  # fmt: skip
def test_what_is_no_weights_is_not_kept(bucket, tmp_path, monkeypatch, content, words):
    put(bucket, URL, content)
    monkeypatch.setattr(bucket, "info", lambda path: {"size": None, "type": "file"})
    refused(URL, words)
    assert not left(tmp_path)
    put(bucket, URL, WEIGHTS)  # the server is repaired
    assert fetch(URL).read_bytes() == WEIGHTS


def test_more_than_may_be_fetched(bucket, tmp_path, monkeypatch):
    put(bucket, URL, WEIGHTS)
    monkeypatch.setenv("VIT_JAX_MAX_DOWNLOAD", "1000")
    refused(URL, "has more than 1,000 bytes; VIT_JAX_MAX_DOWNLOAD=BYTES allows more")
    monkeypatch.setenv("VIT_JAX_MAX_DOWNLOAD", "many")
    refused(URL, "VIT_JAX_MAX_DOWNLOAD='many' is no number of bytes")
    assert not left(tmp_path)
    monkeypatch.setenv("VIT_JAX_MAX_DOWNLOAD", str(len(WEIGHTS)))
    assert fetch(URL).is_file()


def test_checksums(bucket, tmp_path, monkeypatch):
    right, wrong = hashlib.sha256(WEIGHTS).hexdigest(), "0" * 64
    put(bucket, URL, WEIGHTS)
    refused(f"{URL}#sha256={wrong}", f"has the checksum {right}, not {wrong}")
    assert not left(tmp_path)
    assert fetch(f"{URL}#sha256={right.upper()}") == fetch(URL)
    md5 = base64.b64encode(hashlib.md5(WEIGHTS).digest()).decode()
    for said, good in ((md5, True), (base64.b64encode(bytes(16)).decode(), False)):  # as Google's storage says
        url = f"gs://bucket/{good}.npz"
        put(bucket, url, WEIGHTS)
        monkeypatch.setattr(bucket, "info", lambda path, said=said: {"size": None, "md5Hash": said, "type": "file"})
        fetch(url) if good else refused(url, "has the checksum")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host/vit.npz?token=x#y", "https://host/vit.npz"),
        ("https://token@host:8443/a.npz", "https://host:8443/a.npz"),
        ("https://me:se/cr?e#t@host/a.npz", "https://host/a.npz"),
        ("gs://key:secret@bucket/a.npz", "gs://bucket/a.npz"), ("http://[::1]:8/a@b.npz", "http://[::1]:8/a@b.npz"),
        ("hf://org/name@refs/pr/1/a.bin", "hf://org/name@refs/pr/1/a.bin"), ("runs/a@b?c#d", "runs/a@b?c#d"),
        ("--config.init=https://u:p@h/a.npz", "--config.init=https://h/a.npz"),
        ("403, url='https://u:p@h/a.npz?X-Amz-Signature=1', at https://v@i/?k", "403, url='https://h/a.npz', at https://i/"),
    ],
)  # fmt: skip
def test_what_gives_access_is_not_shown(text, shown):
    assert public(text) == shown


def test_errors_show_no_password(bucket, tmp_path):
    for url in ("https://me:secret@host/a.npz?key=secret", "ftp://me:secret@host/a", "https://me:secret@host",
                "hf://me:secret@org/name", "https://me:secret@[/a.npz", "http://me:secret@host/a.npz"):  # fmt: skip
        with pytest.raises(UserError) as e:
            fetch(url)
        assert "secret" not in str(e.value) and "me:" not in str(e.value), url
    url = "https://me:secret@host/a.npz"
    put(bucket, url, WEIGHTS)
    path = fetch(url)  # what is kept is found again without them, as a configuration names it
    assert fetch("https://host/a.npz") == path


def test_a_cache_that_cannot_be_written(bucket, tmp_path):
    put(bucket, URL, WEIGHTS)
    (tmp_path / "cache").touch()
    refused(URL, SHOWN, "cannot be kept in", "Not a directory")


def test_without_the_packages(monkeypatch, tmp_path):
    def without(scheme):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr("fsspec.get_filesystem_class", without)
    monkeypatch.setattr(store, "_file_system", store._file_system.__wrapped__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    refused("gs://bucket/a.npz", "Please install gcsfs", "[remote]")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    refused("gs://bucket/a.npz", "takes the extra 'remote'")
    assert not left(tmp_path)


@pytest.mark.parametrize("source", ["http://host/a.npz", "ftp://host/a.npz", "://a"])
def test_other_schemes(source):
    refused(source, "cannot be fetched; give a path, hf://ORG/NAME, gs://BUCKET/FILE or https://HOST/FILE")


@pytest.mark.parametrize(
    "url",
    [
        "https://host",
        "https://host/",
        "gs://bucket/a/",
        "https://host/a%2F..",
        "https://host/..",
        "https://h/a%5Cb",
        f"https://h/{'x' * 300}",
    ],
)
def test_addresses_of_no_file(bucket, url, tmp_path):
    put(bucket, url, b"weights")
    refused(url, "names no file")
    assert not left(tmp_path)


class Handler(http.server.BaseHTTPRequestHandler):
    """Says of no answer how long it is."""

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(b"")

    def do_GET(self):
        if self.path == "/endless.npz":
            self.answer(b"PK\x03\x04")
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(2**16))
        elif self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path == "/page.npz":
            self.answer(b"<html>" + bytes(2**22))
        elif self.path == "/vit.npz" or (self.path == "/secret.npz" and self.headers["Authorization"]):
            self.answer(WEIGHTS)
        else:
            self.send_error(404)

    def answer(self, content):
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of one on this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_server(tmp_path, server, monkeypatch):
    assert fetch(f"{server}/vit.npz").read_bytes() == WEIGHTS
    assert fetch(f"{server.replace('//', '//me:pw@')}/secret.npz").read_bytes() == WEIGHTS
    refused(f"{server}/other.npz", "does not exist")
    refused("http://127.0.0.1:9/vit.npz", "cannot be fetched")
    refused(f"{server}/page.npz", "is a web page")
    monkeypatch.setenv("VIT_JAX_MAX_DOWNLOAD", str(2**20))
    refused(f"{server}/endless.npz", "has more than 1,048,576 bytes")
    assert len(left(tmp_path)) == 2


def test_where_a_server_leads_to(tmp_path, server):
    """To another address of this machine, or to one that is encrypted; to no other."""
    assert fetch(f"{server}/to/{server}/vit.npz").read_bytes() == WEIGHTS
    refused(f"{server}/to/http://example.invalid/vit.npz", "leads to 'http://example.invalid/vit.npz'", "not encrypted")
    refused(f"{server}/to/ftp://h/vit.npz", "leads to 'ftp://h/vit.npz'")
    refused(f"{server}/to/https://me:secret@example.invalid/vit.npz", "cannot be fetched")
    assert len(left(tmp_path)) == 1


def test_an_address_that_is_none():
    refused("https://[", "is no address")
    for url in ("https://\ud800/a.npz", "https://host/a\nb.npz", "gs://bucket/\0.npz"):
        refused(url, "is no address (a character that none has)")
