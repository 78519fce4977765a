"""Templates equal to CLIP's; class names and templates from files."""

import json

import pytest

from vit_jax.data import prompts
from vit_jax.data.prompts import TEMPLATES, ensemble, read_class_names, read_templates
from vit_jax.types import UsageError, UserError

NAMES = ["cat", "great white shark", "low_res", "{}", "{0}", "%s \\"]


@pytest.mark.parametrize(
    "name, peer", [("openai", "OPENAI_IMAGENET_TEMPLATES"), ("simple", "SIMPLE_IMAGENET_TEMPLATES")]
)
def test_equal_open_clips(open_clip, name, peer):
    expected = [[template(c) for template in getattr(open_clip, peer)] for c in NAMES]
    assert ensemble(NAMES, TEMPLATES[name]) == expected


def test_rows():
    assert {k: len(v) for k, v in TEMPLATES.items()} == {"openai": 80, "simple": 7, "photo": 1, "digits": 4}
    for rows in TEMPLATES.values():
        assert len(set(rows)) == len(rows)
        assert all(row.count("{}") == 1 and row == row.strip() for row in rows)
    assert set(TEMPLATES["simple"]) <= set(TEMPLATES["openai"])


def test_ensemble():
    assert ensemble(["a_b", "C"], ["{}", "x {}, {}."]) == [["a_b", "x a_b, a_b."], ["C", "x C, C."]]
    assert ensemble([], ["{}"]) == []


def test_files(tmp_path):
    (tmp_path / "names.txt").write_bytes("\ufeffcrane\r\ngreat_white Shark\r\ncrane\r\né\r\n\r\n".encode())
    assert read_class_names(str(tmp_path / "names.txt")) == ("crane", "great_white Shark", "crane", "é")
    (tmp_path / "names.json").write_text(json.dumps(["a\u2028b", " c "]))
    assert read_class_names(str(tmp_path / "names.json")) == ("a\u2028b", "c")
    (tmp_path / "t").write_text("a {}.\n{}")
    assert read_templates(str(tmp_path / "t")) == ("a {}.", "{}")
    assert read_templates("photo") == TEMPLATES["photo"]


def test_only_line_breaks_end_a_line(tmp_path):
    """A name may hold any other separator that Unicode knows; labels must not shift."""
    (tmp_path / "x").write_text("a\x0bb\u2028c\x85d\ne", encoding="utf-8", newline="")
    assert read_class_names(str(tmp_path / "x")) == ("a\x0bb\u2028c\x85d", "e")


@pytest.mark.parametrize(
    "name, content, match",
    [
        ("x.txt", b"", "empty"),
        ("x.txt", b"\n \n", "empty"),
        ("x.txt", b"a\n\nb\n", "entry 2"),
        ("x.txt", b"a\n\xff\n", "no UTF-8 .byte 2"),
        ("x.json", b'{"0": "a"}', "JSON dict"),
        ("x.json", b"[1]", "entry 1"),
        ("x.json", b'["a", ""]', "entry 2"),
        ("x.json", b"[", "no JSON"),
        ("x.json", b"[" * 100_000, "no JSON"),
        ("x.json", b"[]", "empty"),
    ],
)
def test_bad_files_are_sentences(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=match):
        read_class_names(str(tmp_path / name))


def test_other_mistakes(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cannot be read"):
        read_class_names(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="did you mean 'simple'"):
        read_templates("simpel")
    (tmp_path / "t").write_text("a {}.\na photo")
    with pytest.raises(UserError, match=r"template 2 .* lacks \{\}"):
        read_templates(str(tmp_path / "t"))
    monkeypatch.setattr(prompts, "MAX_BYTES", 5)
    with pytest.raises(UserError, match="more than 5 bytes"):
        read_templates(str(tmp_path / "t"))
