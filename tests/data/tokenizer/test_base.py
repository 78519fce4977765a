"""States, bounds and options."""

import base64
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_jax.data.tokenizer import base
from vit_jax.data.tokenizer.base import fingerprint, options, pack, read, unpack, well_formed
from vit_jax.types import UserError


@given(data=st.binary())
def test_pack_round_trips(data):
    assert unpack(pack(data)) == data


def test_a_bomb_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(base, "MAX_BYTES", 1000)
    assert len(unpack(pack(bytes(1000)))) == 1000
    with pytest.raises(UserError, match="more than 1,000 bytes"):
        unpack(pack(bytes(1001)))


def test_the_fingerprint_is_of_the_content():
    data = b"a vocabulary" * 20
    fast = base64.b64encode(zlib.compress(data, 1)).decode()
    assert fast != pack(data)
    assert fingerprint({"kind": "x", "data": fast}) == fingerprint({"data": pack(data), "kind": "x"})
    assert fingerprint({"kind": "x", "data": fast}) != fingerprint({"kind": "y", "data": fast})
    assert fingerprint({"kind": "x", "data": fast}) != fingerprint({"kind": "x", "data": pack(data + b".")})


@given(text=st.text(st.characters()))
def test_well_formed(text):
    fine = well_formed(text)
    fine.encode()
    if not any(0xD800 <= ord(c) < 0xE000 for c in text):
        assert fine == text


def test_surrogates():
    assert well_formed("\ud83d\ude00 \udc80x") == "😀 \ufffdx"


def test_options():
    assert options("a/b.json", ("end",)) == ("a/b.json", {})
    assert options("a?end=<a=b>&pad=", ("end", "pad")) == ("a", {"end": "<a=b>", "pad": ""})


def test_read(tmp_path):
    (tmp_path / "x").write_bytes(b"plain")
    assert read(tmp_path / "x") == b"plain"
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path)
