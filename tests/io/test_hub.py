"""``hf://`` against a hub on this machine's loopback interface that can be told to fail."""

import contextlib
import hashlib
import json
import pathlib
import threading

import numpy as np
import pytest

from tests.hub_server import commit_of, serving
from vit_jax.io import hub as hub_module
from vit_jax.io.hub import choose
from vit_jax.io.remote import fetch
from vit_jax.io.tensors import Tensor, open_tensors, write_safetensors
from vit_jax.types import UserError

REPO = "org/vit"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(tmp_path / "home", monkeypatch) as found:
        yield found


def weights(folder, value=1.0):
    write_safetensors(folder / "x", {"a": Tensor.of(np.full(1000, value, np.float32))}, {})
    return (folder / "x").read_bytes()


@pytest.fixture
def repo(hub, tmp_path):
    """The files of ``org/vit`` at main; ``old`` is another revision."""
    files = {
        "README.md": b"# ViT",
        "config.json": b'{"architecture": "vit"}',
        "preprocessor_config.json": b'{"size": 224}',
        "tokenizer.json": b"{}",
        "model.safetensors": weights(tmp_path),
        "pytorch_model.bin": b"no pickle",
        "onnx/model.npz": b"another",
    }
    hub.repos[REPO] = {"main": files, "old": files | {"model.safetensors": weights(tmp_path, 2.0)}}
    return files


def refused(source, *words):
    with pytest.raises(UserError) as e:
        fetch(source)
    message = str(e.value)
    assert "\n" not in message and message.endswith((".", "?")), message
    for word in (repr(source), *words):
        assert word in message, message


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def value(path):
    with open_tensors(path) as tensors:
        return tensors["a"].read()[0]


def cached(tmp_path):
    """Files in the cache, unfinished ones included."""
    return sorted(p.name for p in (tmp_path / "home" / "hub").glob("*/blobs/*"))


def test_a_repository_in_our_own_format(hub, monkeypatch):
    """Its newest checkpoint and the configuration, and nothing of older ones."""
    files = {f"checkpoints/{step}/params/{name}": b"%d" % step for step in (9, 12) for name in ("_METADATA", "d/x")}
    hub.repos[REPO] = {"main": {**files, "config.json": b"{}", "README.md": b"# ViT", "curves.png": b"x"}}
    folder = fetch(f"hf://{REPO}")
    wanted = ["checkpoints/12/params/_METADATA", "checkpoints/12/params/d/x", "config.json"]
    assert names(folder) == wanted and (folder / wanted[1]).read_bytes() == b"12"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(f"hf://{REPO}") == folder


def test_a_repository(hub, repo, tmp_path):
    folder = fetch(f"hf://{REPO}")
    assert names(folder) == ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"]
    assert folder.is_relative_to(tmp_path / "home" / "hub") and folder.name == commit_of(repo)
    assert value(folder / "model.safetensors") == 1
    before = [r for r in hub.requests if r[0] == "GET"]
    assert fetch(f"hf://{REPO}/") == folder
    again = [r for r in hub.requests if r[0] == "GET"][len(before) :]
    assert all(path.startswith("/api/") for _, path in again)  # no file a second time


def test_a_revision_and_a_file(hub, repo):
    assert value(fetch(f"hf://{REPO}@old") / "model.safetensors") == 2
    assert value(fetch(f"hf://{REPO}@old/model.safetensors")) == 2
    assert value(fetch(f"hf://{REPO}/model.safetensors")) == 1
    hub.repos[REPO] |= {"a/b": hub.repos[REPO]["old"], "refs/pr/1": hub.repos[REPO]["old"]}
    assert value(fetch(f"hf://{REPO}@a%2Fb/model.safetensors")) == 2
    assert value(fetch(f"hf://{REPO}@refs/pr/1/model.safetensors")) == 2


