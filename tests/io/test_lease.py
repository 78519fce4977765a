import json
import os
import subprocess
import sys
import threading
import uuid

import pytest

from vit_jax.io import lease, store
from vit_jax.types import UserError


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.02)
    monkeypatch.setattr(lease, "STALE", 0.5)
    return f"memory://{uuid.uuid4().hex}/lock"


def taking(address, also=lambda: None, every=0.0):
    return lease.Lease("memory://run", address, also, every)


def left(address, **about):
    """A file of another process."""
    import socket

    store.write(address, json.dumps({"host": socket.gethostname(), "token": "other", **about}).encode())


def test_one_has_it_and_gives_it_back(address):
    with taking(address) as held:
        found = json.loads(store.read(address))
        assert found["process"] == os.getpid()
        held.check()
    assert not store.exists(address)


def test_one_that_lives_is_seen_to(address, monkeypatch, caplog):
    monkeypatch.setattr(lease, "_is_dead", lambda _: False)  # as for a process of another machine
    with (
        taking(address),
        pytest.raises(UserError, match=r"is in use by process \d+ on .*; wait until it ends"),
        taking(address),
    ):
        pass
    assert "looking whether that lives" in caplog.text


@pytest.mark.parametrize("how", ["dead", "silent", "old", "local"])
def test_one_that_died_is_no_obstacle(address, caplog, how):
    import time

    if how == "dead":
        ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
        left(address, process=int(ended.stdout), time=time.time())
    elif how == "silent":
        left(address, host="elsewhere", process=1, time=time.time())
    elif how == "old":
        left(address, host="elsewhere", process=1, time=time.time() - 2 * lease.OLD)
    else:
        store.write(address, b"process 7 on here since 2026-01-01 00:00:00\n")
    with taking(address) as held:
        held.check()
    assert "ended unheard; going on" in caplog.text
    assert ("looking whether" in caplog.text) == (how == "silent")


def test_one_that_was_only_slow_stops(address):
    with taking(address) as held:
        left(address, process=1)
        with pytest.raises(UserError, match=r"was taken by process 1 on .*: this run stops, and writes no more"):
            held.check()
    assert json.loads(store.read(address))["token"] == "other"


def test_it_is_renewed_and_the_rest_done_meanwhile(address):
    done = threading.Event()
    with taking(address, done.set):
        assert done.wait(5)
        assert json.loads(store.read(address))["beats"] >= 1
