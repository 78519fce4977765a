"""How hosts find each other: all come to the first, say which one they are, and hear where JAX's own service is.

Who does not come, comes twice or thinks of another number of hosts is named, which JAX's service does not do.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vit_jax.launch.cluster import ADDRESS, COUNT, INDEX, Cluster
from vit_jax.launch.watch import Peer
from vit_jax.types import UsageError, UserError

GREETING = "vit_jax"
"""What everybody says first; who says anything else came to the wrong place."""


def listening(cluster: Cluster) -> socket.socket:
    """The first host's port, to which the others come.

    Raises:
      UserError: it is in use.
    """
    bind = bound(cluster)
    every = bind or ("" if ":" not in cluster.address else "::")
    try:
        if ":" in every:
            return socket.create_server((every, cluster.port), family=socket.AF_INET6)
        if not every and socket.has_dualstack_ipv6():
            return socket.create_server(("", cluster.port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server((every, cluster.port))
    except OSError as e:
        raise UserError(
            f"host 1 of {cluster.count} cannot wait for the others at port {cluster.port} ({_reason(e)}): another "
            f"process has {INDEX}=0 too, or another run meets there; choose another port in {ADDRESS}."
        ) from e


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).split(" (")[0]  # socket adds the address that was tried


def bound(cluster: Cluster) -> str:
    """The address to which ``JAX_COORDINATOR_BIND_ADDRESS`` ties the first host; empty for all of the machine."""
    text = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", "").rpartition(":")[0].strip("[]")
    return "" if text == "::" else text


def gathered(cluster: Cluster, server: socket.socket, seconds: float) -> list[Peer]:
    """The connections of the first host to all others, in their order; they wait for :func:`admit`.

    Raises:
      UserError: some did not come within ``seconds``, two have the same number, or they do not agree how many they are.
    """
    peers: dict[int, Peer] = {}
    strangers: list[Peer] = []
    try:
        _gather(cluster, server, time.monotonic() + seconds, peers, strangers)
        missing = [f"host {i + 1}" for i in range(1, cluster.count) if i not in peers]
        if missing:
            shown = f"{', '.join(missing[:8])}{', ...' if len(missing) > 8 else ''} of {cluster.count}"
            text = f"{shown} did not come within {seconds:.0f} s; look at what they printed."
            _refuse(peers.values(), text, UserError)
    except UserError:
        strangers += peers.values()
        raise
    finally:
        for peer in strangers:
            peer.socket.close()
    return [peers[i] for i in sorted(peers)]


def _gather(cluster: Cluster, server: socket.socket, end: float, peers: dict[int, Peer], strangers: list[Peer]) -> None:
    """Fills ``peers`` with those who say who they are, until all have come or it is ``end``."""
    while len(peers) < cluster.count - 1 and (left := end - time.monotonic()) > 0:
        waiting = [*strangers, *peers.values()]
        ready = _readable([server, *(p.socket for p in waiting)], min(left, 1))
        if server in ready:
            connection, _ = server.accept()
            connection.settimeout(10)
            strangers.append(Peer(-1, connection))
        for peer in [p for p in waiting if p.socket in ready]:
            hello = next(peer.receive(), None)
            if peer in strangers and (hello or not peer.open):
                strangers.remove(peer)
            if not peer.open:  # it ended; the same host may come again
                peer.socket.close()
                if peers.get(peer.host) is peer:
                    del peers[peer.host]
            elif hello and peer.host < 0:
                _introduce(cluster, peers, peer, hello)


def _introduce(cluster: Cluster, peers: dict[int, Peer], peer: Peer, hello: Mapping[str, Any]) -> None:
    index, count = hello.get("index"), hello.get("count")
    if hello.get("greeting") != GREETING or not isinstance(index, int):
        peer.socket.close()
        return
    everybody = [*peers.values(), peer]
    if count != cluster.count:
        text = f"host {index + 1} says that there are {count} hosts, host 1 that there are {cluster.count}"
        _refuse(everybody, f"{text}; give all the same {COUNT}.", UsageError)
    if index in peers or not 0 < index < cluster.count:
        text = f"two processes say that they are host {index + 1} of {cluster.count}"
        _refuse(everybody, f"{text}; give each its own {INDEX}.", UsageError)
    peer.host = index
    peers[index] = peer


def _refuse(peers: Any, sentence: str, kind: type[UserError]) -> None:
    for peer in peers:
        peer.send(refused=sentence, usage=kind is UsageError)
        peer.socket.close()
    raise kind(sentence)


def admit(peers: list[Peer], port: int) -> None:
    """Tells the others that all are there, and the port of JAX's service."""
    for peer in peers:
        peer.send(port=port)


def met(cluster: Cluster, seconds: float) -> tuple[Peer, int]:
    """The connection of another host to the first, and the port of JAX's service there.

    Raises:
      UserError: the first host cannot be reached within ``seconds``, or what it found wrong.
    """
    end = time.monotonic() + seconds
    where = f"{cluster.address}:{cluster.port}"
    name = f"host {cluster.index + 1} of {cluster.count}"
    while True:
        try:
            connection = socket.create_connection((cluster.address, cluster.port), timeout=5)
            break
        except OSError as e:
            if time.monotonic() > end:
                raise UserError(
                    f"{name} cannot reach host 1 at {where} within {seconds:.0f} s ({_reason(e)}); is it running, "
                    f"and does {ADDRESS} name it?"
                ) from e
            time.sleep(0.2)
    connection.settimeout(1)
    peer = Peer(0, connection)
    peer.send(greeting=GREETING, index=cluster.index, count=cluster.count)
    for message in _heard(peer, end + 15):
        match message:
            case {"refused": str(sentence), "usage": usage}:
                connection.close()
                raise (UsageError if usage else UserError)(sentence)
            case {"port": int(port)}:
                return peer, port
    connection.close()
    raise UserError(f"{name} met nobody at {where}: host 1 has ended, or it is no vit_jax that answers there.")


def _heard(peer: Peer, end: float) -> Iterator[Mapping[str, Any]]:
    while peer.open and time.monotonic() < end:
        with contextlib.suppress(TimeoutError):
            if _readable([peer.socket], 0.5):
                yield from peer.receive()


def _readable(sockets: Iterable[socket.socket], seconds: float) -> set[Any]:
    """Those of ``sockets``, of which there may be thousands, that have something to read within ``seconds``."""
    with selectors.DefaultSelector() as selector:
        for one in sockets:
            selector.register(one, selectors.EVENT_READ)
        return {key.fileobj for key, _ in selector.select(seconds)}
