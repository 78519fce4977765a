"""Weights of others: files, what describes them, indices of shards, addresses; each good but for some faults."""

from __future__ import annotations

import argparse
import collections
import copy
import io
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import hypothesis
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import strategies as st

from tests.fuzz import harness
from tests.fuzz.harness import Case, Content, Link, Sparse, damaged, json_values

Arrays = dict[str, np.ndarray]
VIT = {"patch": 4, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 16}
TEXT = {"vocab_size": 600, "length": 8, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 16, "end_id": 599}
PAIR = {
    "image_tower": {"name": "vit", **VIT, "patch_bias": False, "pre_norm": True},
    "text_tower": TEXT,
    "embed_dim": 8,
}
KINDS = (
    ("timm", "vit"),
    ("hf", "vit"),
    ("npz", "vit"),
    ("big_vision", "vit"),
    ("open_clip", "two_tower"),
    ("hf", "clip"),
)
PLACES = (
    "", ".", "..", "/", "/dev/null", "/dev/zero", "~", "~nobody/x", "x" * 300, "a/" * 3000, "\ud800", "é" * 200, "hf://",
    "hf://a", "hf://a/b", "hf://a/b@c/d", "hf://a/b@..", "hf://../../x", "hf://a/" + "b" * 300, "hf://a/b/" + "c" * 300,
    "hf://u:p@a/b", "hf://a/b?c#d", "http://127.0.0.1:9/a.npz", "https://127.0.0.1:9/a.npz", "https://u:p@127.0.0.1:9/a.npz",
    "https://", "https://[", "https://[::1", "http://h/a.npz", "ftp://h/a", "file:///etc/passwd", "memory://b/a.npz", "://",
    "https://127.0.0.1:99999/a.npz", "https://127.0.0.1:9/%00.npz", "https://127.0.0.1:9/" + "a" * 300 + ".npz", "gs://",
    "https://127.0.0.1:9/a.npz#sha256=x", "https://\ud800/a.npz", "vit_b16.augreg", "vit_b16.", "C:\\x", "a\nb", "-",
)  # fmt: skip


class Blob(bytes):
    """Content of a file that Hypothesis does not write out."""

    __repr__ = object.__repr__


class Named(dict[str, np.ndarray]):
    """Arrays that it does not write out either."""

    __repr__ = object.__repr__


class Good(list[tuple[Named, dict[str, Blob]]]):
    """Models: their arrays, and the files beside them."""

    __repr__ = object.__repr__


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Good:
    """A small model in each format: its arrays, and the files beside them."""
    from vit_jax import models
    from vit_jax.convert import Preprocess, Stored, write
    from vit_jax.io.tensors import Tensor, open_tensors
    from vit_jax.models import describe

    made = {
        "vit": models.create("vit", **VIT, num_classes=3),
        "two_tower": models.create("two_tower", **PAIR),
        "clip": models.create("clip_vit_b32", **PAIR),
    }
    out, rng = Good(), np.random.default_rng(0)
    for i, (to, kind) in enumerate(KINDS):
        target = tmp_path_factory.mktemp("good") / ("model.npz" if to in ("npz", "big_vision") else str(i))
        shapes = describe.shapes(made[kind], 8)
        params = {path: Tensor.of(rng.standard_normal(shape, np.float32)) for path, shape in shapes.items()}
        write.save(Stored(made[kind], params, Preprocess(8)), target, to)
        path = target if target.is_file() else next(target.glob("*.safetensors"))
        with open_tensors(path) as tensors:
            arrays = Named((name, np.array(tensor.read())) for name, tensor in tensors.items())
        beside = {p.name: Blob(p.read_bytes()) for p in path.parent.iterdir() if p != path}
        out.append((arrays, beside))
    return out


