"""Handwritten digits with models that are trained with fewer tokens, masks, or activations in eight bits, three seeds.

python experiments/reduction/digits.py --out runs/reduced_digits
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics

import vit_jax as vj
from vit_jax import config
from vit_jax.bench.timing import processor
from vit_jax.launch import runtime
from vit_jax.train import workdir

HERE = pathlib.Path(__file__).parent
CONFIG = HERE.parent.parent / "configs" / "digits.py"
STEPS = 1437 // 32
"""Of an epoch, whole batches."""
Changes = dict[str, str]
BASE: Changes = {"model.patch": "2", "model.pool": "cls"}
"""What is changed in the recipe: 16 patches and a class token."""
FINISHED: dict[str, Changes] = {
    name: {"model.reduce": name} for name in ("merge(2)", "merge(4)", "attentive(0.5, (1, 2))")
}
"""What the model that was trained with nothing is evaluated with."""


def phases(steps: int, plain: pathlib.Path) -> dict[str, tuple[Changes, ...]]:
    """What is changed besides, in each phase of training; the first of two begins with ``plain``, the first run."""
    levels = "attentive(0.5, (1, 2), levels=(0.625, 0.75, 0.875, 1.0))"
    schedule = f"annealed(classify(label_smoothing=0.1), {steps // 10}, {6 * steps // 10})"
    masks = {"model.logit_bias": "predicted(0.25)"}
    distill = f'distill(teacher="{plain}", hard=1, soft=0.5, feature=0.5, blocks=1)'
    return {
        "none": ({},),
        **{name: (changes,) for name, changes in FINISHED.items()},
        "attentive, annealed": ({"model.reduce": levels, "objective": schedule},),
        "lookup(2)": ({"model.reduce": "lookup(2)"},),
        "saved=int8": ({"model.saved": "int8"},),
        "predicted(0.25)": (
            {**masks, "objective": "reconstruct", "optim.freeze": '("(?!.*logit_bias).*",)', "optim.weight_decay": "0"},
            {**masks, "objective": distill, "optim.freeze": '(".*logit_bias.*",)'},
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the runs; those there go on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40, help="of each phase (default 40)")
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "digits.json")
    args = parser.parse_args()
    runtime.setup()
    own: dict[str, list[float]] = {}
    finished: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        folder = args.out / f"seed_{seed}"
        common = {**BASE, "seed": str(seed), "duration": f"{args.epochs} epochs"}
        for name, changes in phases(STEPS * args.epochs, folder / "none").items():
            own.setdefault(name, []).append(accuracy(trained(folder, name, [{**common, **c} for c in changes])))
        for name, one in FINISHED.items():
            metrics = vj.evaluate(folder / "none", changes=one).metrics
            finished.setdefault(name, []).append(float(metrics["accuracy"]))
    rows = {name: {"trained so": values, "finished": finished.get(name, [])} for name, values in own.items()}
    about = {"processor": processor(), "commit": workdir.provenance()["commit"], "epochs": args.epochs}
    args.results.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    print(table(rows))


def trained(folder: pathlib.Path, name: str, changes: list[Changes]) -> pathlib.Path:
    """The run of the last phase; where it is there, it is resumed or finished."""
    run = folder / "none"
    for phase, change in enumerate(changes, 1):
        start = {"init": str(run)} if len(changes) > 1 else {}
        last = "" if phase == len(changes) else f"_{phase}"
        run = folder / ("".join(c if c.isalnum() else "_" for c in name) + last)
        if not (run / "results.json").is_file():
            vj.train(config.load(str(CONFIG), [*start.items(), *change.items()]), run)
    return run


def accuracy(run: pathlib.Path) -> float:
    """Of the last step, on the 360 digits that were held out."""
    return float(json.loads((run / "results.json").read_text())["metrics"]["accuracy"])


def table(rows: dict[str, dict[str, list[float]]]) -> str:
    """Mean and standard deviation over the seeds, as Markdown."""

    def cell(values: list[float]) -> str:
        spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{100 * statistics.mean(values):.1f}{spread} %" if values else ""

    lines = ["| | trained so | trained with nothing |", "|---|---|---|"]
    lines += [f"| `{name}` | {cell(row['trained so'])} | {cell(row['finished'])} |" for name, row in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
