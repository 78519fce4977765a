"""Hosts that watch over each other, so that a run ends within seconds where one of them does.

Every host keeps one connection to the first, which knows all. Over it goes a sign of life each second; why a host
stopped, which the first tells all others; and at the end that it is done. A connection that breaks, or is silent for
:data:`SILENT` seconds, is a host that ended without a word or is frozen. Whoever learns that the run is over says so in
one sentence and ends the process, whatever its main thread waits for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax.io import jsonfile
from vit_jax.types import Stopped

TICK, BEAT = 0.25, 1.0
"""Seconds between two looks at the others, and between two signs of life."""
SILENT = 30.0
"""Seconds without a sign of life after which a host is given up."""
SETTLE = 1.0
"""Seconds in which hosts that stop for one reason are heard, before one is named as the cause."""
DOUBT = 3.0
"""Seconds that an error waits, which may only follow from another host's end: that host is named instead."""
LATE = 300.0
"""Seconds that the first host waits at its end for another, which had nothing to do that it had not."""
LAST = 10.0
"""Seconds after which a process that is about to end does so."""
LONGEST = 2**16
"""Bytes of a message."""

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Peer:
    """A host at the other end of a connection.

    Attributes:
      host: its number.
      socket: the connection.
      heard: when it last gave a sign of life.
      rest: bytes of a message that is not complete.
      open: whether the connection is.
      done: whether it may end without a word, because it said before that it would.
    """

    host: int
    socket: socket.socket
    heard: float = 0.0
    rest: bytes = b""
    open: bool = True
    done: bool = False

    def send(self, **message: Any) -> None:
        """One message; where it cannot be sent, the next look at the connection tells why."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> Iterator[dict[str, Any]]:
        """The messages that are there; ends the connection at one that is none."""
        try:
            data = self.socket.recv(2**16)
        except OSError:
            data = b""
        self.open = bool(data)
        self.heard = time.monotonic()
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            try:
                message = jsonfile.loads(line)
            except ValueError:
                message = None
            if isinstance(message, dict):
                yield message
            else:
                self.open = False
        if len(self.rest) > LONGEST:
            self.open = False


@dataclasses.dataclass(frozen=True)
class Report:
    """Why a host stopped: in its own words, or in those of whoever misses it, where it is ``lost``."""

    reason: str
    status: int
    lost: bool = False


class Watch:
    """The watch of one host over the others; a thread that looks after ``peers`` until the process ends.

    Args:
      index: number of this host.
      count: how many there are.
      peers: the connections: of the first host to all others, of those to the first.

    Attributes:
      command: what people called, for sentences.
      onward: what is left of the run where a host is lost, as the end of a sentence.
    """

    def __init__(self, index: int, count: int, peers: list[Peer]) -> None:
        self.index, self.count, self.command = index, count, "vit_jax"
        self.onward: Callable[[], str] = lambda: "the same command starts again"
        self._peers = peers
        self._reports: dict[int, Report] = {}
        self._since = 0.0
        self._over, self._leaving = threading.Event(), threading.Lock()
        self._done = float("inf")
        self._told: list[tuple[float, int, str]] = []
        self._own: set[str] = set()
        self._selector = selectors.DefaultSelector()
        for peer in peers:
            peer.heard = time.monotonic()
            peer.socket.settimeout(LAST)
            self._selector.register(peer.socket, selectors.EVENT_READ, peer)
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def finish(self) -> None:
        """Returns once every host has called this: from now on they may end."""
        self._done = time.monotonic()
        if self.index:
            self._peers[0].send(done=True)
        while not self._over.wait(TICK):
            pass

    def doubt(self) -> None:
        """Waits whether an error only follows from the end of another host: then this process ends here."""
        time.sleep(DOUBT)

    def stop(self, reason: str, status: int) -> None:
        """Tells the others why this host stops, and ends the process.

        Args:
          reason: a sentence.
          status: exit status.
        """
        report = Report(reason[: LONGEST // 8], status)
        if self.index:
            self._peers[0].send(over=dataclasses.asdict(report))
        else:
            self._report(0, report)
        time.sleep(LAST)
        self._leave(self._sentence(self.index, report), status)

    def tell(self, line: str) -> None:
        """Lets the first host say a line that it did not say itself."""
        if self.index:
            self._peers[0].send(line=line[: LONGEST // 8])
        else:
            self._own.add(line)

    def _look(self) -> None:
        beat = last = time.monotonic()
        while not self._leaving.locked():
            for key, _ in self._selector.select(TICK):
                self._receive(key.data)
            now = time.monotonic()
            if now - last > SILENT / 2:  # this process was frozen, and the others may have written long ago
                for peer in self._peers:
                    peer.heard = now
            last = now
            for peer in self._peers:
                if peer.open and now - beat >= BEAT:
                    peer.send(alive=True)
                if peer.open and now - peer.heard > SILENT:
                    reason = f"has not been heard of for {SILENT:.0f} s (frozen, or cut off from the network)"
                    self._lost(peer.host, reason)
            beat = now if now - beat >= BEAT else beat
            if not self.index:
                self._decide(now)

    def _receive(self, peer: Peer) -> None:
        for message in peer.receive():
            match message:
                case {"over": {"reason": str(reason), "status": int(status)}}:
                    self._report(peer.host, Report(reason, status))
                case {"line": str(line)}:
                    self._told.append((time.monotonic() + SETTLE, peer.host, line))
                case {"done": True}:
                    peer.done = True
                case {"end": str(sentence), "status": int(status)}:
                    self._leave(sentence, status)
                case {"bye": True}:
                    peer.done = True
                    self._over.set()
        if not peer.open:
            self._selector.unregister(peer.socket)
            if not peer.done:
                self._lost(peer.host, "has ended without a word (killed, or out of memory)")

    def _lost(self, host: int, reason: str) -> None:
        report = Report(reason, Stopped.status, lost=True)
        if self.index:
            self._leave(self._sentence(host, report), report.status)
        self._report(host, report)

    def _report(self, host: int, report: Report) -> None:
        self._since = self._since or time.monotonic()
        self._reports.setdefault(host, report)

    def _sentence(self, host: int, report: Report) -> str:
        name = f"host {host + 1} of {self.count}"
        if not report.lost:
            return f"{name} stopped: {report.reason}"
        onward: list[str] = []
        looking = threading.Thread(target=lambda: onward.append(self.onward()), daemon=True)
        looking.start()
        looking.join(LAST / 2)  # what is looked at may be on a disk that is gone as well
        return f"{name} {report.reason}; {onward[0] if onward else 'the same command goes on from what there is'}."

    def _decide(self, now: float) -> None:
        """Of the first host: ends the run where a host stopped, or all are done; says what others had to say."""
        for due, host, line in [entry for entry in self._told if entry[0] < now]:
            self._told.remove((due, host, line))
            if line not in self._own:
                self._own.add(line)
                log.warning("host %d of %d: %s", host + 1, self.count, line)
        if self._reports and (len(self._reports) == self.count or now - self._since > SETTLE):
            host, report = min(self._reports.items(), key=lambda item: item[1].lost)  # the first of its kind
            shared = len(set(self._reports.values())) == 1 and len(self._reports) == self.count
            sentence = report.reason if shared else self._sentence(host, report)
            for peer in self._peers:
                peer.send(end="" if shared else sentence, status=report.status)
            self._drain()
            self._leave(sentence, report.status)
        elif self._done < now and not self._over.is_set():
            late = [peer for peer in self._peers if not peer.done]
            for peer in [] if late else self._peers:
                peer.send(bye=True)
            for peer in late if now - self._done > LATE else []:
                self._lost(peer.host, f"has not come to an end {LATE:.0f} s after host 1 had")
            if not late:
                self._over.set()

    def _drain(self) -> None:
        """Waits until the others have read the last message: they then close their connections."""
        end = time.monotonic() + 2
        while self._selector.get_map() and time.monotonic() < end:
            for key, _ in self._selector.select(TICK):
                for _ in key.data.receive():
                    pass
                if not key.data.open:
                    self._selector.unregister(key.fileobj)

    def _leave(self, sentence: str, status: int) -> None:
        """Says the sentence and ends the process; the first to call this does."""
        if not self._leaving.acquire(blocking=False):
            time.sleep(2 * LAST)
        last = threading.Timer(LAST, os._exit, (status,))
        last.daemon = True
        last.start()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            if sentence:
                print(f"{self.command}: {sentence}", file=sys.stderr, flush=True)
        os._exit(status)
