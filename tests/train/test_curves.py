"""The first steps of the recipes: neither a refactoring nor the compute type may move their curves.

``python tests/train/test_curves.py`` writes them anew, for a change that is meant to move them; with ``--exact`` it
compares bit for bit with what is stored, which holds on the machine and the versions that wrote it.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
RECIPES = {"digits": "digits.py", "digits_sam": "digits.py:sam", "clip": "clip.py:digits", "coca": "coca.py:digits"}
CHANGES = {"log_every": 1, "plots": False}
LENGTHS = ("duration", "eval_every", "checkpoint_every")


def curve(name: str, steps: int = 30, **more: str) -> list[dict[str, float]]:
    """Every value that the recipe's run logs in a process with one device, measured speeds left out."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as scratch:
        changes = {**CHANGES, **dict.fromkeys(LENGTHS, f"{steps} steps"), **more}
        run, options = f"{scratch}/run", [f"--config.{key}={value}" for key, value in changes.items()]
        command = ["train", "--config", f"configs/{RECIPES[name]}", "--workdir", run, *options]
        subprocess.run(
            [sys.executable, "-m", "vit_jax", *command], cwd=ROOT, env=environment, check=True, capture_output=True
        )
        rows = [json.loads(line) for line in pathlib.Path(run, "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_first_30_steps_are_those_stored(name):
    found, stored = curve(name), json.loads((GOLDEN / f"{name}_curve.json").read_text())
    assert [list(row) for row in found] == [list(row) for row in stored] and found[-1]["step"] == 30
    losses = [[row["train/loss"] for row in rows if "train/loss" in row] for rows in (found, stored)]
    assert len(losses[0]) == 30
    # other processors round otherwise; the image-text recipes compute in bfloat16
    np.testing.assert_allclose(*losses, rtol=1e-2 if name in ("clip", "coca") else 1e-4)


@pytest.mark.slow
def test_bfloat16_trains_as_float32_does():
    rows = [curve("digits", 200, **{"model.dtype": dtype}) for dtype in ("float32", "bfloat16")]
    float32, bfloat16 = ([row["train/loss"] for row in run if "train/loss" in row] for run in rows)
    assert len(float32) == 200 and float32[-1] < 0.55 * float32[0] and float32 != bfloat16
    np.testing.assert_allclose(bfloat16, float32, rtol=1e-2)


def main() -> None:
    for name in RECIPES:
        found, file = curve(name), GOLDEN / f"{name}_curve.json"
        if "--exact" in sys.argv:
            print(name, "equal bit for bit" if json.loads(file.read_text()) == found else "DIFFERS")
        else:
            file.write_text(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    main()
