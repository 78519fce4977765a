"""PyTorch's files: what it saves comes back bit for bit, and nothing but tensors is ever built."""

import argparse
import collections
import fractions
import json
import os
import pathlib
import re
import sys
import types
import warnings

import ml_dtypes
import numpy as np
import pytest

from vit_jax.io.pytorch import NO_ARRAY
from vit_jax.io.tensors import open_tensors
from vit_jax.types import UserError


def read(path):
    with open_tensors(path) as tensors:
        for tensor in tensors.values():
            array = tensor.read()
            assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype)
        return {name: np.array(tensor.read()) for name, tensor in tensors.items()}


def refused(path, *words):
    with pytest.raises(UserError) as e, open_tensors(path):
        pass
    message = str(e.value)
    assert "\n" not in message and message.endswith((".", "?")) and " ()" not in message, message
    assert "weights_only" not in message and "eights only" not in message, message  # PyTorch's advice to run the code
    for word in words:
        assert word in message, message


@pytest.fixture
def state(torch):
    torch.manual_seed(0)
    weight = torch.randn(3, 4)
    return collections.OrderedDict(
        {
            "blocks.0.attn.qkv.weight": weight,
            "tied": weight,
            "transposed": weight.T,
            "part": weight[1:, ::2],
            "parameter": torch.nn.Parameter(torch.randn(2)),
            "half": torch.randn(3).half(),
            "brain": torch.tensor([[1.5, -2.0, 3e38]], dtype=torch.bfloat16).T,
            "double": torch.tensor(0.1, dtype=torch.float64),
            "num_batches_tracked": torch.tensor(7),
            "mask": torch.tensor([True, False]),
            "none": torch.zeros(0, 3),
        }
    )


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_torch_saves(tmp_path, torch, state, suffix, zipped):
    path = tmp_path / f"a.{suffix}"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    found = read(path)
    assert set(found) == set(state)
    for name, tensor in state.items():
        expected = tensor.detach().float().numpy() if name == "brain" else tensor.detach().numpy()
        assert found[name].dtype == (ml_dtypes.bfloat16 if name == "brain" else expected.dtype)
        np.testing.assert_array_equal(found[name].astype(expected.dtype), expected, strict=True)


def test_the_data_stay_in_the_file(tmp_path, torch):
    torch.save({"a": torch.arange(1000)}, tmp_path / "a.pth")
    with open_tensors(tmp_path / "a.pth") as tensors:
        one, two = tensors["a"].read(), tensors["a"].read()
        assert np.shares_memory(one, two)
        with open("/proc/self/maps") as f:
            assert str(tmp_path / "a.pth") in f.read()


def test_tensors_are_named_by_the_keys_that_lead_to_them(tmp_path, torch):
    one = torch.ones(1)
    shared = {"x": one}
    content = {
        "epoch": 3, "none": None, "best": one, "state_dict": {"module.a": one, "b": {"c": one}}, "list": [one],
        "optimizer": {"state": {0: {"exp_avg": one}}, "param_groups": [{"lr": 1.0}]}, "ema": shared, "again": shared,
    }  # fmt: skip
    torch.save(content, tmp_path / "a.pth")
    assert list(read(tmp_path / "a.pth")) == [
        "best", "state_dict.module.a", "ema.x", "state_dict.b.c", "optimizer.state.0.exp_avg"
    ]  # fmt: skip
    torch.save({"a": {"b.c": one}, "a.b": {"c": one}}, tmp_path / "b.pth")
    refused(tmp_path / "b.pth", "holds two tensors called 'a.b.c'")
    deep = {"x": one}
    for _ in range(20):
        deep = {"d": deep}
    torch.save(deep, tmp_path / "c.pth")
    refused(tmp_path / "c.pth", "nests more than 16 dictionaries")


