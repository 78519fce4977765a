"""``data``: checking a source and packing it."""

import json
import shutil

import numpy as np

from vit_jax.cli import main
from vit_jax.data.sources import open_source


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


def test_pack_keeps_order_labels_and_pixels(run, tmp_path, capsys):
    pattern = str(tmp_path / "train-{:03d}.tar")
    assert main(["data", "pack", f"folder:{run.images}", pattern, "--shard_size", "12"]) == 0
    assert "30 examples in 3 shards" in capsys.readouterr().out
    a = open_source(f"folder:{run.images}", holdout=0)
    b = open_source(f"tar:{tmp_path}/train-{{000..002}}.tar", holdout=0)
    assert a.info.class_names == b.info.class_names and len(a) == len(b)
    for i in np.random.default_rng(0).permutation(30)[:8]:
        assert (a[i]["label"], a[i]["image"]) == (b[i]["label"], b[i]["image"])
