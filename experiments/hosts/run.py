"""Real runs of several processes against the run of one: every row of the log, every parameter, every checkpoint.

python experiments/hosts/run.py --folder runs/hosts

A case of ``cases.py`` runs in one process with one device and as ``--processes`` hosts, joined over loopback by
``vit_jax launch local``. ``elastic`` goes on from the checkpoint in the middle on other numbers of hosts, devices and
other meshes. What lies in the folder already is not computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cases import ARGS, STEPS, WIDE

from vit_jax import checkpoint, metrics
from vit_jax.trees import flat

HERE = pathlib.Path(__file__).parent
BEGUN = {
    "distill": ["--config.objective.teacher={folder}/classify/one"],
    "wide_distill": ["--config.objective.teacher={folder}/wide_classify/one"],
    "wide_init": ["--config.init={folder}/wide_classify/one"],
}
"""Case -> what it takes from another."""
FSDP = {8: ["--config.mesh.fsdp=8", "--config.mesh.replica=1"], 4: ["--config.mesh.fsdp=4", "--config.mesh.replica=2"]}
CASES: dict[str, tuple[str, list[str]]] = {
    **{name: (name, []) for name in ARGS},
    "classify, tensor over hosts": ("classify", ["--config.mesh.tensor=4", "--config.mesh.replica=2"]),
    **{f"{name}, fsdp={n} over hosts": (name, FSDP[n]) for name in WIDE for n in FSDP if n == 4 or name == WIDE[0]},
}
"""Name -> case, and the mesh of the run of several hosts."""
ELASTIC = {
    "4 hosts x 2, replica=8": (4, 2, []),
    "2 hosts x 4, fsdp=4": (2, 4, ["--config.mesh.replica=2", "--config.mesh.fsdp=4"]),
    "1 host x 8, tensor=2": (1, 8, ["--config.mesh.replica=4", "--config.mesh.tensor=2"]),
    "1 host x 1": (1, 1, []),
}
"""What goes on from the middle of a run of several hosts, and from that of one."""
Line = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="runs/hosts", type=pathlib.Path)
    parser.add_argument("--processes", default=4, type=int)
    parser.add_argument("--devices_per_process", default=2, type=int)
    parser.add_argument("--only", nargs="+", choices=[*CASES, "elastic"])
    parser.add_argument("--results", default=HERE / "results.json", type=pathlib.Path)
    args = parser.parse_args()
    lines: dict[str, Line] = json.loads(args.results.read_text()) if args.results.exists() else {}
    for name, (case, mesh) in CASES.items():
        if name in (args.only or CASES):
            one = once(args.folder / case / "one", case, 1, 1, [])
            folder = args.folder / name.replace(" ", "_") / "many"
            many = once(folder, case, args.processes, args.devices_per_process, mesh)
            note(lines, name, compare(one, many), args)
    for name, (hosts, devices, words) in ELASTIC.items() if "elastic" in (args.only or ["elastic"]) else ():
        for begun in ("one", "many"):
            whole, part = args.folder / "sam" / begun, args.folder / "elastic" / f"{hosts}x{devices}_{begun}"
            if not part.exists():
                shutil.copytree(whole, part)
                shutil.rmtree(part / "checkpoints" / str(STEPS))
                (part / "results.json").unlink()
            on = once(part, "sam", hosts, devices, words)
            note(lines, f"elastic: {begun} -> {name}", compare(args.folder / "sam" / "one", on), args)
    print(table(lines))


def once(workdir: pathlib.Path, case: str, hosts: int, devices: int, mesh: Sequence[str]) -> pathlib.Path:
    """The folder of a run that is at its end."""
    if (workdir / "results.json").exists():
        return workdir
    begun = [word.format(folder=workdir.parents[1]) for word in BEGUN.get(case, [])]
    train = ["train", "--config", f"{HERE / 'cases.py'}:{case}", "--workdir", str(workdir), *begun, *mesh]
    launch = ["launch", "local", "--processes", str(hosts), "--devices_per_process", str(devices), "--"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "vit_jax", *(launch if hosts > 1 else []), *train]
    subprocess.run(command, env=environment, check=True, timeout=1800)
    return workdir


def compare(one: pathlib.Path, other: pathlib.Path) -> Line:
    """How far the rows of two logs and the arrays of two last checkpoints are apart."""
    rows, others = (list(map(numbers, metrics.read(folder))) for folder in (one, other))
    assert [sorted(row) for row in rows] == [sorted(row) for row in others]
    pairs = [(key, row[key], theirs[key]) for row, theirs in zip(rows, others, strict=True) for key in row]
    apart = {key: max(abs(a - b) / max(abs(a), 1e-3) for k, a, b in pairs if k == key) for key in rows[0] | rows[-1]}
    losses = [abs(a - b) / abs(a) for key, a, b in pairs if key == "train/loss"]
    trees = [flat(checkpoint.load_params(folder)[0]) for folder in (one, other)]
    arrays = max(float(np.max(np.abs(np.asarray(trees[0][k]) - np.asarray(trees[1][k])))) for k in trees[0])
    counted = sorted({int(row[key]) for row in others for key in row if key.endswith("examples")})
    furthest = max(apart, key=lambda key: apart[key])
    return {
        "loss, relative": max(losses), "furthest": {furthest: apart[furthest]}, "parameters": arrays,
        "values": len(pairs), "equal to the last bit": sum(a == b for _, a, b in pairs), "examples scored": counted,
    }  # fmt: skip


def numbers(row: Mapping[str, float]) -> dict[str, float]:
    """What does not depend on the clock."""
    return {key: value for key, value in row.items() if not key.startswith("speed/")}


def note(lines: dict[str, Line], name: str, line: Line, args: argparse.Namespace) -> None:
    lines[name] = {"processes": args.processes, "devices_per_process": args.devices_per_process, **line}
    args.results.write_text(json.dumps(lines, indent=1) + "\n")
    print(name, json.dumps(line), flush=True)


def table(lines: Mapping[str, Line]) -> str:
    rows = [
        "| run | loss, largest relative difference | furthest value of the log | parameters | values equal |",
        "|---|---|---|---|---|",
    ]
    for name, line in lines.items():
        ((key, apart),) = line["furthest"].items()
        equal = f"{line['equal to the last bit']} of {line['values']}"
        rows.append(
            f"| {name} | {line['loss, relative']:.1e} | {apart:.1e} (`{key}`) | {line['parameters']:.1e} | {equal} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