@pytest.mark.parametrize("name", ["a.ckpt", "a.pth.tar", "model_best.tar", "weights"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_names_of_checkpoints(tmp_path, torch, name, zipped):
    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    np.testing.assert_array_equal(read(tmp_path / name)["state_dict.a"], [1, 1])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_settings_beside_the_weights_are_not_built(tmp_path, torch, zipped, monkeypatch):
    """What training programs keep besides: their arguments, a path, figures of NumPy's."""
    args = argparse.Namespace(lr=1e-3, nested=argparse.Namespace(betas=(0.9, 0.95)), out=pathlib.Path("runs"))
    kept = {"args": args, "metric": np.float64(76.5), "names": types.SimpleNamespace(a=1), "step": np.int32(3)}
    torch.save({"model": {"a": torch.ones(2)}, **kept}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    monkeypatch.setattr(argparse.Namespace, "__init__", lambda *args, **kw: pytest.fail("it was built"))
    monkeypatch.setattr(argparse.Namespace, "__setattr__", lambda *args: pytest.fail("it was built"))
    assert list(read(tmp_path / "a.pth")) == ["model.a"]
    assert "argparse.Namespace" not in str(torch.serialization.get_safe_globals())


@pytest.fixture
def shards(tmp_path, torch, state):
    """A function that saves ``state`` in two shards, as Hugging Face does, and more in the second: gives the index."""

    def save(more, zipped):
        names, files = sorted(state), [f"pytorch_model-{i}-of-00002.bin" for i in ("00001", "00002")]
        where = {name: files[i % 2] for i, name in enumerate(names)} | dict.fromkeys(more, files[1])
        for file in files:
            there = {name: (state | more)[name] for name in where if where[name] == file}
            torch.save(there, tmp_path / file, _use_new_zipfile_serialization=zipped)
        index = tmp_path / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
        return index

    return save


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_shards(tmp_path, torch, state, shards, zipped):
    found = read(shards({}, zipped))
    torch.save(state, tmp_path / "whole.bin")
    whole = read(tmp_path / "whole.bin")
    assert found.keys() == whole.keys() == state.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_one_shard_that_is_more_than_tensors_stops_all(tmp_path, shards, zipped):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    index = shards({"late": Trap()}, zipped)
    shard = "pytorch_model-00002-of-00002.bin"
    refused(index, f"{shard} holds more than tensors", "posix.mkdir")
    assert not (tmp_path / "opened").exists()
    (tmp_path / shard).write_bytes((tmp_path / shard).read_bytes()[:100])
    refused(index, f"{shard} cannot be read as a PyTorch file", "get it again")
    (tmp_path / shard).unlink()
    refused(index, f"{shard}' does not exist")
    index.write_text(json.dumps({"weight_map": {"a": "../out.bin"}}))
    refused(index, "only plain names of .bin files")
    index.write_text(json.dumps({"weight_map": {"a": "a.pth"}}))
    refused(index, "only plain names of .bin files")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_more_than_tensors_is_not_opened(tmp_path, torch, zipped):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    hidden = argparse.Namespace(lr=Trap())  # whose fields are not let in for it
    for name, extra in (
        ("fractions.Fraction", fractions.Fraction(1, 3)),
        ("posix.mkdir", Trap()),
        ("posix.mkdir", hidden),
    ):
        torch.save(
            {"model": {"a": torch.ones(1)}, "args": extra}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped
        )
        refused(tmp_path / "a.pth", "holds more than tensors", name, "unpickling runs code", "safetensors")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "b.pth", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "b.pth", "holds more than tensors (torch.nn.modules.linear.Linear)")
    assert not (tmp_path / "opened").exists()


def test_a_program_is_not_opened(tmp_path, torch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
        refused(tmp_path / "a.pt", "is a TorchScript program")


def test_what_is_no_state_dictionary(tmp_path, torch):
    for content, words in (
        (torch.ones(2), "holds a Tensor, not a state dictionary"),
        ([torch.ones(2)], "holds a list"),
        ({}, "holds no weights: no tensor under its 0 entries"),
        ({"a": 1, "b": {"c": 2}}, "no tensor under its 'a', 'b' entries"),
    ):
        torch.save(content, tmp_path / "a.pth")
        refused(tmp_path / "a.pth", words)


def test_tensors_that_are_no_arrays(tmp_path, torch):
    """They are an error for who reads them, not for who reads others."""
    for content, words in (
        (torch.ones(2).to_sparse(), "torch.sparse_coo"),
        (torch.ones(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2, device="meta"), "on meta"),
        (torch.ones(1).expand(2**40), "claims 4,398,046,511,104 bytes, more than are stored"),
    ):
        torch.save({"x": content, "y": torch.ones(1)}, tmp_path / "a.pth")
        with open_tensors(tmp_path / "a.pth") as tensors:
            assert tensors["y"].read() == 1
            with pytest.raises(UserError, match=re.escape(words)) as e:
                tensors["x"].read()
            assert str(e.value).startswith("x in ") and tensors["x"].dtype == NO_ARRAY


def test_damaged_files(tmp_path, torch):
    for zipped in (True, False):
        torch.save({"a": torch.randn(10_000)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        good = (tmp_path / "a.pth").read_bytes()
        for cut in (3, 50, 20_000, len(good) - 1):
            (tmp_path / "a.pth").write_bytes(good[:cut])
            refused(tmp_path / "a.pth", "a.pth cannot be read as a PyTorch file", "get it again")
    for content in (b"hello world" * 100, b"\x80\x02}q\x00.", b"PK\x03\x04", bytes(1000)):
        (tmp_path / "a.pth").write_bytes(content)
        refused(tmp_path / "a.pth", "cannot be read as a PyTorch file")


def test_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"PK")
    refused(tmp_path / "a.pth", "takes the extra 'torch'", "[torch]")
