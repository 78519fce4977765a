"""Accuracy against speed of one trained model that goes on with fewer tokens, and of models trained so.

python experiments/reduction/run.py --out runs/reduction --cifar folder:/data/cifar10/train
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import jax

import vit_jax as vj
from vit_jax import config
from vit_jax.bench.timing import alternate, processor
from vit_jax.launch import runtime
from vit_jax.layers.tokens.reduce import ReducerSpec
from vit_jax.models import cost
from vit_jax.report import plots

HERE = pathlib.Path(__file__).parent
SHORT = {"model.dtype": "float32", "model.pool": "cls", "batch_size": "128", "duration": "4 epochs"}
"""What is changed in ``configs/cifar.py``; EViT asks for a class token."""
REDUCTIONS = {
    "ToMe": tuple(f"merge({r})" for r in (2, 4, 8, 12)),
    "EViT": tuple(f"attentive({keep}, (1, 2))" for keep in (0.9, 0.7, 0.5, 0.3)),
}
"""Curve -> values of ``model.reduce``, most tokens first: of 64 patches in 4 blocks."""
TRAINED = ("merge(8)", "attentive(0.5, (1, 2))")
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the runs")
    parser.add_argument("--cifar", required=True, metavar="SOURCE", help="where the images of CIFAR-10 lie")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--duration", default=SHORT["duration"], help="of training, '1 epochs' for a try")
    text = "what models are trained with besides none (default those of the table)"
    parser.add_argument("--train", nargs="*", default=TRAINED, metavar="REDUCE", help=text)
    parser.add_argument("--rounds", type=int, default=20, help="measurements of speed (default 20)")
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "results.json")
    args = parser.parse_args()
    runtime.setup()
    names = ["none", *(name for curve in REDUCTIONS.values() for name in curve)]
    accuracies = {name: accuracy(trained("none", args), name) for name in names}
    tuned = {name: accuracy(trained(name, args), name) for name in args.train}
    speeds = speed(trained("none", args), names, args.rounds)
    rows = [
        {"reduce": name, "accuracy": accuracies[name], "accuracy trained so": tuned.get(name), **speeds[name]}
        for name in names
    ]
    args.results.write_text(json.dumps({"processor": processor(), "seed": args.seed, "rows": rows}, indent=1) + "\n")
    draw(rows, args.results.with_suffix(".png"))
    print(table(rows))


def trained(reduce: str, args: argparse.Namespace) -> pathlib.Path:
    """The run whose model was trained with ``reduce``; where it is there, it is resumed or finished."""
    changes = {**SHORT, "data.path": args.cifar, "seed": str(args.seed), "duration": args.duration}
    raw = config.load(str(HERE.parent.parent / "configs" / "cifar.py"), [*changes.items(), ("model.reduce", reduce)])
    place: pathlib.Path = args.out / "".join(filter(str.isalnum, reduce))
    vj.train(raw, place)
    return place


def accuracy(run: pathlib.Path, reduce: str) -> float:
    """On the images that were held out."""
    changes = {"model.reduce": None if reduce == "none" else reduce}
    return float(vj.evaluate(run, changes=changes).metrics["accuracy"])


def speed(run: pathlib.Path, names: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """How many times as fast as without, in turn, and FLOPs."""
    found = vj.load(run)
    inputs = found.model.inputs(found.preprocess.size)
    images = jax.random.normal(jax.random.key(0), (BATCH, *inputs[0].shape[1:]))
    programs, flops = {}, {}
    for name in names:
        model = found.model.clone(reduce=config.parse(ReducerSpec | None, None if name == "none" else name))
        flops[name] = cost.flops(model, inputs) / 1e9
        program = jax.jit(lambda p, x, model=model: model.apply({"params": p}, x)).lower(found.params, images).compile()
        programs[name] = lambda program=program: program(found.params, images)
    times = alternate(programs, rounds)
    return {
        name: {
            "images per second": BATCH / times[name].median,
            "gflops": flops[name],
            **times[name].compared("times none", times["none"]),
        }
        for name in names
    }


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    by_name = {row["reduce"]: row for row in rows}
    point = lambda name, key: (by_name[name]["times none (median)"], 100 * by_name[name][key])  # noqa: E731
    curves = {
        c: [point(name, "accuracy") for name in ("none", *names)] for c, names in REDUCTIONS.items() if c != "ViT"
    }
    if tuned := [point(row["reduce"], "accuracy trained so") for row in rows if row["accuracy trained so"] is not None]:
        curves["trained so"] = sorted(tuned)
    plots.lines({"CIFAR-10": ("accuracy (%)", curves)}, "times as fast", path)


def table(rows: list[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = ["| `reduce` | accuracy | trained so | GFLOPs | times as fast |", "|---|---|---|---|---|"]
    for r in rows:
        middle, low, high = (r[f"times none ({k})"] for k in ("median", "10th percentile", "90th percentile"))
        own = "" if r["accuracy trained so"] is None else f"{100 * r['accuracy trained so']:.1f} %"
        cells = (f"`{r['reduce']}`", f"{100 * r['accuracy']:.1f} %", own, f"{r['gflops']:.3f}")
        lines.append(f"| {' | '.join(cells)} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
