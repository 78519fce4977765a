import errno
import threading

import pytest

from vit_jax.io import retry


class HttpError(Exception):
    """As gcsfs and requests raise it."""

    def __init__(self, code):
        super().__init__(f"answered {code}")
        self.code = code


class ClientError(Exception):
    """As botocore raises it."""

    def __init__(self, status):
        super().__init__("An error occurred")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


class ClientPayloadError(Exception):
    __module__ = "aiohttp.client_exceptions"


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No waiting, and nothing counted before."""
    monkeypatch.setattr(retry, "WAITS", (0.0,) * 4)
    monkeypatch.setattr(retry, "_counts", type(retry._counts)())


def failing(times, error):
    """A call that raises ``error`` that many times, and the list of its calls."""
    calls = []

    def call():
        calls.append(threading.get_ident())
        if len(calls) <= times:
            raise error
        return "found"

    return call, calls


PASSING = [
    OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle"), ConnectionResetError(),
    TimeoutError(), HttpError(503), HttpError(429), ClientError(500), ClientPayloadError("broke off"),
    caused(OSError(errno.EIO, "SlowDown"), ClientError(503)), caused(ValueError("wrapped"), HttpError(502)),
    ValueError("UNKNOWN: Error reading local file: Input/output error [os_error_code='5'] [spec='{}']"),
]  # fmt: skip
LASTING = [
    FileNotFoundError(errno.ENOENT, "No such file"), PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.ENOSPC, "No space left on device"), HttpError(404), ClientError(403), ValueError("wrong"),
    caused(OSError(errno.EIO, "InvalidRange"), ClientError(416)), caused(FileNotFoundError(), ConnectionError()),
]  # fmt: skip


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_may_pass_is_tried_again_and_counted(error):
    call, calls = failing(3, error)
    assert retry.retried(call, "gs://bucket/a/b.jpg") == "found"
    assert len(calls) == 4
    assert retry.counts() == {"gs://bucket": 3}


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_lasts_is_raised_at_once(error):
    call, calls = failing(1, error)
    with pytest.raises(type(error)):
        retry.retried(call, "gs://bucket/a")
    assert len(calls) == 1 and not retry.counts()


def test_tries_are_bounded_and_the_last_error_is_raised():
    call, calls = failing(10**9, error := HttpError(503))
    with pytest.raises(HttpError) as raised:
        retry.retried(call, "s3://bucket/a")
    assert raised.value is error
    assert len(calls) == 1 + len(retry.WAITS)


def test_it_is_said_once_and_summed_up(caplog, tmp_path):
    assert retry.summary() == ""
    for where in ("s3://me:secret@bucket/a", "s3://me:secret@bucket/b", str(tmp_path / "c")):
        call, _ = failing(2, OSError(errno.EIO, "Input/output error"))
        retry.retried(call, where)
    said = [record.getMessage() for record in caplog.records]
    disk = retry.root(str(tmp_path))
    assert said == [
        "s3://bucket answers with an error (Input/output error); trying again.",
        f"{disk} answers with an error (Input/output error); trying again.",
    ]
    assert retry.summary({"s3://bucket": 4}) == f"tried again after errors that passed: 2 times for {disk}"
    assert retry.summary() == f"tried again after errors that passed: 4 times for s3://bucket, 2 times for {disk}"


@pytest.mark.parametrize(
    ("what", "root"),
    [
        ("gs://bucket/a/b", "gs://bucket"), ("https://me:secret@host/a?token=x", "https://host"),
        ("memory://a", "memory://a"), ("s3://bucket", "s3://bucket"), ("/", "/"),
    ],
)  # fmt: skip
def test_root(what, root):
    assert retry.root(what) == root
