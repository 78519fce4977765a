"""Ctrl-C in places that would lose it."""

import gc
import signal
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
