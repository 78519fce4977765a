"""Encodings, lines, names and sentences about texts."""

import pytest

from vit_jax.io import text
from vit_jax.types import UserError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_by_their_mark(tmp_path, encoding):
    for marked in (encoding, f"{encoding}-be") if encoding in ("utf-16", "utf-32") else (encoding,):
        data = ("\ufeff" * marked.endswith("-be") + "é\u2028猫\r\nb").encode(marked)
        (tmp_path / "t").write_bytes(data)
        assert text.decode(data) == text.read(tmp_path / "t") == "é\u2028猫\r\nb"
        assert list(text.stream(tmp_path / "t")) == ["é\u2028猫\r\n", "b"]


def test_what_is_no_text(tmp_path):
    path = tmp_path / "t"
    path.write_bytes(b"ab\xff")
    with pytest.raises(UserError, match=r"^it is no UTF-8 \(byte 2\); save it as UTF-8\.$"):
        text.read(path, "it")
    assert text.read(path, errors="surrogateescape") == "ab\udcff" == next(text.stream(path))
    path.write_bytes(b"\xff\xfea")
    with pytest.raises(UserError, match="is no UTF-8"):
        text.read(path)
    assert text.decode(b"\xff\xfea", "surrogateescape") == "\ufffd"
    with pytest.raises(UserError, match=r"t cannot be read \(more than 2 bytes\)"):
        text.read(path, limit=2)
    for name in (".", "gone"):
        with pytest.raises(UserError, match="cannot be read"):
            text.read(tmp_path / name)
        with pytest.raises(UserError, match="cannot be read"):
            list(text.stream(tmp_path / name))


def test_only_line_breaks_end_a_line(tmp_path):
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"
    assert text.lines(f"{odd}\n{odd}\r\nx\ry") == [odd, odd, "x", "y"]
    assert text.lines("") == [] and text.lines("a\n") == ["a"] and text.lines("\n\na") == ["", "", "a"]
    (tmp_path / "t").write_bytes(f"{odd}\n{odd}\r\nx\ry".encode())
    assert list(text.stream(tmp_path / "t")) == [f"{odd}\n", f"{odd}\r\n", "x\r", "y"]


def test_endless_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MAX_LINE", 5)
    (tmp_path / "t").write_text("abc\nabcdefgh\n")
    with pytest.raises(UserError, match=r"line 2 of .* has more than 5 characters"):
        list(text.stream(tmp_path / "t"))


def test_names():
    assert text.escaped("caf\udce9 é\ud800") == "caf\\udce9 é\\ud800"
    assert text.normal("cafe\u0301") == text.normal("caf\u00e9") == "caf\u00e9"
    assert text.encode("caf\udce9") == b"caf\xe9" and text.encode("é") == b"\xc3\xa9"
    assert text.encode("\ud800") == b"\xed\xa0\x80"  # of JSON; it stands for no byte
