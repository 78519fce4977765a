"""``experiments/scaling/tokens.py`` at sizes that take seconds."""

import argparse
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from vit_jax.bench.timing import Timing

SCRIPT = pathlib.Path(__file__).parents[1] / "experiments" / "scaling" / "tokens.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("tokens", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("ratio", "tokens", "power"), [(16.0, 4, 2), (2.0, 2, 1), (1.0, 3, 0), (8.0, 4, 1.5)])
def test_a_power_of_the_number_of_tokens(script, ratio, tokens, power):
    assert script.power(ratio, tokens) == power


def test_growth_is_from_the_smaller_of_the_last_two_sizes_to_the_larger(script, monkeypatch):
    seconds = {"64": [1.0, 2.0, 1.0], "128": [16.0, 32.0, 64.0]}
    monkeypatch.setattr(script, "program", lambda name, size, args: (lambda: size, float(size)))
    monkeypatch.setattr(script, "alternate", lambda runs, rounds: {k: Timing(np.array(seconds[k])) for k in runs})
    found = script.growth("Vim", argparse.Namespace(sizes=(16, 64, 128), rounds=3))
    assert found["Time"][0] == 2 and 2 <= found["Time"][1] < 2.01 < found["Time"][2] and found["Memory"] == 0.5


@pytest.mark.slow
def test_a_row_for_each_model_and_size_and_a_plot(script, tmp_path):
    out, plot = tmp_path / "tokens.json", tmp_path / "tokens.png"
    script.main(["--sizes", "32", "64", "--depth", "1", "--rounds", "1", "--json", str(out), "--plot", str(plot)])
    found = json.loads(out.read_text())
    assert [(r["model"], r["tokens"]) for r in found["rows"]] == [("Vim", 4), ("ViT", 4), ("Vim", 16), ("ViT", 16)]
    assert all(r["seconds"] > 0 and r["temporaries MB"] > 0 for r in found["rows"])
    powers = found["power of the number of tokens"]
    assert {*powers} == {"Vim", "ViT"} and all(len(p["Time"]) == 3 and 0 < p["Memory"] < 3 for p in powers.values())
    assert plot.read_bytes().startswith(b"\x89PNG")
