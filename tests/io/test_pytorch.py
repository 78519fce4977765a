"""PyTorch's files: what it saves comes back bit for bit, and nothing but tensors is ever built."""

import argparse
import collections
import os
import sys
import warnings

import ml_dtypes
import numpy as np
import pytest

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


@pytest.mark.parametrize(
    ("keys", "taken", "said"),
    [
        (["state_dict"], "state_dict", False),
        (["model", "optimizer"], "model", True),
        (["model_ema", "model"], "model", True),
        (["state_dict_ema", "state_dict"], "state_dict", True),
        (["student", "teacher"], "teacher", True),
        (["of_some_name"], "of_some_name", False),
    ],
)
def test_the_part_with_the_weights(tmp_path, torch, caplog, keys, taken, said):
    parts = {key: {"x": torch.tensor([i])} for i, key in enumerate(keys)}
    torch.save(parts | {"epoch": 3, "scheduler": {"step": 1}, "name": "vit"}, tmp_path / "a.pth")
    np.testing.assert_array_equal(read(tmp_path / "a.pth")["x"], [keys.index(taken)])
    assert bool(caplog.messages) == said
    if said:
        assert f"took the weights under {taken!r}" in caplog.messages[0]


def test_several_parts_of_unusual_names(tmp_path, torch):
    torch.save({"left": {"x": torch.ones(1)}, "right": {"x": torch.ones(1)}}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "holds several parts ('left', 'right')")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["module.a", "module.b.c"], ["a", "b.c"]),
        (["_orig_mod.module.a"], ["a"]),
        (["module._orig_mod.a"], ["a"]),
        (["module.a", "b"], ["module.a", "b"]),
        (["modules.a"], ["modules.a"]),
    ],
)
def test_prefixes_that_all_names_share(tmp_path, torch, names, expected):
    torch.save({name: torch.ones(1) for name in names}, tmp_path / "a.pth")
    assert list(read(tmp_path / "a.pth")) == expected


def test_what_is_no_tensor_is_left_out_and_said(tmp_path, torch, caplog):
    torch.save({"a": torch.ones(1), "epoch": 3, "name": "vit", "none": None}, tmp_path / "a.pth")
    assert list(read(tmp_path / "a.pth")) == ["a"]
    assert "left out what is no tensor: 'epoch', 'name', 'none'" in caplog.messages[0]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_more_than_tensors_is_not_opened(tmp_path, torch, zipped):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    for name, extra in (("argparse.Namespace", argparse.Namespace(lr=1)), ("posix.mkdir", Trap())):
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
        ({0: torch.ones(2)}, "its key 0 is of type int"),
    ):
        torch.save(content, tmp_path / "a.pth")
        refused(tmp_path / "a.pth", words)


def test_tensors_that_are_no_arrays(tmp_path, torch):
    for content, words in (
        (torch.ones(2).to_sparse(), "torch.sparse_coo"),
        (torch.ones(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2, device="meta"), "on meta"),
        (torch.ones(1).expand(2**40), "claims 4,398,046,511,104 bytes, more than are stored"),
    ):
        torch.save({"x": content}, tmp_path / "a.pth")
        refused(tmp_path / "a.pth", "x in", words)


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
    refused(tmp_path / "a.pth", "takes PyTorch", "pip install 'vit_jax[torch]'")
