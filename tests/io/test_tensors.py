"""Files of named arrays against the libraries that define them, and against files made to do harm."""

import json
import resource
import struct
import tarfile
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from vit_jax.io import jsonfile, npz
from vit_jax.io.tensors import DTYPES, Tensor, check_download, open_tensors, write_npz, write_safetensors
from vit_jax.types import UserError


@pytest.fixture
def arrays(rng):
    some = {
        "encoder/block_0/kernel": rng.normal(size=(3, 4)).astype(np.float32),
        "half": rng.normal(size=(2, 2)).astype(np.float16),
        "scalar": np.array(3.5, np.float64),
        "none": np.zeros((0, 3), np.float32),
        "step": np.array([7], np.int64),
        "flags": np.array([True, False, True]),
        "transposed": rng.normal(size=(4, 3)).astype(np.float32).T,
    }
    return some


def leaves(arrays):
    return {name: Tensor.of(array) for name, array in arrays.items()}


def read(path):
    with open_tensors(path) as tensors:
        for tensor in tensors.values():
            array = tensor.read()
            assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype)
        return {name: tensor.read() for name, tensor in tensors.items()}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def refused(path, *words):
    with pytest.raises(UserError) as e, open_tensors(path) as tensors:
        for tensor in tensors.values():
            tensor.read()
    message = str(e.value)
    assert "\n" not in message and message.endswith((".", "?")), message
    for word in words:
        assert word in message, message
    return message


def crafted(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_safetensors_of_the_library_are_read(tmp_path, arrays):
    arrays["brain"] = np.array([1.5, -2, 3e38], ml_dtypes.bfloat16)
    contiguous = {k: np.asarray(v, order="C") for k, v in arrays.items()}
    safetensors.numpy.save_file(contiguous, tmp_path / "a.safetensors")
    assert_same(read(tmp_path / "a.safetensors"), arrays)


def test_safetensors_are_what_the_library_reads(tmp_path, arrays):
    arrays |= {f"is {dtype}": np.arange(5).astype(dtype) for dtype in DTYPES.values()}
    arrays["brain"] = np.array([[1.5, -2, 3e38]], ml_dtypes.bfloat16)
    path = tmp_path / "a.safetensors"
    write_safetensors(path, leaves(arrays), {"format": "vit_jax", "naïve": "ö"})
    assert_same(safetensors.numpy.load_file(path), arrays)
    with safetensors.safe_open(path, "np") as f:
        assert f.metadata() == {"format": "vit_jax", "naïve": "ö"}
    assert_same(read(path), arrays)
    again = tmp_path / "b.safetensors"
    write_safetensors(again, leaves(dict(reversed(arrays.items()))), {"format": "vit_jax", "naïve": "ö"})
    assert again.read_bytes() == path.read_bytes()


def test_every_leaf_of_a_safetensors_lies_aligned(tmp_path):
    path = tmp_path / "a.safetensors"
    odd = {"a": np.zeros(3, np.int8), "b": np.ones(3, np.float64), "c": np.ones(1, np.float16)}
    write_safetensors(path, leaves(odd), {})
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert "__metadata__" not in header
    for name, leaf in header.items():
        assert (8 + size + leaf["data_offsets"][0]) % odd[name].itemsize == 0


def test_npz_is_what_numpy_reads(tmp_path, arrays):
    path = tmp_path / "a.npz"
    write_npz(path, leaves(arrays))
    with np.load(path, allow_pickle=False) as there:
        assert_same(dict(there), arrays)
    assert_same(read(path), arrays)
    with zipfile.ZipFile(path) as archive:  # equal input, equal bytes: no clock is asked
        assert {m.date_time for m in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_what_cannot_be_read_back_is_not_written(tmp_path):
    brain = {"encoder/x": Tensor.of(np.zeros(3, ml_dtypes.bfloat16))}
    with pytest.raises(UserError, match=r"encoder/x is of type bfloat16, .* write float32"):
        write_npz(tmp_path / "a.npz", brain)
    for write in (write_npz, lambda path, tensors: write_safetensors(path, tensors, {})):
        for array in (np.zeros(2, np.complex64), np.array(["a"]), np.zeros(2, ">f4"), np.zeros(2, np.longdouble)):
            with pytest.raises(UserError, match="x is of type"):
                write(tmp_path / "a", {"x": Tensor.of(array)})
        with pytest.raises(ValueError, match="x was to be"):
            write(tmp_path / "b", {"x": Tensor((2,), np.dtype("float32"), lambda: np.zeros(2, np.float64))})
        with pytest.raises(ValueError, match="x was to be"):
            write(tmp_path / "b", {"x": Tensor((2,), np.dtype("float32"), lambda: np.zeros((1, 2), np.float32))})


@pytest.mark.parametrize("write", [write_npz, lambda path, tensors: write_safetensors(path, tensors, {})])
def test_a_full_disk_is_a_sentence(tmp_path, write):
    some = {str(i): Tensor.of(np.ones(2**16, np.float32)) for i in range(4)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, hard))  # beyond it writing fails as on a full disk
    try:
        with pytest.raises(UserError, match=r"cannot write .*a.bin: File too large\."):
            write(tmp_path / "a.bin", some)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(UserError, match=r"cannot write .*No such file or directory"):
        write(tmp_path / "nowhere" / "a.bin", some)


def test_one_leaf_in_memory_at_a_time(tmp_path):
    size, count = 2**20, 24

    def lazily(i):
        return Tensor((size // 4,), np.dtype("float32"), lambda: np.full(size // 4, i, np.float32))

    tensors = {f"block_{i}": lazily(i) for i in range(count)}
    tracemalloc.start()
    try:
        write_safetensors(tmp_path / "a.safetensors", tensors, {})
        with open_tensors(tmp_path / "a.safetensors") as there:
            write_npz(tmp_path / "a.npz", there)
        with open_tensors(tmp_path / "a.npz") as there:
            total = sum(float(tensor.read()[0]) for tensor in there.values())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == sum(range(count))
    assert peak < 4 * size


def test_shards(tmp_path, arrays, caplog):
    names = sorted(arrays)
    where = {name: f"model-{i % 2 + 1:05d}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(where.values()):
        write_safetensors(tmp_path / shard, leaves({k: arrays[k] for k in names if where[k] == shard}), {})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    assert_same(read(index), arrays)
    assert not caplog.messages
    fewer = {k: v for k, v in where.items() if k != "half"}
    index.write_text(json.dumps({"weight_map": fewer}))
    assert set(read(index)) == set(fewer)
    assert "left out 1 tensors" in caplog.messages[0] and "half" in caplog.messages[0]
    index.write_text(json.dumps({"weight_map": where | {"lost": where["half"]}}))
    refused(index, "lacks lost", "get both again")
    index.write_text(json.dumps({"weight_map": {"a": "model-3.safetensors"}}))
    refused(index, "model-3.safetensors' does not exist; did you mean 'model")


@pytest.mark.parametrize(
    "content",
    [b"{}", b"[]", b"null", b'{"weight_map": []}', b'{"weight_map": {"a": 1}}', b"{", b"\xff", b"[" * 100_000],
)
def test_an_index_that_is_none(tmp_path, content):
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(content)
    refused(index, "is no index of shards")


def test_an_index_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonfile, "MAX_BYTES", 10)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "b.safetensors"}}))
    refused(index, "more than 10 bytes")


