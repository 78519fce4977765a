"""Candidates in processes of their own: asked in turn, and said when they end."""

import json
import pathlib
import subprocess
import sys
import textwrap

import pytest

from vit_jax.bench import sides
from vit_jax.bench.sides import Side, alternate, started
from vit_jax.types import UserError

PROGRAM = """
    import subprocess, sys, time
    from vit_jax.bench.sides import serve
    from vit_jax.types import UserError

    def make():
        print("not an answer")
        if sys.argv[1] == "broken":
            raise SystemExit(3)
        if sys.argv[1] == "refused":
            raise UserError("it takes more.")
        calls = []
        waited = []
        global facts
        facts = lambda: {"calls": len(calls), "waited": len(waited)}
        return lambda: calls.append(0) or time.sleep(float(sys.argv[1])), waited.append

    serve(make, lambda: facts())
"""


def command(argument):
    return [sys.executable, "-c", textwrap.dedent(PROGRAM), argument]


def side(argument, seconds=60):
    return Side(command(argument), seconds)


def test_sides_are_timed_in_turn():
    both = {"fast": side("0.001"), "slow": side("0.03")}
    try:
        assert all(s.answer() > 0 for s in both.values())  # ready
        times = alternate(both, rounds=3, calls=2)
        assert times["slow"].median >= 0.03 > times["slow"].median_work and times["fast"].over(times["slow"])[0] > 2
        assert {name: s.ask("facts") for name, s in both.items()} == {name: {"calls": 9, "waited": 6} for name in both}
    finally:
        for s in both.values():
            s.close()


def test_a_side_that_ends_is_said():
    broken, late = side("broken"), side("60", seconds=0)
    for one, code in ((broken, 3), (late, -9)):
        with pytest.raises(UserError, match=f"a candidate ended with exit code {code}"):
            one.answer()
        with pytest.raises(UserError, match="ended"):
            one.ask("facts")
        one.close()


def test_sides_end_with_the_block(monkeypatch):
    begun = []

    def start(command):
        begun.append(Side(command))
        return begun[-1]

    monkeypatch.setattr(sides, "Side", start)
    with pytest.raises(UserError, match=r"^it takes more\.$"), started({"no": command("refused")}):
        pass
    assert [one._process.poll() is not None for one in begun] == [True]


@pytest.mark.slow  # 3 minutes
def test_the_benchmark_for_gpus_runs_at_tiny_sizes(tmp_path):
    script = pathlib.Path(__file__).parents[2] / "experiments" / "benchmarks" / "gpu.py"
    subprocess.run([sys.executable, script, "--tiny", "--json", tmp_path / "gpu.json"], check=True, timeout=900)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found) >= {"contracts", "precision", "kernels", "attention", "vit_b16 train", "vit_l16 forward", "clip"}
    for record in (r for records in found.values() for r in records):
        assert record.get("passed", True) and set(record.get("failed", {})) <= {"timm"}, record
    assert found["vit_b16 train"][0]["images/s"]["vit_jax"] > 0
