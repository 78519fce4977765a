"""Hosts that watch each other over real connections within this process, and what real processes do when one dies."""

import os
import signal
import socket
import threading
import time

import pytest

from tests import processes
from vit_jax.launch import watch
from vit_jax.launch.watch import Peer, Watch


@pytest.fixture
def hosts(monkeypatch):
    """``hosts(n)``: n watches, and a list of (host, sentence, status) that grows as they leave."""
    left, sockets = [], []
    monkeypatch.setattr(watch, "TICK", 0.02)
    monkeypatch.setattr(watch, "SETTLE", 0.2)
    monkeypatch.setattr(watch, "BEAT", 0.05)
    monkeypatch.setattr(watch, "LAST", 1.0)
    watches = []

    def leave(self, sentence, status):
        if self._leaving.acquire(blocking=False):  # which ends its thread, too
            left.append((self.index, sentence, status))
            for peer in self._peers:
                peer.socket.shutdown(socket.SHUT_RDWR)

    monkeypatch.setattr(Watch, "_leave", leave)

    def joined(count):
        pairs = [socket.socketpair() for _ in range(count - 1)]
        sockets.extend(s for pair in pairs for s in pair)
        one = Watch(0, count, [Peer(i + 1, mine) for i, (mine, _) in enumerate(pairs)])
        rest = [Watch(i + 1, count, [Peer(0, other)]) for i, (_, other) in enumerate(pairs)]
        watches.extend([one, *rest])
        for w in watches:
            w.start()
        return watches, left

    yield joined
    for thread in STOPPING:
        thread.join(10)
    STOPPING.clear()
    for w in watches:
        w._leaving.acquire(blocking=False)
        w._over.set()
        w._thread.join(5)
        w._selector.close()
    for s in sockets:
        s.close()


def until(left, count):
    end = time.monotonic() + 10
    while len(left) < count and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.05)
    return sorted(left)


STOPPING = []


def stopped(w, *args):
    STOPPING.append(threading.Thread(target=w.stop, args=args, daemon=True))
    STOPPING[-1].start()


def test_an_error_is_named_to_all(hosts, monkeypatch):
    everybody, left = hosts(3)
    stopped(everybody[1], "no space left.", 1)
    assert until(left, 3) == [(i, "host 2 of 3 stopped: no space left.", 1) for i in range(3)]


def test_an_error_of_the_first_is_named_to_all(hosts):
    everybody, left = hosts(2)
    stopped(everybody[0], "no space left.", 2)
    assert until(left, 2) == [(i, "host 1 of 2 stopped: no space left.", 2) for i in range(2)]


def test_an_error_that_all_have_is_said_by_the_first(hosts):
    everybody, left = hosts(3)
    for w in everybody:
        stopped(w, "unknown key.", 2)
    assert until(left, 3) == [(0, "unknown key.", 2), (1, "", 2), (2, "", 2)]


GONE = "host 2 of 3 has ended without a word (killed, or out of memory); step 5 is there."


def test_a_host_that_ends_without_a_word_is_named_and_what_is_left(hosts):
    everybody, left = hosts(3)
    everybody[0].onward = lambda: "step 5 is there"
    everybody[1]._peers[0].socket.shutdown(socket.SHUT_RDWR)
    assert {(0, GONE, 75), (2, GONE, 75)} <= set(until(left, 3))


def test_an_error_that_follows_from_an_end_is_not_the_cause(hosts, monkeypatch):
    monkeypatch.setattr(watch, "DOUBT", 1.0)
    everybody, left = hosts(3)
    everybody[0].onward = lambda: "step 5 is there"
    doubting = threading.Thread(target=everybody[2].doubt)
    doubting.start()
    everybody[1]._peers[0].socket.shutdown(socket.SHUT_RDWR)
    assert {(0, GONE, 75), (2, GONE, 75)} <= set(until(left, 3))
    assert doubting.is_alive()  # a process would have ended
    doubting.join()


def test_the_end_of_the_first_is_noticed_by_all(hosts, monkeypatch):
    def broken():
        raise OSError("the disk is gone too")

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    everybody, left = hosts(3)
    everybody[1].onward = everybody[2].onward = broken
    for peer in everybody[0]._peers:
        peer.done = True
        peer.socket.shutdown(socket.SHUT_RDWR)
    reason = "has ended without a word (killed, or out of memory); the same command goes on from what there is."
    assert until(left, 2) == [(i, f"host 1 of 3 {reason}", 75) for i in (1, 2)]


def test_a_silent_host_is_given_up(hosts, monkeypatch):
    everybody, left = hosts(2)
    monkeypatch.setattr(watch, "SILENT", 0.5)
    everybody[1]._peers[0].send = lambda **_: None
    sentence = "host 2 of 2 has not been heard of for 0 s (frozen, or cut off from the network)"
    assert until(left, 1)[0] == (0, f"{sentence}; the same command starts again.", 75)