@pytest.mark.parametrize(
    "shard",
    ["../a.safetensors", "/etc/a.safetensors", "sub/a.safetensors", "..", "", ".", "a.bin", "C:\\a.safetensors"],
)
def test_a_shard_stays_in_its_folder(tmp_path, shard):
    write_safetensors(tmp_path / "a.safetensors", leaves({"a": np.zeros(2, np.float32)}), {})
    (tmp_path / "in" / "sub").mkdir(parents=True)
    index = tmp_path / "in" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    refused(index, "only plain names")


def test_a_link_leads_out_only_within_the_cache_of_the_hub(tmp_path):
    repo = tmp_path / "hub" / "models--o--n"
    snapshot = repo / "snapshots" / "abc"
    for folder in (snapshot, repo / "blobs", tmp_path / "plain", tmp_path / "outside"):
        folder.mkdir(parents=True)
    array = np.arange(3, dtype=np.float32)
    for target, folder, ok in (
        (repo / "blobs" / "x", snapshot, True),
        (tmp_path / "outside" / "x", snapshot, False),
        (tmp_path / "outside" / "x", tmp_path / "plain", False),
    ):
        write_safetensors(target, leaves({"a": array}), {})
        index, shard = folder / "model.safetensors.index.json", folder / "s.safetensors"
        index.write_text(json.dumps({"weight_map": {"a": shard.name}}))
        shard.unlink(missing_ok=True)
        shard.symlink_to(target)
        if ok:
            assert_same(read(index), {"a": array})
        else:
            refused(index, "is a link out of its folder")


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        ({"a": F32}, 7, None),
        ({"a": F32}, 9, None),
        ({"a": F32}, 8, 2**60),
        ({"a": F32}, 8, 2**63 + 1),
        ({"a": F32}, 8, 10**8 + 1),
        ({"a": F32}, 8, 1000),
        ({"a": F32}, 8, 3),
        ({"a": F32, "b": F32}, 8, None),
        ({"a": F32, "b": F32 | {"data_offsets": [16, 24]}}, 24, None),
        ({"a": F32 | {"data_offsets": [-8, 0]}}, 8, None),
        ({"a": F32 | {"data_offsets": [8, 0]}}, 8, None),
        ({"a": F32 | {"shape": [2**62, 2**62]}}, 8, None),
        ({"a": F32 | {"shape": [-2, -1]}}, 8, None),
        ({"a": F32 | {"shape": [3]}}, 8, None),
        ({"a": F32 | {"dtype": "F33"}}, 8, None),
        ({"a": {}}, 0, None),
        ({"__metadata__": {"a": 1}, "a": F32}, 8, None),
        (b'{"a": %s, "a": %s}' % (json.dumps(F32).encode(), json.dumps(F32 | {"shape": [4]}).encode()), 8, None),
        (b"not JSON", 0, None),
        (b"\xff" * 9, 0, None),
        (b"[" * 100_000, 0, None),
    ],
)
def test_damaged_safetensors(tmp_path, header, data, length):
    refused(crafted(tmp_path / "a.safetensors", header, bytes(data), length), "a.safetensors cannot be read", "again")


