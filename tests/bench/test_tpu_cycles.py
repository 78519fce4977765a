"""What the TPU's compiler expects of reference programs: a change may not make them slower without saying so.

``python tests/bench/test_tpu_cycles.py`` writes the expectations anew, for a change that is meant to move them.
"""

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "tpu_cycles.json"
PROGRAMS = {"vit forward": ("vit_b16", "forward"), "vit train": ("vit_b16", "train"), "mixer": ("mixer_b16", "forward")}
"""Two blocks of models of width 768, 64 images of 224 px, one v5e chip."""
SLACK = 0.03
CODE = """\
import json, sys
from vit_jax import models
from vit_jax.bench import tpu
for key, (name, work) in json.loads(sys.argv[1]).items():
    (one,) = tpu.compare(work, name, models.create(name, depth=2), "v5e", batch=64, size=224)
    reasons = [kernel.reason for kernel in one.kernels if kernel.reason]
    found = {"cycles": one.cycles, "copies of activations": one.copies, "kernels without a schedule": len(reasons)}
    print(json.dumps({key: found}), flush=True)
"""


def estimates() -> dict[str, dict[str, int]]:
    """What is expected of every program, in a process with one device and the settings of a user."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CODE, json.dumps(PROGRAMS)]
    lines = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    return {key: value for line in lines.splitlines() for key, value in json.loads(line).items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The estimates of now, with those that were written under this version of the compiler."""
    pytest.importorskip("libtpu")
    stored = json.loads(GOLDEN.read_text())
    if (version := importlib.metadata.version("libtpu")) not in stored:
        pytest.skip(f"nothing is stored for libtpu {version}: python tests/bench/test_tpu_cycles.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return estimates(), stored[version]


@pytest.mark.tpu
@pytest.mark.parametrize("program", PROGRAMS)
def test_no_program_takes_more_cycles_than_were_stored(program, found):
    now, stored = (one[program] for one in found)
    assert now["cycles"] <= (1 + SLACK) * stored["cycles"] and now["cycles"] > 10**6
    assert now["copies of activations"] <= stored["copies of activations"]
    assert now["kernels without a schedule"] == 0


def main() -> None:
    stored = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    stored[importlib.metadata.version("libtpu")] = estimates()
    GOLDEN.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
