"""A Hugging Face hub on this machine's loopback interface that can be told to fail."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

import yaml

LARGE = (".safetensors", ".npz", ".bin")
TOKEN = "hf_of_this_test"
"""Who has it may write."""


class Hub:
    """Repositories as ``{repo: {revision: {file: content}}}``, and what is wrong with them."""

    def __init__(self):
        self.repos = {}
        self.requests = []
        self.status = {}  # part of a path -> HTTP status of every answer
        self.headers = {}  # part of a path -> headers that replace the true ones
        self.wrong = set()  # names of files that are not what they should be
        self.drops = {}  # name -> how many answers break off halfway
        self.url = self.cdn = self.refuses = ""
        self.private, self.validated, self.commits = set(), [], []

    def answer(self, method, path):
        """(status, headers, body, name of the file) of a request."""
        self.requests.append((method, path))
        path = path.partition("?")[0]
        for part, status in self.status.items():
            if part in path:
                code = {"X-Error-Code": "GatedRepo"} if status == 403 else {}
                return status, code, b"broken", ""
        if path.startswith("/cdn/"):
            files = [f for revisions in self.repos.values() for r in revisions.values() for f in r.items()]
            name, content = next((n, c) for n, c in files if hashlib.sha256(c).hexdigest() == path[5:])
            return 200, {"ETag": '"of the server"'}, content, name
        repo, revision, name = (part and urllib.parse.unquote(part) for part in self.parse(path))
        if repo not in self.repos:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"", ""
        revisions = self.repos[repo] | {commit_of(files): files for files in self.repos[repo].values()}
        if revision not in revisions:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"", ""
        files = revisions[revision]
        commit = commit_of(files)
        if name is None:
            siblings = [{"rfilename": name} for name in files]
            about = {"id": repo, "sha": commit, "private": repo in self.private, "siblings": siblings}
            return 200, {}, json.dumps(about).encode(), ""
        if name not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b"", ""
        content = files[name]
        if name.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            link = {
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"{self.cdn}/cdn/{digest}",
            }
            return 302, {"X-Repo-Commit": commit, **link}, b"", ""
        digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}, content, name

    def write(self, path, body, headers):
        """(status, headers, body) of a request that changes something: what is committed can be read afterwards."""
        self.requests.append(("POST", path))
        for part, status in self.status.items():
            if part in path:
                return status, {}, b"not allowed"
        given = [json.loads(line) for line in body.splitlines()]
        if path == "/api/validate-yaml":
            self.validated.append(given[0])
            wrong = self.refuses or problem(given[0]["content"])
            return (400, {}, wrong.encode()) if wrong else (200, {}, b"{}")
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {}, b"who are you?"
        if path == "/api/repos/create":
            repo = f"{given[0].get('organization') or 'me'}/{given[0]['name']}"
            if repo in self.repos:
                return 409, {}, json.dumps({"url": f"{self.url}/{repo}"}).encode()
            self.repos[repo] = {"main": {}}
            self.private |= {repo} if given[0].get("visibility") == "private" else set()
            return 200, {}, json.dumps({"url": f"{self.url}/{repo}"}).encode()
        repo = path.removeprefix("/api/models/").partition("/preupload/")[0].partition("/commit/")[0]
        if "/preupload/" in path:
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in given[0]["files"]]
            return 200, {}, json.dumps({"files": modes}).encode()
        if "/commit/" in path:
            files = {f["value"]["path"]: base64.b64decode(f["value"]["content"]) for f in given if f["key"] == "file"}
            self.repos[repo]["main"] = self.repos[repo]["main"] | files
            self.commits.append((repo, given[0]["value"]["summary"], sorted(files)))
            oid = commit_of(self.repos[repo]["main"])
            return 200, {}, json.dumps({"commitUrl": f"{self.url}/{repo}/commit/{oid}", "commitOid": oid}).encode()
        return 404, {}, b""

    @staticmethod
    def parse(path):
        if path.startswith("/api/models/"):
            repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            return repo, revision or "main", None
        repo, _, rest = path[1:].partition("/resolve/")
        revision, _, name = rest.partition("/")
        return repo, revision, name


def problem(card):
    """What the hub would say of a card's metadata, "" for nothing: of what these cards have, the rules that it states.

    They are those of https://github.com/huggingface/hub-docs/blob/main/modelcard.md and of the messages that it gives.
    """
    found = yaml.safe_load(card.split("---\n")[1])
    repo, words = r"[\w-]+/[\w.-]+", {}
    words["license"] = [(found.get("license"), r"apache-2\.0|mit|cc-by-4\.0|other|unknown")]
    words["library_name"] = [(found.get("library_name"), r"[\w.-]+")]
    words["pipeline_tag"] = [(found.get("pipeline_tag"), "(zero-shot-)?image-classification|image-feature-extraction")]
    words["tags"] = [(tag, r".+") for tag in found.get("tags", ["x"])]
    words["datasets"] = [(name, repo) for name in found.get("datasets", ["a/b"])]
    words["base_model"] = [(found.get("base_model", "a/b"), repo)]
    for model in found.get("model-index", ()):
        words["model-index.name"] = [(model["name"], r"[\w.-]+")]
        for row in model["results"]:
            words["task.type"] = [(row["task"]["type"], r"[a-z-]+")]
            words["dataset.type"] = [(row["dataset"]["type"], r"(?:[\w-]+/)?[\w.-]+")]
            words["dataset.name"] = [(row["dataset"]["name"], ".+")]
            words["metrics"] = [(m["type"], r"[\w.-]+") for m in row["metrics"]]
            words["value"] = [(str(m["value"]), r"-?[\d.]+") for m in row["metrics"]]
    wrong = [(k, v) for k, pairs in words.items() for v, pattern in pairs if not re.fullmatch(pattern, str(v or ""))]
    return "".join(f'"{key}" with value "{value}" fails to match the required pattern\n' for key, value in wrong)


def commit_of(files):
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        hub = self.server.hub
        status, headers, body, name = hub.answer(self.command, self.path)
        for part, others in hub.headers.items():
            if part in self.path:
                headers = headers | others
        if name in hub.wrong:
            body = body[:-1] + b"!"
        start = 0
        if status == 200 and (ranged := self.headers.get("Range")):
            start = int(ranged.removeprefix("bytes=").rstrip("-"))
            headers = headers | {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            status = 206
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body) - start), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            body = body[start:]
            if hub.drops.get(name, 0):
                hub.drops[name] -= 1
                body = body[: len(body) // 2]
            self.wfile.write(body)

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, headers, answer = self.server.hub.write(self.path, body, self.headers)
        self.send_response(status)
        for key, value in {"Content-Length": str(len(answer)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(home, monkeypatch):
    """A hub, and a cache in ``home`` that is empty; the library's connections are closed afterwards."""
    import huggingface_hub
    from huggingface_hub import constants

    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False  # so that closing the server waits for them
    server.hub = Hub()
    server.hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.hub.cdn = server.hub.url.replace("127.0.0.1", "localhost")  # large files come from another host
    server.hub.server = server
    monkeypatch.setenv("HF_ENDPOINT", server.hub.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.hub.url)  # as both are where a process begins
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the library's attempts
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    huggingface_hub.close_session()
    before = set(threading.enumerate())
    try:
        yield server.hub
    finally:
        huggingface_hub.close_session()
        server.shutdown()
        server.server_close()
        thread.join()
    assert not [t for t in set(threading.enumerate()) - before if not t.daemon]
