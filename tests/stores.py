"""Object stores on this machine for tests, behind a proxy that counts bytes and fails on purpose."""

from __future__ import annotations

import base64
import collections
import contextlib
import dataclasses
import hashlib
import http.client
import http.server
import itertools
import json
import logging
import re
import threading
import urllib.parse
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


@contextlib.contextmanager
def gcs(bucket: str) -> Iterator[tuple[Proxy, dict[str, str]]]:
    """An empty bucket of Google Cloud Storage, as far as its JSON API is asked for here, behind a proxy as of S3."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _gcs_handler(bucket))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with proxied(server.server_port) as proxy:
            yield proxy, {"STORAGE_EMULATOR_HOST": proxy.url, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _gcs_handler(bucket: str) -> type[http.server.BaseHTTPRequestHandler]:
    objects: dict[str, tuple[bytes, int]] = {}
    counter = itertools.count(1)
    lock = threading.Lock()

    def about(name: str) -> dict[str, Any]:
        data, generation = objects[name]
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        size, number = str(len(data)), str(generation)
        kind = {"kind": "storage#object", "contentType": "application/octet-stream"}
        return kind | {"name": name, "bucket": bucket, "size": size, "generation": number, "md5Hash": md5}

    def listing(query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for name in sorted(objects):
            rest = name.removeprefix(prefix)
            if name.startswith(prefix) and delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
            elif name.startswith(prefix):
                items.append(about(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, body: Any = b"", **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(data))}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)

        def refuse(self, status: int, why: str) -> None:
            self.answer(status, {"error": {"code": status, "message": why}})

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            address = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(address.query))
            place = re.fullmatch(
                r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/([^/]*))?)?(?:/(.*))?", address.path
            )
            if place is None or place[2] != bucket:
                return self.refuse(404, "The specified bucket does not exist.")
            name = urllib.parse.unquote(place[3] or "")
            with lock:
                self.serve(place[1] or "", name, place[4] or "", query, body)

        def serve(self, kind: str, name: str, rest: str, query: dict[str, str], body: bytes) -> None:
            if kind == "/upload":
                return self.store(query, body)
            if self.command == "GET" and not name:
                return self.answer(200, listing(query))
            if name not in objects:
                return self.refuse(404, f"No such object: {bucket}/{name}")
            if self.command == "DELETE":
                del objects[name]
                return self.answer(204)
            if self.command == "POST" and rest.startswith(("rewriteTo", "copyTo")):
                target = urllib.parse.unquote(rest.rpartition("/o/")[2])
                objects[target] = objects[name][0], next(counter)
                return self.answer(200, {"kind": "storage#rewriteResponse", "done": True, "resource": about(target)})
            if query.get("alt") != "media":
                return self.answer(200, about(name))
            data = objects[name][0]
            if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
                if first >= len(data):
                    return self.refuse(416, "out of range")
                span = {"Content_Range": f"bytes {first}-{last}/{len(data)}"}
                return self.answer(206, data[first : last + 1], **span)
            return self.answer(200, data)

        def store(self, query: dict[str, str], body: bytes) -> None:
            name = query.get("name", "")
            if query.get("uploadType") == "multipart":
                mark = re.search(r"boundary=['\"]?([^'\";]+)", self.headers["Content-Type"])
                assert mark
                parts = body.split(b"--" + mark[1].encode())[1:3]
                about_it, data = (
                    part.lstrip(b"\r\n").partition(b"\n\n" if b"\n\n" in part else b"\r\n\r\n") for part in parts
                )
                name, body = json.loads(about_it[2])["name"], re.sub(rb"\r?\n\Z", b"", data[2])
            if query.get("ifGenerationMatch") == "0" and name in objects:
                return self.refuse(412, "At least one of the pre-conditions you specified did not hold.")
            objects[name] = body, next(counter)
            return self.answer(200, about(name))

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do

    return Handler
