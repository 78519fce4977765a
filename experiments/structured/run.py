"""Dense, structured and sparse models under one recipe for the same epochs, three seeds, one table.

python experiments/structured/run.py digits --out runs/structured
python experiments/structured/run.py cifar --data folder:/data/cifar10/train --out runs/structured_cifar
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

from vit_jax import config
from vit_jax.launch import runtime
from vit_jax.layers.linear import Dense
from vit_jax.layers.linear.sparse24 import Sparse24
from vit_jax.layers.linear.specs import FIELDS
from vit_jax.models import cost
from vit_jax.train import loop, workdir

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parent.parent / "configs"
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {"model.width": 128, "model.mlp_dim": 256},  # 8 blocks divide them
    "cifar": {"model.patch": 8, "batch_size": 128, "duration": "4 epochs"},  # a quarter of the tokens, half of the time
}
"""Name of a configuration -> what is changed in it for every row."""


def linear(spec: str, fields: tuple[str, ...] = FIELDS) -> dict[str, Any]:
    """Overrides for all maps of attention and MLPs."""
    return {f"model.{field}": spec for field in fields}


MIXER = {"model.name": "monarch_mixer", "model.filter_features": 5, "model.filter_hidden": 32}
DROP = ("heads", "pool", "positions")  # what a model without attention has not
METHODS: dict[str, dict[str, Any]] = {
    "dense, GELU": {},
    "monarch(2)": linear("monarch(2)"),
    "monarch(4)": linear("monarch(4)"),
    "monarch(8)": linear("monarch(8)"),
    "block_diagonal(4) MLPs": linear("block_diagonal(4)", ("mlp_linear",)),
    "low_rank(32)": linear("low_rank(32)"),
    "M2-ViT, monarch(4) MLPs": {**MIXER, **linear("monarch(4)", ("mlp_linear",))},
    "dense, ReLU": {"model.activation": "relu"},
    "dense, top 10 % of ReLU": {"model.activation": "topk(26)"},
    "2:4, SR-STE": linear("sparse24"),
    "2:4 and int8, from dense": {**linear('sparse24(mask="frozen", bits=8)'), "init": "dense, GELU", "optim.lr": 3e-4},
}
"""Name -> overrides of the recipe; ``init`` names the row whose run it starts from."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--data", default=None, help="where the recipe's data lie, if it does not bring them")
    parser.add_argument("--out", required=True, help="folder for the runs")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="the other rows stay")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--duration", default=None, help="another length of training, '1 epochs' for a try")
    parser.add_argument("--results", default=None, help="default: beside this file")
    args = parser.parse_args()
    runtime.setup()
    path = pathlib.Path(args.results or HERE / f"results_{args.recipe}.json")
    rows = json.loads(path.read_text()) if path.exists() else []
    for seed in args.seeds:
        for method in args.methods:
            rows = [r for r in rows if (r["method"], r["seed"]) != (method, seed)] + [one(method, seed, args)]
            path.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def folder(method: str, seed: int, args: argparse.Namespace) -> pathlib.Path:
    """Of a run: the method's letters and digits."""
    return pathlib.Path(args.out) / f"{''.join(c if c.isalnum() else '_' for c in method)}_{seed}"


def one(method: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains, and evaluates once more under noise."""
    changes = {"seed": seed, **RECIPES[args.recipe], **METHODS[method]}
    if "init" in changes:
        changes["init"] = str(folder(changes["init"], seed, args))
    if args.duration:
        changes["duration"] = args.duration
    if args.data:
        changes["data.path"] = args.data
    raw = config.load(str(CONFIGS / f"{args.recipe}.py"), [(key, str(value)) for key, value in changes.items()])
    if raw["model"]["name"] == "monarch_mixer":
        raw["model"] = {k: v for k, v in raw["model"].items() if k not in DROP}
    raw["evaluators"] = ("classify", "activity")
    start = time.perf_counter()
    result = loop.run(raw, folder(method, seed, args))
    minutes = (time.perf_counter() - start) / 60
    setup, params = result.setup, result.state.eval_params
    noisy = dataclasses.replace(setup, prepare=functools.partial(noise, setup.prepare)).evaluate(params).metrics
    found, about = result.report.metrics, workdir.provenance()
    return {
        "method": method,
        "seed": seed,
        "config": hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:12],
        **{k: about[k] for k in ("commit", "vit_jax", "jax")},
        "minutes": round(minutes, 2),
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "mflops": mflops(setup),
        "accuracy": found["accuracy"],
        "noisy_accuracy": noisy["accuracy"],
        "active": {k: v for k, v in found.items() if k.startswith("active")},
    }


def noise(prepare: Any, batch: Any) -> Any:
    """Gaussian noise of half the images' standard range on the prepared batch, the same for every method."""
    ready = prepare(batch)
    image = ready["image"]
    return {**ready, "image": image + 0.5 * jax.random.normal(jax.random.key(0), image.shape, image.dtype)}


def mflops(setup: Any) -> float:
    """Of one image forward, by XLA's count."""
    model = setup.model.clone(**{k: structured(getattr(setup.model, k)) for k in FIELDS})
    return cost.flops(model, model.inputs(setup.config.augment.size)) / 1e6


def structured(spec: Any) -> Any:
    """``spec`` counted as the structured product, whatever this machine would run, without the search for masks."""
    if isinstance(spec, Sparse24):
        return Dense()
    return dataclasses.replace(spec, implementation="xla") if hasattr(spec, "implementation") else spec


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds, as Markdown."""
    lines = [
        "| model | accuracy | under noise | parameters | MFLOPs | active | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        own = [r for r in rows if r["method"] == method]
        if not own:
            continue
        cells = [method]
        for key in ("accuracy", "noisy_accuracy"):
            values = [100 * r[key] for r in own]
            cells.append(f"{np.mean(values):.2f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.2f} %")
        cells += [f"{own[0]['parameters']:,d}", f"{own[0]['mflops']:.2f}"]
        cells += [f"{100 * np.mean([r['active']['active'] for r in own]):.1f} %"]
        cells += [f"{np.mean([r['minutes'] for r in own]):.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
