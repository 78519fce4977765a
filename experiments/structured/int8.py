"""What int8 costs models that were trained as they are: top-1 of the same weights in four arithmetics.

python experiments/structured/int8.py --out runs/int8 --cifar folder:/data/cifar10/train
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

import vit_jax as vj
from vit_jax import config
from vit_jax.launch import runtime

HERE = pathlib.Path(__file__).parent
FIELDS = ("qkv_linear", "out_linear", "mlp_linear")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
      config: name of the configuration.
      changes: what is changed in it, keys with texts as on the command line.
      model: another model than that of the configuration, or None.
      fields: the model's linear maps, which become int8.
    """

    config: str
    changes: dict[str, str] = dataclasses.field(default_factory=dict)
    model: dict[str, Any] | None = None
    fields: tuple[str, ...] = FIELDS


MIXER = {"name": "mixer", "patch": 2, "width": 96, "token_dim": 64, "depth": 4, "mlp_dim": 192}
SHORT = {"model.patch": "8", "model.dtype": "float32", "batch_size": "128", "duration": "4 epochs"}
MODELS = {
    "ViT, digits": Recipe("digits"),
    "MLP-Mixer, digits": Recipe("digits", {}, MIXER, ("mlp_linear", "token_linear")),
    "ViT, CIFAR-10": Recipe("cifar", SHORT),
}
ARITHMETICS: dict[str, tuple[str, str | None]] = {
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    "int8": ("bfloat16", "int8"),
    "int8(dynamic)": ("bfloat16", "int8(dynamic)"),
}
"""Name -> compute type, and what the maps of a trained model become."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the runs")
    parser.add_argument("--cifar", metavar="SOURCE", help="where the images of CIFAR-10 lie; without, those rows stay")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--duration", default=None, help="another length of training, '1 epochs' for a try")
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "results_int8.json")
    args = parser.parse_args()
    runtime.setup()
    rows = json.loads(args.results.read_text()) if args.results.exists() else []
    for name in MODELS:
        if MODELS[name].config == "cifar" and not args.cifar:
            continue
        for seed in args.seeds:
            rows = [row for row in rows if (row["model"], row["seed"]) != (name, seed)] + scores(name, seed, args)
            args.results.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def scores(name: str, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Trains one model, and evaluates it once for each arithmetic."""
    recipe = MODELS[name]
    changes = {**recipe.changes, "seed": str(seed)}
    changes |= {"data.path": args.cifar} if recipe.config == "cifar" else {}
    changes |= {"duration": args.duration} if args.duration else {}
    raw = config.load(str(HERE.parent.parent / "configs" / f"{recipe.config}.py"), list(changes.items()))
    raw["model"] = recipe.model or raw["model"]
    trained, rows = args.out / f"{''.join(filter(str.isalnum, name))}_{seed}", []
    vj.train(raw, trained)
    for arithmetic, (dtype, spec) in ARITHMETICS.items():
        place = trained
        if spec:
            place = trained.with_name(f"{trained.name}_{''.join(filter(str.isalnum, spec))}")
            if not place.exists():  # else of a run that was cut
                vj.convert(trained, place, to="vit_jax", linear=[f"{field}={spec}" for field in recipe.fields])
        metrics = vj.evaluate(place, changes={"model.dtype": dtype}).metrics
        rows.append({"model": name, "seed": seed, "arithmetic": arithmetic, **{k: float(metrics[k]) for k in METRICS}})
        print(rows[-1], flush=True)
    return rows


METRICS = ("accuracy", "loss")


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds and the largest loss of accuracy of any, as Markdown."""
    lines = ["| model | arithmetic | accuracy | most lost by a seed | loss |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(row["model"] for row in rows):
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