def test_a_file_in_a_folder(hub, repo, monkeypatch):
    repo["onnx/preprocessor_config.json"] = b"{}"
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    path = fetch(f"hf://{REPO}/onnx/model.npz")
    assert path.read_bytes() == b"another" and path.parent.name == "onnx"
    beside = {"config.json", "preprocessor_config.json", "onnx/preprocessor_config.json", "tokenizer.json"}
    assert set(names(path.parents[1])) == beside | {"onnx/model.npz"}
    assert all("//" not in asked for _, asked in hub.requests)


def test_shards_come_with_their_index(hub, tmp_path):
    shard, index = "model-00001-of-00001.safetensors", "model.safetensors.index.json"
    files = {
        index: json.dumps({"weight_map": {"a": shard}}).encode(),
        shard: weights(tmp_path, 3.0),
        "config.json": b"{}",
    }
    hub.repos[REPO] = {"main": files | {"other-00001-of-00001.safetensors": b"", "pytorch_model.bin": b""}}
    folder = fetch(f"hf://{REPO}")
    assert names(folder) == sorted(files)
    assert value(folder / index) == 3
    assert fetch(f"hf://{REPO}/{index}") == folder / index


def test_shards_of_pytorchs_come_too(hub, tmp_path):
    files = {f"pytorch_model-0000{i}-of-00002.bin": b"x" for i in (1, 2)} | {"pytorch_model.bin.index.json": b"{}"}
    hub.repos[REPO] = {"main": files | {"training_args.bin": b""}}
    assert names(fetch(f"hf://{REPO}")) == sorted(files)


def test_names_that_no_file_has(hub, repo):
    for source in (f"hf://{REPO}/{'x' * 250}", f"hf://{'x' * 150}/{'y' * 150}", f"hf://{REPO}@{'z' * 300}"):
        refused(source, "more than 200 bytes")
    assert hub.requests == []


def test_more_than_may_be_fetched(hub, repo, monkeypatch):
    monkeypatch.setenv("VIT_JAX_MAX_DOWNLOAD", "1")
    refused(f"hf://{REPO}", "has more than 1 bytes; VIT_JAX_MAX_DOWNLOAD=BYTES allows more")


@pytest.mark.parametrize("why", ["offline", "gone", "broken", "nonsense"])
def test_what_is_cached_needs_no_connection(hub, repo, monkeypatch, caplog, why):
    sources = [f"hf://{REPO}", f"hf://{REPO}/model.safetensors", f"hf://{REPO}@{commit_of(repo)}"]
    first = [fetch(source) for source in sources]
    assert not caplog.messages
    hub.requests.clear()
    if why == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif why == "gone":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    elif why == "broken":
        hub.status["/"] = 500
    else:
        hub.status["/"] = 200  # a page where JSON should be
    assert [fetch(source) for source in sources] == first
    assert len(caplog.messages) == 3
    said = f"using model.safetensors of the cached revision {commit_of(repo)[:12]}"
    assert all(said in message for message in caplog.messages)
    if why in ("offline", "gone"):
        assert hub.requests == []
    for source in (f"hf://{REPO}@old", "hf://org/other", f"hf://{REPO}/onnx/model.npz"):
        refused(source, "is not in the cache", "try again with a connection")


def test_an_interrupted_fetch_leaves_nothing_to_be_mistaken(hub, repo):
    hub.status["config.json"] = 500
    refused(f"hf://{REPO}", "cannot be fetched", "500", "try again", "HF_HUB_OFFLINE=1")
    hub.status = {"/": 500}  # now all of it is gone: weights without what describes them must not be used
    refused(f"hf://{REPO}", "is not in the cache")


def test_what_does_not_exist(hub, repo):
    refused("hf://org/vjt", "does not exist at http://127.0.0.1", "HF_TOKEN")
    refused(f"hf://{REPO}@new", "no such revision")
    refused(f"hf://{REPO}/model.safetensor", "has no file 'model.safetensor'; did you mean 'model.safetensors'?")
    hub.repos[REPO]["main"] = {}
    refused(f"hf://{REPO}/model.safetensors", "has no file 'model.safetensors'.")
    refused(f"hf://{REPO}", "holds no weights", "but nothing")
    hub.repos[REPO]["main"] = {"README.md": b"", "tf_model.h5": b""}
    refused(f"hf://{REPO}", "holds no weights", "but README.md, tf_model.h5")
    hub.repos[REPO]["main"] = {"a.safetensors": b"", "b.safetensors": b""}
    refused(f"hf://{REPO}", "several weights; name one of them: a.safetensors, b.safetensors")


