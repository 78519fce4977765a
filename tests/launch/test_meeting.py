"""Hosts that come to the first: all of them, too few, twice, with other numbers, and strangers."""

import concurrent.futures
import contextlib
import os
import re
import socket

import pytest

from vit_jax.launch import meeting
from vit_jax.launch.cluster import Cluster
from vit_jax.types import UsageError, UserError


@pytest.fixture
def port(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def first(port, count, seconds):
    with meeting.listening(cluster := Cluster("127.0.0.1", port, count, 0)) as server:
        peers = meeting.gathered(cluster, server, seconds)
    meeting.admit(peers, 4321)
    return peers


def meet(port, count, *others, seconds=10.0):
    """What the first host and ``others`` (index, count) get or are told."""

    def tried(f, *args):
        try:
            return f(*args)
        except UserError as e:
            return e

    with concurrent.futures.ThreadPoolExecutor() as pool:
        futures = [pool.submit(tried, first, port, count, seconds)]
        futures += [pool.submit(tried, meeting.met, Cluster("127.0.0.1", port, n, i), 10.0) for i, n in others]
        return [f.result() for f in futures]


def close(peers):
    for peer in peers:
        peer.socket.close()


def test_all_meet_in_the_order_of_their_numbers(port):
    peers, *others = meet(port, 3, (2, 3), (1, 3))
    assert [peer.host for peer in peers] == [1, 2]
    assert [(peer.host, p) for peer, p in others] == [(0, 4321)] * 2
    close([*peers, *(peer for peer, _ in others)])


def test_a_first_host_with_more_than_1024_open_files(port):
    with contextlib.ExitStack() as stack:
        for _ in range(1100):
            stack.callback(os.close, os.dup(0))
        peers, (peer, _) = meet(port, 2, (1, 2))
    close([*peers, peer])


@pytest.mark.parametrize(
    ("others", "kind", "sentence"),
    [
        ([(1, 4)], UserError, "host 3, host 4 of 4 did not come within 1 s; look at what they printed."),
        (
            [(1, 4), (1, 4)],
            UsageError,
            "two processes say that they are host 2 of 4; give each its own JAX_PROCESS_ID.",
        ),
        (
            [(1, 2)],
            UsageError,
            "host 2 says that there are 2 hosts, host 1 that there are 4; give all the same JAX_NUM_PROCESSES.",
        ),
    ],
)
def test_who_is_wrong_is_named_to_all(port, others, kind, sentence):
    assert [(type(e), str(e)) for e in meet(port, 4, *others, seconds=1.0)] == [(kind, sentence)] * (1 + len(others))


def test_strangers_are_sent_away_and_who_left_is_missing(port):
    cluster = Cluster("127.0.0.1", port, 3, 0)
    with meeting.listening(cluster) as server, contextlib.ExitStack() as stack:
        for words in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"[1]\n",
            b'{"index": 1, "count": 2}\n',
            b'{"greeting": 1}\n',
            b"x" * 99,
        ):
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            stranger.sendall(words)
        gone = socket.create_connection(("127.0.0.1", port))
        gone.sendall(b'{"greeting": "vit_jax", "index": 1, "count": 3}\n')
        gone.close()
        with pytest.raises(UserError, match=r"^host 2, host 3 of 3 did not come within 1 s"):
            meeting.gathered(cluster, server, 1.0)


def test_a_port_in_use_and_a_first_host_that_is_not_there(port):
    with socket.create_server(("127.0.0.1", port)), pytest.raises(UserError) as e:
        meeting.listening(Cluster("127.0.0.1", port, 2, 0))
    assert re.search(r"^host 1 of 2 cannot wait for the others at port \d+ \(Address already in use\): ", str(e.value))
    with pytest.raises(UserError) as e:
        meeting.met(Cluster("127.0.0.1", port, 3, 1), 0.3)
    sentence = rf"^host 2 of 3 cannot reach host 1 at 127\.0\.0\.1:{port} within 0 s \(Connection refused\); is it"
    assert re.search(sentence, str(e.value))


def test_somebody_else_at_the_address(port):
    with concurrent.futures.ThreadPoolExecutor() as pool, socket.create_server(("127.0.0.1", port)) as server:
        told = pool.submit(meeting.met, Cluster("127.0.0.1", port, 3, 1), 1.0)
        connection, _ = server.accept()
        connection.sendall(b"220 mail\r\n")
        connection.close()
        with pytest.raises(UserError, match=r"^host 2 of 3 met nobody at 127\.0\.0\.1:\d+: host 1 has ended, or"):
            told.result(20)


@pytest.mark.parametrize(
    ("variable", "bound"), [("", ""), ("[::]:80", ""), ("127.0.0.1:80", "127.0.0.1"), ("[fe80::1]:80", "fe80::1")]
)
def test_where_the_first_host_listens(monkeypatch, variable, bound):
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", variable)
    assert meeting.bound(Cluster("a", 1, 2, 0)) == bound
