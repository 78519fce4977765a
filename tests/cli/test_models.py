"""``models``: parameters and FLOPs by name."""

import functools
import json
import subprocess
import sys

import pytest

from vit_jax import architectures, models
from vit_jax.cli import main


@pytest.fixture
def table(monkeypatch):
    """Three small models instead of all."""
    tiny = functools.partial(models.ViT, width=16, depth=1, heads=2, mlp_dim=32)
    small = {
        "vit_a16": tiny,
        "vit_b14": functools.partial(tiny, patch=14),
        "mixer_a32": functools.partial(models.Mixer, depth=1),
    }
    monkeypatch.setattr(architectures, "NAMES", tuple(small))
    monkeypatch.setattr(models, "NAMES", small)
    monkeypatch.setattr(models, "create", lambda name, **kw: small[name](**kw))


def test_names_at_once(capsys):
    """No model is made, and JAX is not even imported."""
    assert main(["models", "--json", "-"]) == 0
    rows = {row["model"]: row["aliases"] for row in json.loads(capsys.readouterr().out)}
    assert [*rows] == models.names() and rows["vit_b16"] == [
        "ViT-B/16",
        "vit_base_patch16_224",
        "flexivit_base",
    ]
    code = "import sys\nfrom vit_jax.cli import main\nmain(['models', 'vit_?16'])\nassert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == "" and done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [f"vit_{size}16" for size in "sblhg"]
    assert lines[1].split()[1:] == ["ViT-B/16,", "vit_base_patch16_224,", "flexivit_base"]
    assert main(["models", "vat_*"]) == 2
    assert "no model is called like 'vat_*'; vit_jax models lists all" in capsys.readouterr().err


def test_all(table, capsys, tmp_path):
    assert main(["models", "--costs", "--size", "32", "--json", str(tmp_path / "x.json")]) == 0
    rows = {r["model"]: r for r in json.loads((tmp_path / "x.json").read_text())}
    assert set(rows) == {"vit_a16", "vit_b14", "mixer_a32"}
    assert "not divisible by the patch size 14" in rows["vit_b14"]["error"]  # and the others are still listed
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and f"{rows['vit_a16']['parameters']:,d}" in lines[1]


def test_time_at_the_peak_of_a_chip(table, capsys):
    assert main(["models", "vit_a*", "--chip", "v6e", "--size", "32", "--json", "-"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["us_at_peak"] == pytest.approx(1e3 * row["gflops"] / 918, rel=0.01)
    assert main(["models", "vit_a16", "--chip", "v5e", "--size", "32"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.endswith("us at peak, v5e") and len(line) == len(head)


def test_one_by_any_of_its_names(capsys):
    """The published number of parameters, and 1.26 billion multiply-adds as timm states for it."""
    assert main(["models", "vit_tiny_patch16_224", "--json", "-"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["parameters"] == 5_717_416
    assert row["gflops"] == pytest.approx(2 * 1.26, rel=0.03)


def test_one_with_fields(capsys):
    """Of 17 tokens six are merged before the first MLP: parameters stay, work does not."""
    fields = "patch=4, width=32, depth=2, heads=2, mlp_dim=256, num_classes=3"
    rows = []
    for name in (f"vit({fields})", f"vit({fields}, reduce=merge(6))"):
        assert main(["models", name, "--size", "16", "--json", "-"]) == 0
        rows += json.loads(capsys.readouterr().out)
    assert rows[0]["parameters"] == rows[1]["parameters"]
    assert 0.5 < rows[1]["gflops"] / rows[0]["gflops"] < 0.75
    assert main(["models", "vit(reduce=mrege(6))"]) == 2
    assert "did you mean 'merge'" in capsys.readouterr().err


def test_a_size_that_does_not_fit_is_an_error(capsys):
    assert main(["models", "vit_ti16", "--size", "30"]) == 1
    assert "30x30 is not divisible by the patch size 16" in capsys.readouterr().err


def test_with_other_linear_maps(table, capsys):
    assert main(["models", "vit_a16", "--size", "32", "--linear", "low_rank(2)", "--json", "-"]) == 0
    dense, low = json.loads(capsys.readouterr().out)
    assert low["model"] == "vit_a16 low_rank(2)" and low["bytes"] == 4 * low["parameters"]
    saved = sum(i * o - 2 * (i + o) for i, o in ((16, 48), (16, 16), (16, 32), (32, 16)))
    assert dense["parameters"] - low["parameters"] == saved
    assert low["gflops"] < dense["gflops"]


def test_an_unknown_linear_map_is_a_sentence(capsys):
    assert main(["models", "vit_ti16", "--linear", "monarc(4)"]) == 2
    assert "unknown --linear 'monarc'; did you mean 'monarch'" in capsys.readouterr().err


@pytest.mark.parametrize("dtype, width", [("float32", 4), ("bfloat16", 2)])
def test_bytes_are_compared_in_one_type(table, capsys, dtype, width):
    """A packed 2:4 map: half of the values, and an index of 2 bits for each of those, four in a byte."""
    assert main(["models", "vit_a16", "--linear", "packed24", "--dtype", dtype, "--json", "-"]) == 0
    dense, packed = json.loads(capsys.readouterr().out)
    maps = 4 * 16 * 16 + 2 * 16 * 32
    assert dense["bytes"] == width * dense["parameters"]
    assert dense["bytes"] - packed["bytes"] == width * maps / 2 - maps / 2 / 4