def test_a_file_that_is_listed_and_not_there(hub, repo):
    hub.status["config.json"] = 404
    hub.headers["config.json"] = {"X-Error-Code": "EntryNotFound"}
    refused(f"hf://{REPO}", "changed while it was fetched (a file is gone)")


def test_what_may_not_be_read(hub, repo):
    hub.status["/resolve/"] = 403
    refused(f"hf://{REPO}", "gated or private", "HF_TOKEN")
    hub.status["/resolve/"] = 401
    refused(f"hf://{REPO}", "is private", "HF_TOKEN")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_wrong_checksum(hub, repo, tmp_path, name):
    hub.wrong.add(name)
    refused(f"hf://{REPO}", f"the checksum of {name} is wrong", "it was removed")
    digests = {hashlib.sha256(c).hexdigest() for c in repo.values()}
    digests |= {hashlib.sha1(b"blob %d\0" % len(c) + c).hexdigest() for c in repo.values()}
    for path in (tmp_path / "home" / "hub").glob("*/blobs/*"):
        content = path.read_bytes()
        assert path.name in digests and content in repo.values()
    assert not any(p.name == name for p in (tmp_path / "home").rglob("*"))
    hub.wrong.clear()
    assert value(fetch(f"hf://{REPO}") / "model.safetensors") == 1


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("offline", [False, True])
def test_a_cache_that_was_damaged(hub, repo, monkeypatch, name, offline):
    path = fetch(f"hf://{REPO}") / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.resolve().write_bytes(content)
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(f"hf://{REPO}", f"the checksum of {name} is wrong")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert (fetch(f"hf://{REPO}") / name).read_bytes() == repo[name]


def test_a_connection_that_breaks(hub, repo, tmp_path):
    hub.drops["model.safetensors"] = 2
    assert value(fetch(f"hf://{REPO}/model.safetensors")) == 1
    assert hub.drops["model.safetensors"] == 0


def test_a_connection_that_always_breaks(hub, repo, tmp_path):
    hub.repos[REPO]["main"]["model.safetensors"] = b"x"  # half of which is nothing
    hub.drops["model.safetensors"] = 10**9
    refused(f"hf://{REPO}/model.safetensors", "cannot be fetched", "try again")
    assert not any(p.name == "model.safetensors" for p in (tmp_path / "home").rglob("*"))


def test_a_hub_that_breaks(hub, repo, monkeypatch):
    hub.status["/cdn/"] = 500
    refused(f"hf://{REPO}", "cannot be fetched", "500", "try again")
    hub.status = {"/api/": 500}
    refused(f"hf://{REPO}@old", "500", "is not in the cache")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused("hf://org/other", "http://127.0.0.1:9 does not answer", "is not in the cache")


def test_a_repository_that_changes_while_it_is_fetched(hub, repo, monkeypatch):
    answer = hub.answer

    def change(method, path):
        if path.endswith("model.safetensors"):
            hub.repos[REPO]["main"] = repo | {"README.md": b"new"}
        return answer(method, path)

    monkeypatch.setattr(hub, "answer", change)
    refused(f"hf://{REPO}", "changed while it was fetched")
    assert value(fetch(f"hf://{REPO}") / "model.safetensors") == 1


