"""``experiments/benchmarks``: every row can be run, and the tables are what the results say."""

import importlib.util
import json
import pathlib
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest

from vit_jax import cli

FOLDER = pathlib.Path(__file__).parents[1] / "experiments" / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    """The module ``experiments/benchmarks/run.py``."""
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location("benchmarks_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["tables"]


def rows(bench):
    return [row for table in bench.TABLES.values() for row in table.rows]


def test_every_row_is_accepted(bench):
    """By the parser of the command line; of a script, its options are there."""
    names = [row.name for row in rows(bench)]
    assert len(names) == len(set(names)) > 25
    for row in rows(bench):
        words = shlex.split(row.argv)
        if words and words[0] == "bench":
            assert cli.parse([*words, "--json", "result.json"]).command == "bench"
        elif words:
            options = [word for word in [*words, "--json"] if word.startswith("--")]
            assert [o for o in options if f'"{o}"' not in (FOLDER / words[0]).read_text()] == [], row.name


def test_the_tables_are_what_the_results_say(bench):
    """Nobody writes into them by hand, and no result is left that no row reads."""
    text = bench.README.read_text()
    assert [name for name in bench.TABLES if bench.rendered(name) not in text] == []
    assert bench.page(text) == text
    assert {path.stem for path in bench.RESULTS.iterdir()} <= {row.name for row in rows(bench)}
    pictures = [word for row in rows(bench) for word in row.argv.split() if word.endswith(".png")]
    assert pictures and all(pathlib.Path(word).name in text for word in pictures)


FOUND = {
    "times faster (median)": 1.254, "times faster (10th percentile)": 1.1, "times faster (90th percentile)": 1.5,
    "vit_jax core seconds/step": 2.0, "timm core seconds/step": 3.0, "share of one large product's speed": 0.5,
}  # fmt: skip


def test_what_is_measured_comes_into_the_tables(bench, monkeypatch, tmp_path, capfd):
    """A row whose process fails keeps its line; the next run measures that row alone; ``--again`` measures anew."""
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "README", tmp_path / "README.md")
    monkeypatch.setattr(bench, "HERE", tmp_path)
    (tmp_path / "README.md").write_text("Before.\n\n<!-- cpu -->\n\nold\n\n<!-- end of cpu -->\n\nBehind.\n")
    asked, fails = [], {"float32"}

    def run(command, **_):
        asked.append(command[3:-2])
        if fails.intersection(command):
            return subprocess.CompletedProcess(command, 1)
        pathlib.Path(command[-1]).write_text(json.dumps(FOUND))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(bench.subprocess, "run", run)
    only = ["run.py", "--only", "vit_b16_train_timm", "vit_b16_forward_timm_float32"]
    monkeypatch.setattr(sys, "argv", [*only, "--json", str(tmp_path / "all.json")])
    with pytest.raises(SystemExit, match=r"^not measured, .* above: vit_b16_forward_timm_float32$"):
        bench.main()
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("Before.\n\n<!-- cpu -->\n\n| model | ") and text.endswith("-->\n\nBehind.\n")
    line = "| ViT-B/16 train step, bfloat16 | timm | **1.25x** (1.10 to 1.50) | 1.50x | 50% |"
    assert line in text and "| ViT-B/16 train step, float32 | not measured yet |  |  |  |" in text
    assert "vit_jax bench train --against timm  # vit_b16_train_timm" in text
    assert asked[0] == ["bench", "train", "--against", "timm"] and len(asked) == 2
    assert json.loads((tmp_path / "all.json").read_text())["vit_b16_train_timm"] == FOUND
    assert (tmp_path / "ratios.png").exists()
    fails.clear()
    monkeypatch.setattr(sys, "argv", only)
    bench.main()
    assert len(asked) == 3 and "float32" in asked[2]
    monkeypatch.setattr(sys, "argv", [*only, "--again"])
    bench.main()
    assert len(asked) == 5


def test_photographs_have_the_size_that_is_said(bench, tmp_path):
    sizes = [path.stat().st_size for path in bench.photographs(tmp_path).rglob("*.jpg")]
    assert len(sizes) == 256 and 100e3 < sum(sizes) / len(sizes) < 120e3


@pytest.mark.parametrize("n", [197, 5003])
def test_two_passes_are_softmax(n, rng):
    """In float64, rounded: also of logits whose exponentials are no floats, and of rows that lanes don't divide."""
    spec = importlib.util.spec_from_file_location("two_pass_softmax", FOLDER / "two_pass_softmax.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x = rng.standard_normal((4, n)) * np.array([[1.0], [30.0], [1e3], [1e4]])
    x = np.concatenate([x, -np.abs(x), np.full((1, n), 300.0)]).astype(np.float32)
    wide = x.astype(np.float64)
    want = np.exp(wide - wide.max(1, keepdims=True))
    want /= want.sum(1, keepdims=True)
    got = np.asarray(jax.jit(module.two_pass)(x), np.float64)
    # n times the first part of ln 2 is rounded beyond n = 128, above and below the line; a sum of n numbers n times.
    off = np.finfo(np.float32).eps * (8 + n / 2 + np.abs(wide).max(1, keepdims=True))
    assert np.all(np.abs(got - want) <= off * want + 1e-37)
