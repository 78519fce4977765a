"""``data``: checking a source, packing it, a tokenizer from its captions."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from vit_jax.cli import main
from vit_jax.data.sources import open_source
from vit_jax.data.tokenizer import open_tokenizer


def test_check(run, tmp_path, capsys):
    assert main(["data", "check", f"folder:{run.images}", "--json", str(tmp_path / "x.json")]) == 0
    found = json.loads((tmp_path / "x.json").read_text())
    assert (
        found["examples"] == 30 and found["classes"] == {"ant": 10, "bee": 10, "cat": 10} and found["unreadable"] == []
    )
    assert "30 examples of 3 classes" in capsys.readouterr().out


def test_check_names_what_is_unreadable(run, tmp_path, capsys):
    folder = shutil.copytree(run.images, tmp_path / "images")
    (folder / "bee" / "3.png").write_bytes(b"")
    assert main(["data", "check", f"folder:{folder}", "--json", "-"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["classes"]["bee"] == 9
    (bad,) = found["unreadable"]
    assert "bee/3.png" in bad


def test_preview(run, tmp_path, capsys):
    """With a configuration the picture has a second half: the same images, augmented."""
    heights = {}
    for name, options in {"plain": [], "config": ["--config", str(run.config), "--config.augment.crop=0.5"]}.items():
        out = tmp_path / f"{name}.png"
        assert main(["data", "preview", f"folder:{run.images}", "--out", str(out), *options]) == 0
        with Image.open(out) as picture:
            heights[name] = picture.height
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "30 examples of 3 classes" and lines[-1] == f"{out} shows 24 of them"
        assert [line.split() for line in lines[1:4]] == [["ant", "10"], ["bee", "10"], ["cat", "10"]]
    assert heights["config"] > 1.8 * heights["plain"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--out", "a.jpg"], "'a.jpg' is no name of a picture; let it end in .png"),
        (["--config.seed=1"], "--config.seed changes a configuration; name it with --config"),
    ],
)
def test_preview_refusals(run, options, match, capsys):
    assert main(["data", "preview", f"folder:{run.images}", *options]) == 2
    assert match in capsys.readouterr().err


def test_preview_of_many_classes(tmp_path, capsys):
    assert main(["data", "preview", "fake:5000x8x50", "--out", str(tmp_path / "p.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "5,000 examples of 50 classes" and len(lines) == 44
    assert re.fullmatch(r"  and 10 more, the smallest with (7\d|8[01])", lines[41])
    assert lines[42] == "  counted in 4,096 examples, spread evenly"


def test_pack_keeps_order_labels_and_pixels(run, tmp_path, capsys):
    pattern = str(tmp_path / "train-{:03d}.tar")
    assert main(["data", "pack", f"folder:{run.images}", pattern, "--shard_size", "12"]) == 0
    assert "30 examples in 3 shards" in capsys.readouterr().out
    a = open_source(f"folder:{run.images}", holdout=0)
    b = open_source(f"tar:{tmp_path}/train-{{000..002}}.tar", holdout=0)
    assert a.info.class_names == b.info.class_names and len(a) == len(b)
    for i in np.random.default_rng(0).permutation(30)[:8]:
        assert (a[i]["label"], a[i]["image"]) == (b[i]["label"], b[i]["image"])


@pytest.fixture
def pairs(run, tmp_path):
    """A table of the images, each with a caption or two."""
    path, rows = tmp_path / "pairs.jsonl", []
    for i, image in enumerate(sorted(run.images.rglob("*.png"))):
        captions = [f"A photo of the {image.parent.name}", f"insect number {i % 3}"][: 1 + i % 2]
        rows.append(json.dumps({"path": str(image), "captions": captions}))
    path.write_text("\n".join(rows) + "\n")
    return path


def test_tokenizer_learns_the_captions(pairs, tmp_path, capsys):
    out = tmp_path / "t.json"
    command = ["data", "tokenizer", f"jsonl:{pairs}", str(out), "--vocab_size", "290"]
    assert main(command) == 0
    assert "290 tokens from 30 examples; use it as json:" in capsys.readouterr().out
    t = open_tokenizer(f"json:{out}")
    assert t.vocab_size == 290 and len(t.ids("photo")) < 5 and t.ids("A") != t.ids("a")
    first = out.read_bytes()
    out.unlink()
    assert main(command) == 0
    assert out.read_bytes() == first
    assert {p.name for p in tmp_path.iterdir()} == {"pairs.jsonl", "t.json"}


def test_tokenizer_counts_what_it_leaves_out(pairs, tmp_path, capsys):
    out = tmp_path / "t.json"
    lines = pairs.read_text().splitlines()
    lines[3] = json.dumps({"path": str(tmp_path / "missing.png"), "captions": ["gone"]})
    pairs.write_text("\n".join(lines) + "\n")
    assert main(["data", "tokenizer", f"jsonl:{pairs}", str(out), "--vocab_size", "4000", "--lower"]) == 0
    said = capsys.readouterr().out
    assert "from 29 examples" in said and "no other pair occurs twice" in said and "1 examples left out" in said
    assert "missing.png" in said
    t = open_tokenizer(f"json:{out}")
    assert t.vocab_size < 4000 and t.ids("A Photo") == t.ids("a photo")


@pytest.mark.parametrize(
    "source, out, size, match",
    [
        ("jsonl:{pairs}", "pairs.jsonl", "300", "exists"),
        ("jsonl:{pairs}", "t.json", "258", "vocab_size=258 is out of range"),
        ("jsonl:{pairs}", "no/t.json", "300", "no folder"),
        ("folder:{images}", "t.json", "300", "has no captions"),
        ("digits", "t.json", "300", "has no captions"),
    ],
)
def test_tokenizer_refusals(run, pairs, tmp_path, capsys, source, out, size, match):
    before = pairs.read_bytes()
    path = source.format(pairs=pairs, images=run.images)
    assert main(["data", "tokenizer", path, str(tmp_path / out), "--vocab_size", size]) == 1
    assert match in capsys.readouterr().err
    assert pairs.read_bytes() == before and list(tmp_path.iterdir()) == [pairs]