@st.composite
def odd_json(draw: Callable[..., Any], text: bytes) -> bytes:
    """A description with up to three values exchanged, left out or added, or damaged as bytes."""
    if draw(st.integers(0, 4)) == 0:
        return draw(damaged(st.just(text)))
    value = copy.deepcopy(json.loads(text))
    for _ in range(draw(st.integers(0, 3))):
        here = value
        while isinstance(here, dict) and here:
            key = draw(st.sampled_from(sorted(here)))
            if not isinstance(here[key], dict) or not here[key] or draw(st.booleans()):
                if draw(st.integers(0, 5)):
                    here[key] = draw(json_values())
                else:
                    del here[key]
                break
            here = here[key]
    return json.dumps(value).encode("utf-8", "surrogatepass")


@st.composite
def odd_arrays(draw: Callable[..., Any], arrays: Arrays) -> Arrays:
    """Up to three arrays renamed, dropped, of another shape or type, or of what is no number; a prefix on all."""
    out = dict(arrays)
    for _ in range(draw(st.integers(0, 3))):
        if not out:
            break
        name = draw(st.sampled_from(sorted(out)))
        x = out.pop(name)
        kind = draw(st.sampled_from(["drop", "name", "shape", "shape", "type", "nan", "scalar", "twice"]))
        if kind == "name":
            name = draw(
                st.sampled_from([name.replace("0", "9"), f"x.{name}", name[:-1], "", ".", "a/b", "é", "x" * 300])
            )
        elif kind == "shape":
            shape = [draw(st.sampled_from([0, 1, 2, 3, 4, 5, 9, 225])) for _ in range(draw(st.integers(0, 4)))]
            x = np.zeros(shape, x.dtype)
        elif kind == "type":
            x = np.zeros(x.shape, draw(st.sampled_from(["float16", "float64", "int8", "uint64", "bool"])))
        elif kind == "nan":
            x = np.full_like(x, draw(st.sampled_from([np.nan, np.inf, -1e38])))
        elif kind == "scalar":
            x = np.zeros((), x.dtype)
        elif kind == "twice":
            out[f"other.{name}"] = x
        if kind != "drop":
            out[name] = x
    prefix = draw(st.sampled_from(["", "", "", "module.", "state_dict.model.", "teacher.", "vision_model.", "params/"]))
    return {prefix + name: x for name, x in out.items()}


def encoded(arrays: Mapping[str, np.ndarray], name: str) -> bytes:
    if not name.endswith(".npz"):
        return safetensors.numpy.save(dict(arrays))
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


@st.composite
def weights(draw: Callable[..., Any], good: Good) -> Case:
    """A file or folder of weights, given to ``convert``."""
    arrays, beside = draw(st.sampled_from(good))
    arrays = draw(odd_arrays(arrays))
    names = (
        ["model.npz", "model.safetensors"]
        if "vit_jax.json" in beside
        else ["model.safetensors", "m", "m.ckpt", "m.pth"]
    )
    name = draw(st.sampled_from(names))
    try:
        data: Content = encoded(arrays, name)
    except (ValueError, OSError, UnicodeEncodeError):  # a name that no archive has
        data = b""
    if draw(st.integers(0, 2)) == 0:
        data = draw(damaged(st.just(Blob(data))))
    if draw(st.integers(0, 12)) == 0:
        data = draw(
            st.sampled_from([harness.FIFO, harness.FOLDER, Link("/dev/zero"), Link(name), Sparse(2**33), b"", b"{"])
        )
    files: dict[str, Content] = {f"w/{name}": data}
    for other, text in beside.items():
        if draw(st.integers(0, 5)):
            files[f"w/{other}"] = draw(odd_json(text)) if other.endswith(".json") else draw(damaged(st.just(text)))
    place = draw(st.sampled_from(["w", f"w/{name}"]))
    return Case(("convert", place, "out", "--to", draw(st.sampled_from(["vit_jax", "timm", "hf"]))), files)


