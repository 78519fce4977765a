"""Every kind of image model under one recipe, on handwritten digits and CIFAR-10: parameters, FLOPs, accuracy, speed.

python experiments/backbones/run.py --out runs/backbones --cifar folder:/data/cifar10/train
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
from typing import Any

import vit_jax as vj
from vit_jax import config
from vit_jax.bench import steps
from vit_jax.bench.timing import alternate, processor
from vit_jax.launch import runtime
from vit_jax.models import cost
from vit_jax.train import workdir

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parent.parent / "configs"
RECIPE = {"optim.optimizer": "adamw(b2=0.95)", "optim.lr": "1e-3", "optim.warmup": "5%", "ema": "0.998"}
SETS: dict[str, dict[str, str]] = {
    "digits": {**RECIPE, "duration": "20 epochs", "eval_every": "20 epochs", "checkpoint_every": "20 epochs"},
    "cifar": {**RECIPE, "duration": "4 epochs", "eval_every": "4 epochs", "batch_size": "128"},
}
"""What is changed in ``configs/``, whose models are replaced."""
TOKENS_OF, STAGES_OF = ("ViT", "Mixer", "M2", "Vim"), ("ConvNeXt", "HorNet")
TOKENS = {"depth": 4, "width": 64}
STAGES = {"depths": (2, 2, 2), "widths": (24, 48, 96), "layer_scale": 0.1}
MODELS: dict[str, dict[str, Any]] = {
    "ViT": {"name": "vit", **TOKENS, "heads": 2, "mlp_dim": 128, "pool": "gap", "positions": "sincos2d"},
    "Mixer": {"name": "mixer", **TOKENS, "token_dim": 64, "mlp_dim": 128},
    "M2": {"name": "monarch_mixer", **TOKENS, "mlp_dim": 256, "mlp_linear": "block_diagonal(4)"},
    "Vim": {"name": "vim", **TOKENS, "state": 8},
    "ConvNeXt": {"name": "convnext", **STAGES},
    "HorNet": {"name": "hornet", **STAGES, "orders": (2, 3, 4)},
    "NF-ResNet": {"name": "nf_resnet", "depths": (1, 1, 1), "widths": (64, 128, 256), "stem_width": 32},
    "MobileNetV3": {"name": "mobilenetv3_small_050", "strides": (1, 2, 2, 1, 2)},
}
FINE: dict[str, dict[str, dict[str, Any]]] = {
    "cifar": {**{name: {"patch": 8} for name in TOKENS_OF}, **{name: {"patch": 4} for name in STAGES_OF}},
    "digits": {
        **{name: {"patch": 2} for name in TOKENS_OF},
        **{name: {"patch": 1} for name in STAGES_OF},
        "NF-ResNet": {"stem": "3x3"},
        "MobileNetV3": {"stem_stride": 1},
    },
}
"""What each set's size of images asks for: 32 pixels and 8; 16 tokens, or 64 in the first stage."""
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the runs; those there go on")
    parser.add_argument("--cifar", metavar="SOURCE", help="where the images of CIFAR-10 lie")
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS), help="rows of others stay as they are")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--duration", default=None, help="another length of training, '1 epochs' for a try")
    parser.add_argument("--rounds", type=int, default=20, help="measurements of speed (default 20)")
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "results.json")
    args = parser.parse_args()
    if "cifar" in args.sets and not args.cifar:
        parser.error("say where CIFAR-10 is, --cifar folder:DIR, or leave it out, --sets digits")
    runtime.setup()
    there = json.loads(args.results.read_text())["rows"] if args.results.is_file() else []
    rows: list[dict[str, Any]] = [row for row in there if row["set"] not in args.sets]
    for name in args.sets:
        runs: dict[str, list[pathlib.Path]] = {model: [] for model in args.models}
        for seed in range(args.seeds):
            for model, places in runs.items():
                places.append(trained(name, model, seed, args))
        rows += table_of(name, runs, args)
    about = {"processor": processor(), "commit": workdir.provenance()["commit"]}
    args.results.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    print(table(rows))


def trained(name: str, model: str, seed: int, args: argparse.Namespace) -> pathlib.Path:
    """The run of a model on ``name`` of :data:`SETS`; where it is there, it is resumed or finished."""
    changes = {**SETS[name], "seed": str(seed)}
    if name == "cifar":
        changes["data.path"] = args.cifar
    if args.duration:
        changes["duration"] = args.duration
    raw = config.load(str(CONFIGS / f"{name}.py"), [*changes.items()])
    raw["model"] = {**MODELS[model], **FINE[name].get(model, {})}
    place: pathlib.Path = args.out / f"{name}_{''.join(filter(str.isalnum, model)).lower()}_{seed}"
    if not (place / "results.json").is_file():
        vj.train(raw, place)
    return place


def table_of(name: str, runs: dict[str, list[pathlib.Path]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a model: what it is, its accuracies, images per second of inference and training in turn."""
    rows: list[dict[str, Any]] = []
    programs: dict[steps.Kind, dict[str, Any]] = {"forward": {}, "train": {}}
    for model, places in runs.items():
        found = vj.load(places[0])
        inputs = found.model.inputs(found.preprocess.size)
        for kind, made in programs.items():
            made[model], parameters = steps.candidate(kind, found.model, BATCH, found.preprocess.size)
        rows.append(
            {
                "set": name,
                "model": model,
                "parameters": parameters,
                "mflops": cost.flops(found.model, inputs) / 1e6,
                "accuracies": [accuracy(place) for place in places],
            }
        )
    for kind, made in programs.items():
        times = alternate(made, args.rounds)
        for row in rows:
            timing, first = times[row["model"]], times[next(iter(runs))]
            row[kind] = {"images per second": BATCH / timing.median, **timing.compared("times the first", first)}
    return rows


def accuracy(run: pathlib.Path) -> float:
    """Of the last step, on the images that were held out."""
    return float(json.loads((run / "results.json").read_text())["metrics"]["accuracy"])


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds, speed against the first model's, as Markdown."""
    head = ("set", "model", "parameters", "MFLOPs", "accuracy", "each seed", "forward", "train step")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        each = [100 * a for a in row["accuracies"]]
        spread = f" ± {statistics.stdev(each):.1f}" if len(each) > 1 else ""
        cells = [row["set"], row["model"], f"{row['parameters']:,}", f"{row['mflops']:.1f}"]
        cells += [f"{statistics.mean(each):.1f}{spread} %", ", ".join(f"{a:.1f}" for a in each)]
        for kind in ("forward", "train"):
            ratio = (row[kind][f"times the first ({k})"] for k in ("median", "10th percentile", "90th percentile"))
            cells.append("{:.2f} ({:.2f} to {:.2f})".format(*ratio))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
