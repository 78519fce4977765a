"""``experiments/scaling/tokens.py`` at sizes that take seconds."""

import importlib.util
import json
import pathlib

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "experiments" / "scaling" / "tokens.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("tokens", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_power_is_that_of_the_largest(script):
    assert script.power([(16, 5.0), (64, 3.0), (256, 48.0)]) == 2
    assert script.power([(4, 7.0), (8, 14.0)]) == 1


@pytest.mark.slow
def test_a_row_for_each_model_and_size_and_a_plot(script, tmp_path):
    out, plot = tmp_path / "tokens.json", tmp_path / "tokens.png"
    script.main(["--sizes", "32", "64", "--depth", "1", "--rounds", "1", "--json", str(out), "--plot", str(plot)])
    found = json.loads(out.read_text())
    assert [(r["model"], r["tokens"]) for r in found["rows"]] == [("Vim", 4), ("ViT", 4), ("Vim", 16), ("ViT", 16)]
    assert all(r["seconds"] > 0 and r["temporaries MB"] > 0 for r in found["rows"])
    assert {*found["power of the number of tokens"]} == {"Vim", "ViT"}
    assert plot.read_bytes().startswith(b"\x89PNG")
