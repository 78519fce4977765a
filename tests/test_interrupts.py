"""Ctrl-C in places that would lose it."""

import gc
import os
import pty
import signal
import subprocess
import sys
import time
import weakref

import jax
import pytest

from vit_jax import interrupts


def press():
    signal.raise_signal(signal.SIGINT)
    sum(range(10))  # the handler has run before this ends


class Metadata:
    def __eq__(self, other):
        press()

    __hash__ = object.__hash__


class Node:
    pass


jax.tree_util.register_pytree_node(Node, lambda _: ((), Metadata()), lambda *_: Node())


def by_the_collector():
    def callback(*_):
        gc.callbacks.remove(callback)
        press()

    gc.callbacks.append(callback)
    gc.collect()


def by_a_weak_reference():
    thing = Node()
    ref = weakref.ref(thing, lambda _: press())
    del thing
    assert ref() is None


def by_a_finalizer():
    type("Thing", (), {"__del__": lambda self: press()})()


def by_a_generator():
    def numbers():
        try:
            yield 1
        finally:
            press()

    next(numbers())


@pytest.mark.parametrize("lose", [by_the_collector, by_a_weak_reference, by_a_finalizer, by_a_generator])
def test_what_python_ignores_comes_again(lose, monkeypatch):
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: ignored.append(what.exc_type))
    hook = sys.unraisablehook
    lose()
    assert ignored == [KeyboardInterrupt]
    with pytest.raises(KeyboardInterrupt), interrupts.delivered():
        lose()
        time.sleep(60)
    assert len(ignored) == 1 and sys.unraisablehook == hook


def test_any_other_error_is_ignored_as_before(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda ignored: seen.append(ignored.exc_type))
    with interrupts.delivered():
        type("Wrong", (), {"__del__": lambda self: 1 / 0})()
    assert seen == [ZeroDivisionError]


def test_jax_makes_another_error_of_it():
    first, second = (jax.tree.structure(Node()) for _ in range(2))
    with pytest.raises(ValueError, match="equality of metadata"):
        assert first == second
    with pytest.raises(KeyboardInterrupt), interrupts.delivered():
        assert first == second


def test_other_errors_stay_what_they_are():
    with pytest.raises(ZeroDivisionError), interrupts.delivered():
        try:
            raise KeyError("before")
        except KeyError:
            raise ZeroDivisionError from None


def test_held_until_the_end():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts.held():
        press()
        done.append("all of it")
    assert done


@pytest.fixture(autouse=True)
def _default_actions():
    """Signals as a user's process has them, also where whoever runs the tests ignores some, as ``nohup`` does."""
    old = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGUSR1)}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


def test_what_asks_to_stop_is_gathered_and_a_second_ctrl_c_interrupts():
    """Schedulers send their signals more than once."""
    before = [signal.getsignal(number) for number in interrupts.ASKS]
    with interrupts.asked() as received:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            signal.raise_signal(number)
        assert received == [signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]
        with pytest.raises(KeyboardInterrupt):
            press()
    assert [signal.getsignal(number) for number in interrupts.ASKS] == before
    with interrupts.left_when_asked(75, "stopped"), interrupts.asked() as received:
        press()
        signal.raise_signal(signal.SIGHUP)
        assert received == [signal.SIGINT, signal.SIGHUP]


def test_what_is_ignored_or_used_stays_so():
    used = []
    old = [signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGUSR1, lambda *_: used.append(1))]
    try:
        with interrupts.asked() as received:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGUSR1)
        assert received == [] and used == [1]
    finally:
        for number, handler in zip((signal.SIGHUP, signal.SIGUSR1), old, strict=True):
            signal.signal(number, handler)


def test_a_closed_terminal_hears_no_more():
    """A write to it would be an error, where a run still has to save."""
    code = (
        "import os, signal, time; from vit_jax import interrupts\n"
        "os.open(os.ttyname(1), os.O_RDWR)\n"  # a session's first terminal is the one that ends it
        "with interrupts.asked() as received:\n"
        "    os.write(1, b'x')\n"
        "    while not received: time.sleep(0.01)\n"
        "    os.write(1, b'x'); os.write(2, b'x')\n"
        "os._exit(received[0])"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        assert os.read(ours, 1) == b"x"
        os.close(ours)  # as a connection that breaks: the system sends SIGHUP
        try:
            assert process.wait(60) == signal.SIGHUP
        finally:
            process.kill()


def test_others_leave_at_once(monkeypatch):
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    with interrupts.left_when_asked(75, "stopped"):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.raise_signal(number)
    assert left == [75] * 3 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_nothing_changes_the_status_of_what_is_done():
    """Schedulers, and who closes a terminal, may ask while Python is on its way out."""
    code = (
        "import atexit, os, signal, sys; from vit_jax import interrupts\n"
        "atexit.register(lambda: [os.kill(os.getpid(), number) for number in interrupts.ASKS])\n"
        "with interrupts.left_when_asked(75, 'stopped', last=True):\n"
        "    pass\n"
        "sys.exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