def test_a_dtype_that_is_no_weight(tmp_path):
    path = crafted(tmp_path / "a.safetensors", {"a": F32 | {"dtype": "F8_E4M3", "data_offsets": [0, 2]}}, bytes(2))
    refused(path, "a in", "is of type F8_E4M3; allowed: F64, F32")


@pytest.mark.parametrize("kind", ["safetensors", "safetensors.index.json", "npz", "pth", "pt", "bin"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty (0 bytes)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html>\n<html><body>Not Found</body></html>", "is a web page"),
        (b"\n  <HTML>", "is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
    ],
)
def test_what_is_often_stored_under_the_name_of_weights(tmp_path, kind, content, words):
    path = tmp_path / f"model.{kind}"
    path.write_bytes(content)
    refused(path, str(path), words)


def test_paths_that_are_no_weights(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    refused(tmp_path / "model.safetensors", "is no file; give one in it")
    refused(tmp_path / "model.safetensor", "does not exist; did you mean 'model.safetensors'?")
    (tmp_path / "notes.txt").write_text("lr 1e-3\n" * 100)
    refused(tmp_path / "notes.txt", "is of no kind that can be read here; allowed: .safetensors,")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "notes.txt", "notes.txt")
    refused(tmp_path / "a.tar", "is an archive; unpack it")
    (tmp_path / "vit_b16.npz").touch()
    refused(tmp_path / "vit_b61.npz", "does not exist; did you mean 'vit_b16.npz'?")
    refused(tmp_path / "q.npz", "does not exist; did you mean")
    refused(tmp_path / "nowhere" / "model.npz", "does not exist.")


def test_a_leaf_that_does_not_fit_into_memory(tmp_path, monkeypatch):
    def fail(*args):
        raise MemoryError

    write_npz(tmp_path / "a.npz", leaves({"x": np.zeros(2)}))
    monkeypatch.setattr(npz, "_read", fail)
    refused(tmp_path / "a.npz", "x does not fit into memory")


def test_a_file_cut_while_open(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, leaves({"x": np.zeros(2**12, np.float32)}), {})
    with open_tensors(path) as tensors:
        with open(path, "r+b") as f:
            f.truncate(2**10)
        with pytest.raises(UserError, match=r"x in .*a.safetensors cannot be read .* cut short"):
            tensors["x"].read()


def test_names_that_say_nothing(tmp_path):
    """The kind of a file without a known ending is that of its content."""
    write_npz(tmp_path / "weights", leaves({"x": np.ones(2)}))
    write_safetensors(tmp_path / "best.model", leaves({"x": np.ones(2)}), {})
    for name in ("weights", "best.model"):
        with open_tensors(tmp_path / name) as tensors:
            np.testing.assert_array_equal(tensors["x"].read(), [1, 1])


DAMAGED = (b'{"message": "rate limit"}', b"<html>busy</html>", b"", bytes(5000), b"too many requests")


def test_what_is_checked_of_a_download(tmp_path):
    write_npz(tmp_path / "a.npz", leaves({"x": np.ones(1000)}))
    write_safetensors(tmp_path / "a.safetensors", leaves({"x": np.ones(1000)}), {})
    for name in ("a.npz", "a.safetensors", "a.pth"):
        whole = (tmp_path / name).read_bytes() if name != "a.pth" else (tmp_path / "a.npz").read_bytes()
        (tmp_path / name).write_bytes(whole)
        check_download(tmp_path / name)
        for damaged in (whole[:-100], whole[:100], *DAMAGED):
            (tmp_path / f"b{name}").write_bytes(damaged)
            with pytest.raises(UserError, match=f"b{name}"):
                check_download(tmp_path / f"b{name}")
