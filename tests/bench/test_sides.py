"""Candidates in processes of their own: asked in turn, and said when they end."""

import json
import pathlib
import subprocess
import sys
import textwrap

import pytest

from vit_jax.bench.sides import Side, alternate
from vit_jax.types import UserError

PROGRAM = """
    import sys, time
    from vit_jax.bench.sides import serve

    def make():
        print("not an answer")
        if sys.argv[1] == "broken":
            raise SystemExit(3)
        calls = []
        waited = []
        global facts
        facts = lambda: {"calls": len(calls), "waited": len(waited)}
        return lambda: calls.append(0) or time.sleep(float(sys.argv[1])), waited.append

    serve(make, lambda: facts())
"""


def side(argument, seconds=60):
    return Side([sys.executable, "-c", textwrap.dedent(PROGRAM), argument], seconds)


def test_sides_are_timed_in_turn():
    sides = {"fast": side("0.001"), "slow": side("0.03")}
    try:
        assert all(s.answer() > 0 for s in sides.values())  # ready
        times = alternate(sides, rounds=3, calls=2)
        assert times["slow"].median >= 0.03 and times["fast"].over(times["slow"])[0] > 2
        assert {name: s.ask("facts") for name, s in sides.items()} == {
            name: {"calls": 9, "waited": 6} for name in sides
        }
    finally:
        for s in sides.values():
            s.close()


def test_a_side_that_ends_is_said():
    broken, late = side("broken"), side("60", seconds=0)
    for one, code in ((broken, 3), (late, -9)):
        with pytest.raises(UserError, match=f"a candidate ended with exit code {code}"):
            one.answer()
        with pytest.raises(UserError, match="ended"):
            one.ask("facts")
        one.close()


@pytest.mark.slow  # 3 minutes
def test_the_benchmark_for_gpus_runs_at_tiny_sizes(tmp_path):
    script = pathlib.Path(__file__).parents[2] / "experiments" / "benchmarks" / "gpu.py"
    subprocess.run([sys.executable, script, "--tiny", "--json", tmp_path / "gpu.json"], check=True, timeout=900)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found) >= {"contracts", "precision", "kernels", "attention", "vit_b16 train", "vit_l16 forward", "clip"}
    for record in (r for records in found.values() for r in records):
        assert record.get("passed", True) and set(record.get("failed", {})) <= {"timm"}, record
    assert found["vit_b16 train"][0]["images/s"]["vit_jax"] > 0
