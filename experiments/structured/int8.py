"""What int8 costs digits models that were trained as they are: top-1 of the same weights in four arithmetics.

python experiments/structured/int8.py --out runs/int8
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import numpy as np

import vit_jax as vj
from vit_jax import config
from vit_jax.launch import runtime

HERE = pathlib.Path(__file__).parent
MIXER = {"name": "mixer", "patch": 2, "width": 96, "token_dim": 64, "depth": 4, "mlp_dim": 192}
MODELS: dict[str, dict[str, Any] | None] = {"ViT": None, "MLP-Mixer": MIXER}
"""Name -> the model of the recipe of digits, None for its own."""
ARITHMETICS: dict[str, tuple[str, str | None]] = {
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    "int8": ("bfloat16", "int8"),
    "int8(dynamic)": ("bfloat16", "int8(dynamic)"),
}
"""Name -> compute type, and what the maps of a trained model become."""
FIELDS = ("qkv_linear", "out_linear", "mlp_linear", "token_linear")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--duration", default=None, help="another length of training, '1 epochs' for a try")
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "results_int8.json")
    args = parser.parse_args()
    runtime.setup()
    rows = [row for name in MODELS for seed in args.seeds for row in scores(name, seed, args)]
    args.results.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def scores(name: str, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Trains one model, and evaluates it once for each arithmetic."""
    raw = config.load(str(HERE.parent.parent / "configs" / "digits.py"), [("seed", str(seed))])
    raw["model"] = MODELS[name] or raw["model"]
    raw["duration"] = args.duration or raw["duration"]
    trained, rows = args.out / f"{name}_{seed}", []
    vj.train(raw, trained)
    for arithmetic, (dtype, spec) in ARITHMETICS.items():
        place = trained
        if spec:
            place = args.out / f"{name}_{seed}_{''.join(filter(str.isalnum, spec))}"
            fields = FIELDS[2:] if MODELS[name] else FIELDS[:3]
            vj.convert(trained, place, to="vit_jax", linear=[f"{field}={spec}" for field in fields])
        metrics = vj.evaluate(place, changes={"model.dtype": dtype}).metrics
        rows.append({"model": name, "seed": seed, "arithmetic": arithmetic, **{k: float(metrics[k]) for k in METRICS}})
        print(rows[-1], flush=True)
    return rows


METRICS = ("accuracy", "loss")


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds and the largest loss of accuracy of any, as Markdown."""
    lines = ["| model | arithmetic | accuracy | most lost by a seed | loss |", "|---|---|---|---|---|"]
    for name in MODELS:
        own = [r for r in rows if r["model"] == name]
        best = {r["seed"]: r["accuracy"] for r in own if r["arithmetic"] == "float32"}
        for arithmetic in ARITHMETICS:
            these = [r for r in own if r["arithmetic"] == arithmetic]
            accuracy, loss = (np.mean([r[k] for r in these]) for k in METRICS)
            lost = max(best[r["seed"]] - r["accuracy"] for r in these)
            lines.append(f"| {name} | {arithmetic} | {100 * accuracy:.2f} % | {100 * lost:.2f} points | {loss:.4f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
