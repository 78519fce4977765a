"""Plans of four published trainings on slices of TPUs: what each takes, and how long the answer takes.

    python experiments/scaling/plans.py [--only clip_l14]

Resumable: a plan that ``plans.json`` has is not made again, unless the package has changed since (``--again``). Each is
made by a process of its own, so that its seconds are those of the command; take them on a machine that does nothing
else.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "plans.json"
LOOP = ("scan=True", "remat=full")


def stacks(*parts: str) -> list[str]:
    """Blocks of these parts of the model as a loop that recomputes them."""
    return [f"model.{part}.{word}" if part else f"model.{word}" for part in parts for word in LOOP]


PAIRS = ["data.path=tar:/data/{00000..41408}.tar", "objective.form=ring", "batch_size=32768"]
TRAININGS: dict[str, tuple[str, list[str]]] = {
    "vit_b16": ("imagenet:vit_b16", ["data.path=tfds:imagenet2012", "model.scan=True"]),
    "vit_g14": ("imagenet:vit_g14", ["data.path=tfds:imagenet2012", *stacks("")]),
    "clip_l14": ("clip:clip_vit_l14", [*PAIRS, *stacks("image_tower", "text_tower")]),
    "coca_l14": ("coca:coca_vit_l14", [*PAIRS, *stacks("image_tower", "text_tower", "decoder")]),
}
"""Name -> recipe and what a user would add to it on any slice."""
SLICES: dict[str, dict[str, list[str]]] = {
    "v5e:4x4": {
        "vit_b16": ["accumulate=4"],
        "vit_g14": ["mesh.replica=1", "mesh.fsdp=16", "accumulate=8"],
        "clip_l14": ["accumulate=32"],
        "coca_l14": ["accumulate=32", "mesh.replica=4", "mesh.fsdp=4"],
    },
    "v5e:16x16": {
        "vit_b16": [],
        "vit_g14": ["mesh.replica=16", "mesh.fsdp=16"],
        "clip_l14": ["accumulate=2"],
        "coca_l14": ["accumulate=2", "mesh.replica=64", "mesh.fsdp=4"],
    },
    "v6e:4x4": {"vit_b16": ["accumulate=2"]},
}
"""Topology -> training -> how it is split there."""


def made(topology: str, name: str) -> dict:
    """The plan by the command line, with the seconds that it took."""
    recipe, words = TRAININGS[name]
    words = [f"--config.{word}" for word in (*words, *SLICES[topology][name])]
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "plan.json")
        command = ["plan", "--config", recipe, "--topology", topology, "--json", out, *words]
        environment = {**os.environ, "XDG_CACHE_HOME": folder}  # nothing that was found out before
        begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "vit_jax", *command], check=False, env=environment)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = {"wall": time.monotonic() - begun}
        seconds |= {"user": used.ru_utime - before.ru_utime, "system": used.ru_stime - before.ru_stime}
        plan = json.loads(pathlib.Path(out).read_text())
    return {"command": " ".join(["vit_jax", *command[:5], *words]), "seconds": seconds, "plan": plan}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=TRAININGS, help="this training alone")
    parser.add_argument("--again", action="store_true", help="make all of them anew")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() and not args.again else {}
    for topology, rows in SLICES.items():
        for name in rows:
            key = f"{name} {topology}"
            if key not in results and args.only in (None, name):
                print(f"\n== {key}", flush=True)
                results[key] = made(topology, name)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{'training':22s} {'fits':5s} {'GiB':>6s} {'ms a step':>16s} {'MFU':>7s} {'wall s':>7s} {'CPU s':>7s}")
    for key, row in results.items():
        plan, seconds = row["plan"], row["seconds"]
        when = plan["time"]
        ms = f"{when['least'] * 1e3:,.0f} to {when['most'] * 1e3:,.0f}" if when else ""
        mfu = f"{plan['mfu'][0]:.0%}" if when else ""
        cpu = seconds["user"] + seconds["system"]
        fits = "yes" if plan["fits"] else "no"
        needed = plan["memory"]["needed"] / 2**30
        print(f"{key:22s} {fits:5s} {needed:>6.2f} {ms:>16s} {mfu:>7s} {seconds['wall']:>7.0f} {cpu:>7.0f}")


if __name__ == "__main__":
    main()