@st.composite
def shards(draw: Callable[..., Any], good: Good) -> Case:
    """Weights in shards behind an index."""
    arrays, beside = good[1]
    kind = draw(st.sampled_from(["safetensors", "safetensors", "safetensors", "bin"]))
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names, parts = sorted(arrays), [f"{stem}-0000{i + 1}-of-00002.{kind}" for i in range(2)]
    where: dict[str, Any] = {name: parts[i % 2] for i, name in enumerate(names)}
    files: dict[str, Content] = {f"w/{name}": text for name, text in beside.items()}
    for i, part in enumerate(parts):
        data = safetensors.numpy.save({name: arrays[name] for name in names[i::2]})
        files[f"w/{part}"] = draw(damaged(st.just(Blob(data)))) if draw(st.integers(0, 3)) == 0 else data
    odd = ["../x", "/etc/passwd", "a/b", "\0", "", "x" * 300, parts[1], f"none.{kind}", "a\\b", 1, None, [], "\ud800"]
    for _ in range(draw(st.integers(0, 2))):
        where[draw(st.sampled_from([*names, "more", ""]))] = draw(st.sampled_from(odd))
    index = json.dumps({"metadata": {}, "weight_map": where}).encode()
    files[f"w/{stem}.{kind}.index.json"] = draw(odd_json(Blob(index)))
    if draw(st.integers(0, 5)) == 0:
        files[f"w/{parts[0]}"] = draw(
            st.sampled_from([Link("/etc/passwd"), Link("../out"), harness.FIFO, Sparse(2**33)])
        )
    return Case(("convert", "w", "out", "--to", "vit_jax"), files)


def addresses() -> st.SearchStrategy[Case]:
    """Places that are none, for each command that takes one."""
    place = st.one_of(st.sampled_from(PLACES), st.text(max_size=20), st.text(max_size=12).map("hf://{}".format),
                      st.text(max_size=12).map("https://127.0.0.1:9/{}".format))  # fmt: skip
    commands: tuple[Callable[[str], tuple[str, ...]], ...] = (
        lambda x: ("convert", x, "out", "--to", "timm"),
        lambda x: ("predict", "--checkpoint", x, "x.png"),
        lambda x: ("embed", "--checkpoint", x, "--output", "e.npy", "x.png"),
        lambda x: ("export", "--checkpoint", x, "--to", "stablehlo", "--out", "out"),
    )
    given = place.map(lambda x: x.replace("\0", "") if x.startswith("-") else x)
    return st.tuples(st.sampled_from(commands), given).map(lambda pair: Case(pair[0](pair[1])))


def test_a_few_of_each(server, good):
    harness.fuzz(server, st.one_of(weights(good), shards(good), addresses()), 12)


@pytest.mark.slow
def test_many_weights(server, good):
    harness.fuzz(server, weights(good), harness.LONG)


@pytest.mark.slow
def test_many_shards(server, good):
    harness.fuzz(server, shards(good), harness.LONG // 2)


@pytest.mark.slow
def test_many_addresses(server):
    harness.fuzz(server, addresses(), harness.LONG // 2)


@pytest.mark.slow
def test_many_checkpoints_of_pytorch(torch, good, tmp_path):
    """In this process: a child of the server would import PyTorch every time."""
    from vit_jax.convert import read
    from vit_jax.types import UserError

    arrays, _ = good[0]
    ends: collections.Counter[str] = collections.Counter()
    state = {name: torch.from_numpy(x) for name, x in arrays.items()}
    args = argparse.Namespace(lr=1e-3)
    whole = {"state_dict": {f"module.{name}": x for name, x in state.items()}, "epoch": 3, "args": args}
    files = []
    for tree, zipped in itertools.product((state, whole), (True, False)):
        torch.save(tree, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        files.append(Blob((tmp_path / "a.pth").read_bytes()))

    @hypothesis.settings(
        max_examples=harness.LONG,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.sampled_from(files).flatmap(lambda data: damaged(st.just(data))))
    def each(data: bytes) -> None:
        (tmp_path / "a.pth").write_bytes(data)
        try:
            with read.load(tmp_path / "a.pth") as found:
                found.tree()
            ends["accepted"] += 1
        except UserError as e:
            assert "\n" not in str(e)
            ends["refused"] += 1

    each()
    print(ends)
    assert ends["refused"] and ends["accepted"]
