"""Object stores on this machine for tests: moto's S3 behind a proxy that counts bytes and fails on purpose."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import http.client
import http.server
import logging
import threading
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass
class Proxy:
    """What went through, and what is to fail.

    Attributes:
      fail: every so many requests one fails, in turn by status 503 and by a connection that breaks off; 0 is never.
      failed: requests that did.
      sent: object -> bytes of its content that were sent to the client.
      requests: (method, path with query, range or "") of each request that reached the store.
    """

    fail: int = 0
    failed: int = 0
    count: int = 0
    sent: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    requests: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    lock: Any = dataclasses.field(default_factory=threading.Lock)
    url: str = ""

    def fate(self) -> str:
        """What becomes of the next request: "", "503" or "reset"."""
        with self.lock:
            self.count += 1
            if not self.fail or self.count % self.fail:
                return ""
            self.failed += 1
            return "503" if self.failed % 2 else "reset"

    def forget(self) -> None:
        """Starts counting anew."""
        self.sent.clear()
        self.requests.clear()


@contextlib.contextmanager
def proxied(port: int) -> Iterator[Proxy]:
    """A proxy in front of a server of HTTP on this machine."""
    state = Proxy()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def serve(self) -> None:
            length = self.headers.get("Content-Length")
            body = self.rfile.read(int(length)) if length else self._chunks()
            fate = state.fate()
            if fate == "reset":
                self.close_connection = True
                self.connection.shutdown(2)
                return
            if fate == "503":
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            with state.lock:
                state.requests.append((self.command, self.path, self.headers.get("Range", "")))
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "connection")}
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            upstream.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            answer = upstream.getresponse()
            data = answer.read()
            upstream.close()
            self.send_response(answer.status)
            for key, value in answer.getheaders():
                if key.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                    self.send_header(key, value)
            size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", size or "0")
            self.end_headers()
            if self.command == "GET" and answer.status in (200, 206):
                with state.lock:
                    state.sent[self.path.partition("?")[0].lstrip("/")] += len(data)
            self.wfile.write(data)

        def _chunks(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return b""
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = serve

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def s3(bucket: str) -> Iterator[tuple[Proxy, dict[str, str]]]:
    """An empty bucket of S3, and the variables by which clients find it."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    try:
        with proxied(port) as proxy:
            variables = {
                "AWS_ENDPOINT_URL": proxy.url,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            client = boto3.client(
                "s3",
                endpoint_url=f"http://127.0.0.1:{port}",
                region_name="us-east-1",
                aws_access_key_id="test",
                aws_secret_access_key="test",
            )
            client.create_bucket(Bucket=bucket)
            yield proxy, variables
    finally:
        server.stop()
