"""A way to the first host that stays open when that host is gone.

JAX's client ends its process, with a C++ stack, in the moment in which its connection breaks. Behind a relay the
connection stays as it is and carries nothing more, so that this process can say what happened and end by itself.
"""

from __future__ import annotations

import contextlib
import socket
import threading


def opened(address: str, port: int) -> int:
    """Starts a relay to ``address`` and returns its own port, which only this machine reaches."""
    listening = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(listening, address, port), name="relay", daemon=True).start()
    return int(listening.getsockname()[1])


def _accept(listening: socket.socket, address: str, port: int) -> None:
    while True:
        inside, _ = listening.accept()
        try:
            outside = socket.create_connection((address, port))
        except OSError:
            inside.close()  # not there yet: whoever comes here tries again
            continue
        for s in (inside, outside):
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_carry, args=(inside, outside, True), name="relay", daemon=True).start()
        threading.Thread(target=_carry, args=(outside, inside, False), name="relay", daemon=True).start()


def _carry(source: socket.socket, target: socket.socket, close: bool) -> None:
    """Copies from one to the other until the source ends, which is passed on where ``close`` says so."""
    with contextlib.suppress(OSError):
        while data := source.recv(2**16):
            target.sendall(data)
    if close:
        for s in (source, target):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
