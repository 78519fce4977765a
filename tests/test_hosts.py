"""Hosts that agree through the key-value store of JAX's service: real clients of a real one, a thread each."""

import collections
import concurrent.futures
import re
import socket
import threading
import types

import jax
import jax.numpy as jnp
import pytest
from jax._src.lib import _jax

from vit_jax import hosts
from vit_jax.types import UserError

N = 3


@pytest.fixture(scope="module")
def clients():
    """A service and its ``N`` clients."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    service = _jax.get_distributed_runtime_service(f"127.0.0.1:{port}", N, shutdown_timeout=5)
    joined = [
        _jax.get_distributed_runtime_client(f"127.0.0.1:{port}", i, init_timeout=20, shutdown_timeout=5)
        for i in range(N)
    ]
    everybody(lambda host: joined[host].connect())
    yield joined
    everybody(lambda host: joined[host].shutdown())
    service.shutdown()


@pytest.fixture
def states(clients, monkeypatch):
    """Makes each thread of :func:`everybody` one host."""
    calls = [collections.Counter() for _ in range(N)]

    class Calls:
        """Of each host its own counter, as each process has one."""

        def __getitem__(self, what):
            return calls[HOST.number][what]

        def __setitem__(self, what, n):
            calls[HOST.number][what] = n

    monkeypatch.setattr(hosts, "_calls", Calls())
    monkeypatch.setattr(
        hosts,
        "_state",
        lambda: types.SimpleNamespace(client=clients[HOST.number], process_id=HOST.number, num_processes=N),
    )


HOST = threading.local()


def everybody(f, only=range(N)):
    """What ``f(host)`` returns on each host, or the error that it raised."""

    def run(host):
        HOST.number = host
        try:
            return f(host)
        except Exception as e:
            return e

    with concurrent.futures.ThreadPoolExecutor(N) as pool:
        return list(pool.map(run, only))


def test_one_process_is_the_first_of_one():
    assert not hosts.joined()
    assert (hosts.index(), hosts.count(), hosts.first(), hosts.name()) == (0, 1, True, "host 1 of 1")
    assert hosts.share("a thing", "text") == ["text"]
    hosts.barrier("nothing")


def test_each_host_has_a_number(states):
    assert everybody(lambda _: (hosts.index(), hosts.count(), hosts.first())) == [
        (0, N, True),
        (1, N, False),
        (2, N, False),
    ]
    assert everybody(lambda _: hosts.name())[2] == "host 3 of 3"
    assert everybody(lambda _: hosts.name(1))[0] == "host 2 of 3"


def test_hosts_share_texts_in_their_order(states):
    odd = "é\udcff\0 of host "

    def twice(host):
        return hosts.share("twice", f"{odd}{host}", 20), hosts.share("twice", str(10 * host), 20)

    expected = [f"{odd}{i}" for i in range(N)], ["0", "10", "20"]
    assert everybody(twice) == [expected] * N


def test_what_was_shared_is_removed_a_round_later(states, clients):
    everybody(lambda _: [hosts.share("kept", "x" * 1000, 20) for _ in range(3)])
    assert len(clients[0].key_value_dir_get("vit_jax/kept")) <= N


def test_a_silent_host_is_named(states):
    found = everybody(lambda _: hosts.share("the data", "mine", 0.3), only=[0, 1])
    text = "host 3 of 3 did not come within 0 s to share the data; look at the end of what it printed."
    assert [str(e) for e in found] == [text] * 2 and all(isinstance(e, UserError) for e in found)
    (alone,) = everybody(lambda _: hosts.barrier("alone", 0.2), only=[1])
    assert re.search(r"^host 1 of 3, host 3 of 3 did not come .* they printed\.$", str(alone))


def test_a_program_is_compiled_everywhere_before_it_runs(monkeypatch):
    met, jitted = [], jax.jit(lambda x, y: x + y["a"])
    assert hosts.together(jitted) is jitted
    monkeypatch.setattr(hosts, "count", lambda: 2)
    monkeypatch.setattr(hosts, "barrier", lambda what, seconds: met.append(what))
    run = hosts.together(jitted)
    for value in (1.0, 2.0):
        assert run(jnp.float32(value), {"a": jnp.float32(3.0)}) == value + 3
    assert met == ["the compiled program"]
    assert run(jnp.ones(2), {"a": jnp.ones(2)}).tolist() == [2.0, 2.0]
    assert len(met) == 2