def test_a_cache_that_cannot_be_written(hub, repo, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    refused(f"hf://{REPO}", "cannot be kept in the cache", str(tmp_path / "file"), "Not a directory")


def test_a_slow_hub(hub, repo, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.05)
    wait = threading.Event()
    answer = hub.answer
    monkeypatch.setattr(hub, "answer", lambda *args: (wait.wait(10), answer(*args))[1])
    try:
        refused(f"hf://{REPO}", "timed out", "is not in the cache")
    finally:
        wait.set()


@pytest.mark.parametrize(
    "file", ["../x.npz", "a/../../x.npz", "/etc/passwd", "a//b.npz", "..\\x.npz", "C:/x.npz", "a/./b.npz", ".."]
)
def test_a_name_stays_in_the_cache(hub, repo, tmp_path, file):
    refused(f"hf://{REPO}/{file}", "leads out of its folder")
    assert hub.requests == []
    hub.repos[REPO]["main"] = {file: b"evil"}
    with pytest.raises(UserError):
        fetch(f"hf://{REPO}")
    assert not cached(tmp_path)


def test_a_listing_stays_in_the_cache(hub, repo, tmp_path):
    for name in ("..\\..\\evil.npz", "c:evil.npz"):
        hub.repos[REPO]["main"] = {name: b"evil"}
        refused(f"hf://{REPO}", "leads out of its folder")
    assert not cached(tmp_path)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Linked-Etag": '"../../../../evil"', "X-Linked-Size": "9"},
        {"X-Linked-Etag": '"/tmp/evil"'},
        {"X-Repo-Commit": "../../../evil"},
        {"X-Repo-Commit": ".."},
        {"X-Linked-Etag": '""'},
    ],
)
def test_an_answer_stays_in_the_cache(hub, repo, tmp_path, headers):
    hub.headers["model.safetensors"] = headers
    refused(f"hf://{REPO}/model.safetensors", "was not fetched")
    assert not [p for p in tmp_path.rglob("*") if "evil" in p.name]


def test_files_without_a_checksum_are_named(hub, repo, caplog):
    hub.headers["/config.json"] = {"ETag": '"of-some-mirror"'}
    fetch(f"hf://{REPO}")
    assert ["no checksum is known of config.json" in m for m in caplog.messages] == [True]


@pytest.mark.parametrize("source", ["hf://", "hf://vit", "hf:///vit", "hf://org/", "hf://org/vit@", "hf://a b/c"])
def test_sources_that_cannot_be_read(hub, source):
    refused(source, "cannot be read; write hf://ORG/NAME")
    assert hub.requests == []


@pytest.mark.parametrize("source", ["hf://../..", "hf://./vit", "hf://org/vit@..", "hf://org/vit@a%2F..%2Fb"])
def test_repositories_stay_in_the_cache(hub, source):
    refused(source, "leads out of its folder")
    assert hub.requests == []


def test_a_name_that_the_hub_does_not_allow(hub):
    refused("hf://org--x/vit", "cannot be the name of a repository")


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (["a.npz", "b.safetensors", "model.safetensors"], "model.safetensors"),
        (["model.safetensors.index.json", "model-00001-of-00001.safetensors"], "model.safetensors.index.json"),
        (["a.npz", "timm.safetensors", "x/model.safetensors"], "timm.safetensors"),
        (["a.npz", "pytorch_model.bin"], "a.npz"),
        (["model-00001-of-00002.safetensors", "a.npz"], "a.npz"),
        (["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"], "pytorch_model.bin.index.json"),
        (["model_best.pth.tar", "args.yaml"], "model_best.pth.tar"),
        (["training_args.bin", "pytorch_model.bin", "a.pth"], "pytorch_model.bin"),
        (["open_clip_pytorch_model.bin", "config.json"], "open_clip_pytorch_model.bin"),
        (["dino.pth", "README.md"], "dino.pth"),
    ],
)
def test_which_file_holds_the_weights(there, expected):
    assert choose(there, "it") == choose(there[::-1], "it") == expected


def test_the_cache_is_where_the_library_has_it(monkeypatch, tmp_path):
    from huggingface_hub import constants

    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    assert hub_module._cache() == pathlib.Path(constants.HF_HUB_CACHE).resolve()
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert hub_module._cache() == tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "c"))
    assert hub_module._cache() == tmp_path / "c"


def test_a_cache_behind_a_link(hub, repo, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "link"))
    hub.wrong.add("model.safetensors")
    refused(f"hf://{REPO}", "checksum")
    hub.wrong.clear()
    with contextlib.chdir(tmp_path):
        assert value(fetch(f"hf://{REPO}") / "model.safetensors") == 1