def test_none_ends_before_the_others(hosts):
    everybody, left = hosts(3)
    over = [threading.Thread(target=w.finish) for w in everybody]
    for thread in over[1:]:
        thread.start()
    time.sleep(0.3)
    assert all(thread.is_alive() for thread in over[1:])
    over[0].start()
    for thread in over:
        thread.join(10)
    assert not any(thread.is_alive() for thread in over) and left == []


def test_one_that_never_comes_to_its_end_is_named(hosts, monkeypatch):
    monkeypatch.setattr(watch, "LATE", 0.3)
    everybody, left = hosts(3)
    for w in everybody[:2]:
        threading.Thread(target=w.finish, daemon=True).start()
    found = until(left, 3)
    assert found[0][1].startswith("host 3 of 3 has not come to an end 0 s after host 1 had; ")
    assert len({sentence for _, sentence, _ in found}) == 1


def test_a_line_is_said_once(hosts, caplog):
    everybody, _ = hosts(3)
    everybody[0].tell("two epochs are short")
    for w in everybody[1:]:
        w.tell("two epochs are short")
        w.tell("this disk is slow")
    everybody[2].tell("only here")
    time.sleep(0.5)
    assert sorted(r.getMessage() for r in caplog.records) == [
        "host 2 of 3: this disk is slow",
        "host 3 of 3: only here",
    ]


@pytest.mark.parametrize("data", [b"no JSON\n", b"[1]\n", b"x" * (2**16 + 1), b"\xff\n"])
def test_what_is_no_message_ends_a_connection(data):
    one, other = socket.socketpair()
    with one, other:
        one.sendall(data)
        peer = Peer(0, other)
        other.settimeout(5)
        while peer.open and len(peer.rest) < len(data):
            assert list(peer.receive()) == []
        assert not peer.open


LEAVES = """
import threading, time
from vit_jax.launch.watch import Watch
watch = Watch(0, 2, [])
watch.command = "vit_jax train"
print("before", flush=False)
threading.Thread(target=watch._leave, args=("host 2 of 2 is gone.", 75)).start()
time.sleep(60)
"""


def test_leaving_ends_the_process_whatever_its_main_thread_does():
    with processes.started(1, code=LEAVES) as (host,):
        ended = host.ended(30)
    assert (ended.status, ended.output) == (75, "before\nvit_jax train: host 2 of 2 is gone.\n")


LONG = ("--config.duration=100000",)


def training(workdir, *more):
    every = [f"--config.{name}_every=20" for name in ("log", "eval", "checkpoint")]
    return ["train", f"--workdir={workdir}", *processes.TINY, "--config.batch_size=48", *LONG, *every, *more]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(("number", "reason", "seconds"), [
    (signal.SIGKILL, "has ended without a word (killed, or out of memory)", 20),
    (signal.SIGSTOP, "has not been heard of for 30 s (frozen, or cut off from the network)", 60),
])  # fmt: skip
def test_the_others_end_soon_after_one_and_the_run_goes_on(tmp_path, victim, number, reason, seconds):
    with processes.started(3, training(tmp_path)) as hosts:
        hosts[0].until("step 40/")
        killed = hosts[victim].kill(number)
        ended = processes.ended([host for i, host in enumerate(hosts) if i != victim], seconds)
    for one in ended:
        print(f"{number.name} of host {victim + 1}: ended after {one.at - killed:.1f} s")
        sentence = one.output.splitlines()[-1]
        assert one.status == 75 and one.at - killed < seconds
        assert sentence.startswith(f"vit_jax train: host {victim + 1} of 3 {reason}; the checkpoint of step ")
        assert "Traceback" not in one.output and "*** Check failure" not in one.output
    with processes.started(3, training(tmp_path)) as hosts:
        hosts[0].until("resumed at step ", 120)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_on_one_host_ends_all(tmp_path, victim):
    code = """
import os, sys
from vit_jax import cli
from vit_jax.data import loader
from vit_jax.types import UserError
take = loader.Batches.__next__
def broken(self):
    broken.calls += 1
    if broken.calls > 30 and os.environ["JAX_PROCESS_ID"] == os.environ["VICTIM"]:
        raise UserError("image 7 cannot be read.")
    return take(self)
broken.calls = 0
loader.Batches.__next__ = broken
sys.exit(cli.main(sys.argv[1:]))
"""
    arguments = training(tmp_path)
    code = code.replace("sys.argv[1:]", repr(arguments))
    with processes.started(3, code=code, each=[{"VICTIM": str(victim)}] * 3) as hosts:
        ended = processes.ended(hosts, 120)
    for one in ended:
        assert one.status == 1
        assert one.output.splitlines()[-1] == f"vit_jax train: host {victim + 1} of 3 stopped: image 7 cannot be read."
    assert max(one.at for one in ended) - min(one.at for one in ended) < 10
    assert os.listdir(tmp_path / "checkpoints")
