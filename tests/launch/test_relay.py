"""A connection that outlives the other end."""

import socket

import pytest

from vit_jax.launch import relay


def test_what_is_sent_arrives_and_the_end_does_not():
    with socket.create_server(("127.0.0.1", 0)) as server:
        inside = socket.create_connection(("127.0.0.1", relay.opened("127.0.0.1", server.getsockname()[1])))
        inside.settimeout(10)
        outside, _ = server.accept()
    inside.sendall(b"question")
    assert outside.recv(100) == b"question"
    outside.sendall(b"answer")
    assert inside.recv(100) == b"answer"
    outside.close()
    inside.settimeout(0.3)
    with pytest.raises(TimeoutError):
        inside.recv(100)
    inside.close()


def test_one_who_leaves_is_missed_at_the_other_end():
    with socket.create_server(("127.0.0.1", 0)) as server:
        inside = socket.create_connection(("127.0.0.1", relay.opened("127.0.0.1", server.getsockname()[1])))
        outside, _ = server.accept()
    inside.close()
    outside.settimeout(10)
    assert outside.recv(100) == b""
    outside.close()


def test_who_comes_too_early_is_sent_away():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with socket.create_connection(("127.0.0.1", relay.opened("127.0.0.1", port))) as inside:
        inside.settimeout(10)
        assert inside.recv(100) == b""
