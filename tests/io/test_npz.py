""".npz files as NumPy writes them, and as nobody who means well does."""

import io
import os
import struct
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest

from vit_jax.io import npz
from vit_jax.io.tensors import open_tensors
from vit_jax.types import UserError


def npy(array):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def pack(path, members, method=zipfile.ZIP_STORED):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name twice
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in members:
                archive.writestr(name, content)
    return path


def refused(path, *words):
    with pytest.raises(UserError) as e, open_tensors(path) as tensors:
        for tensor in tensors.values():
            tensor.read()
    message = str(e.value)
    assert "\n" not in message and message.endswith((".", "?")), message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes(tmp_path, rng, save):
    arrays = {
        "opt/target/Transformer/encoderblock_0/kernel": rng.normal(size=(4, 5)).astype(np.float32),
        "fortran": np.asfortranarray(rng.normal(size=(3, 2))),
        "big": np.arange(3, dtype=">f4"),
        "scalar": np.int64(3),
        "empty": np.zeros((2, 0), np.float16),
        "brain": np.array([1.5, -2.25], ml_dtypes.bfloat16),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, that its format has no name for bfloat16
        save(tmp_path / "a.npz", **arrays)
    with np.load(tmp_path / "a.npz") as there:
        assert there["brain"].dtype == np.dtype("V2")
    with open_tensors(tmp_path / "a.npz") as tensors:
        assert set(tensors) == set(arrays)
        for name, array in arrays.items():
            found = tensors[name].read()
            assert (tensors[name].shape, tensors[name].dtype) == (found.shape, found.dtype)
            assert found.dtype == array.dtype.newbyteorder("=") and found.shape == array.shape
            np.testing.assert_array_equal(found, array)


def test_leaves_are_read_when_asked_for(tmp_path):
    path = pack(tmp_path / "a.npz", [("a.npy", npy(np.arange(3.0))), ("b.npy", npy(np.arange(1e3)))])
    content = bytearray(path.read_bytes())
    at = content.index(npy(np.arange(1e3))) + 500
    content[at] ^= 1
    path.write_bytes(content)
    with open_tensors(path) as tensors:
        assert tensors["b"].shape == (1000,)
        np.testing.assert_array_equal(tensors["a"].read(), np.arange(3.0))
        with pytest.raises(UserError, match=r"b in .*a.npz cannot be read .*CRC"):
            tensors["b"].read()


def test_a_pickle_is_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    np.savez(tmp_path / "a.npz", x=np.array([Trap(), None], object))
    refused(tmp_path / "a.npz", "x in", "is a pickled object; it was not opened")
    np.savez(tmp_path / "b.npz", x=np.zeros(2, [("a", "f4"), ("b", object)]))
    refused(tmp_path / "b.npz", "is a pickled object")
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    "array",
    [np.zeros(2, "V3"), np.zeros(2, "V16"), np.zeros(2, [("a", "f4")]), np.array(["a"]), np.zeros(2, np.complex64),
     np.zeros(1, "datetime64[s]"), np.zeros(1, np.longdouble), np.array([b"ab"])],
    ids=str,
)  # fmt: skip
def test_what_is_no_weight(tmp_path, array):
    np.savez(tmp_path / "a.npz", x=array)
    refused(tmp_path / "a.npz", "x in", "is of type", "floats, integers or booleans")


def header(text, version=(1, 0)):
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text


GOOD = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }\n"


@pytest.mark.parametrize(
    "content",
    [
        header(GOOD % b"2,") + bytes(7),
        header(GOOD % b"2,") + bytes(9),
        header(GOOD % b"1000000000000000,") + bytes(8),
        header(GOOD % b"4611686018427387904, 4611686018427387904") + bytes(8),
        header(GOOD % b"-2, -1") + bytes(8),
        header(GOOD % b"-2,") + bytes(8),
        header(GOOD % b"True, 2") + bytes(8),
        header(GOOD % b"2.0,") + bytes(8),
        header((GOOD % b"2,") + b" " * 20_000) + bytes(8),
        header(b"(" * 9_000),
        header(b"__import__('os').getcwd()"),
        header(b"{'descr': '<f4'}"),
        header(b"{'descr': 7, 'fortran_order': False, 'shape': (2,), }") + bytes(8),
        b"\x93NUMPY\x01\x00\xff\xff",
        b"\x93NUMPZ" + bytes(20),
        b"hello",
        b"",
    ],
)
def test_damaged_arrays(tmp_path, content):
    refused(pack(tmp_path / "a.npz", [("x.npy", content)]), "a.npz cannot be read", "get it again")


@pytest.mark.parametrize("version", [(2, 0), (3, 0)])
def test_headers_for_records(tmp_path, version):
    content = header(GOOD % b"2,", version) + bytes(8)
    refused(pack(tmp_path / "a.npz", [("x.npy", content)]), f"the header of x in {tmp_path}/a.npz is of version")


def test_a_checksum_of_compressed_data(tmp_path, rng):
    path = pack(tmp_path / "a.npz", [("x.npy", npy(rng.integers(0, 9, 10_000)))], zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 16] ^= 1
    path.write_bytes(content)
    refused(path, "x in", "Bad CRC")


def test_archives_that_are_none(tmp_path):
    good = pack(tmp_path / "good.npz", [("x.npy", npy(np.arange(1000.0)))]).read_bytes()
    for cut in (10, 200, len(good) // 2, len(good) - 1):
        (tmp_path / "a.npz").write_bytes(good[:cut])
        refused(tmp_path / "a.npz", "a.npz cannot be read", "damaged or cut short")
    (tmp_path / "a.npz").write_bytes(npy(np.arange(3.0)))  # an .npy of that name
    refused(tmp_path / "a.npz", "a.npz cannot be read")


def test_a_name_twice_and_a_member_that_is_no_array(tmp_path):
    content = npy(np.zeros(2))
    refused(pack(tmp_path / "a.npz", [("x.npy", content), ("x.npy", content)]), "holds 'x.npy' twice")
    refused(pack(tmp_path / "b.npz", [("x.npy", content), ("run.py", b"")]), "holds 'run.py' which is no array")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch, method):
    np_bomb = npy(np.zeros(2**20))
    path = pack(tmp_path / "a.npz", [("x.npy", np_bomb)], method)
    with open_tensors(path) as tensors:  # small ones may: zeros are common weights
        assert not tensors["x"].read().any()
    monkeypatch.setattr(npz, "FREE_BYTES", 2**20)
    refused(path, "claims 1 arrays of 8,388,", "a decompression bomb?")
    with open_tensors(pack(path, [("x.npy", np_bomb)])) as tensors:  # stored, not compressed
        assert not tensors["x"].read().any()


def test_a_member_that_unpacks_to_more_than_it_claims(tmp_path):
    content = npy(np.zeros(2**16))
    path = pack(tmp_path / "a.npz", [("x.npy", content)], zipfile.ZIP_DEFLATED)
    claimed = npy(np.zeros(16))
    lie = path.read_bytes().replace(struct.pack("<I", len(content)), struct.pack("<I", len(claimed)))
    path.write_bytes(lie)
    refused(path, "a.npz cannot be read")


def test_too_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "MAX_MEMBERS", 3)
    path = pack(tmp_path / "a.npz", [(f"{i}.npy", npy(np.zeros(1))) for i in range(4)])
    refused(path, "claims 4 arrays")


def test_an_encrypted_member(tmp_path):
    path = pack(tmp_path / "a.npz", [("x.npy", npy(np.zeros(2)))])
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag in the member's own header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    path.write_bytes(content)
    refused(path, "a.npz cannot be read", "encrypted")
