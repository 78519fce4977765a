"""AdamW against AdamW with SAM on the bundled digits: same epochs, three seeds, one table.

python experiments/sam_digits/run.py --out runs/sam_digits
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import time

import numpy as np

from vit_jax import config
from vit_jax.launch import runtime
from vit_jax.train import loop, workdir

HERE = pathlib.Path(__file__).parent
CONFIG = HERE.parent.parent / "configs" / "digits.py"
METHODS = {"AdamW": "", "AdamW + SAM": "sam"}
METRICS = ("accuracy", "loss", "ece")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--duration", default=None, help="another length of training, '1 epochs' for a try")
    parser.add_argument("--results", default=str(HERE / "results.json"))
    args = parser.parse_args()
    runtime.setup()
    runs = [one(method, arg, seed, args) for seed in range(args.seeds) for method, arg in METHODS.items()]
    pathlib.Path(args.results).write_text(json.dumps(runs, indent=1) + "\n")
    print(table(runs))


def one(method: str, arg: str, seed: int, args: argparse.Namespace) -> dict:
    overrides = [("seed", str(seed))] + ([("duration", args.duration)] if args.duration else [])
    raw = config.load(f"{CONFIG}:{arg}", overrides)
    start = time.perf_counter()
    result = loop.run(raw, pathlib.Path(args.out) / f"{arg or 'adamw'}_{seed}")
    about = workdir.provenance()
    return {
        "method": method,
        "seed": seed,
        "config": hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:12],
        "commit": about["commit"],
        "vit_jax": about["vit_jax"],
        "jax": about["jax"],
        "minutes": round((time.perf_counter() - start) / 60, 2),
        **{name: result.report.metrics[name] for name in METRICS},
    }


def table(runs: list[dict]) -> str:
    """Mean and standard deviation over the seeds, as Markdown."""
    lines = ["| method | accuracy | each seed | loss | ECE | minutes |", "|---|---|---|---|---|---|"]
    for method in METHODS:
        rows = [r for r in runs if r["method"] == method]
        mean = {k: np.mean([r[k] for r in rows]) for k in (*METRICS, "minutes")}
        spread = np.std([100 * r["accuracy"] for r in rows], ddof=1) if len(rows) > 1 else 0.0
        each = ", ".join(f"{100 * r['accuracy']:.2f}" for r in rows)
        lines.append(
            f"| {method} | {100 * mean['accuracy']:.2f} ± {spread:.2f} % | {each} | {mean['loss']:.3f} "
            f"| {mean['ece']:.3f} | {mean['minutes']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
