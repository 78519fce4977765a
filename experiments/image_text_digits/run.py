"""CLIP, SigLIP, CLOOB and CoCa on captioned pairs of handwritten digits: same data, towers and steps, one table.

python experiments/image_text_digits/run.py --out runs/image_text
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import pathlib
import time

from vit_jax import config
from vit_jax.decoding import Beam
from vit_jax.evals.caption import Caption
from vit_jax.launch import runtime
from vit_jax.train import loop, workdir

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parent.parent / "configs"
METHODS = {"clip": "CLIP", "siglip": "SigLIP", "cloob": "CLOOB", "coca": "CoCa"}
METRICS = (
    "i2t_r1",
    "t2i_r1",
    "zero_shot/accuracy",
    "exact_match",
    "cider_d",
    "bleu4",
    "beam/exact_match",
    "beam/cider_d",
)
PHRASINGS = "digits_pairs:phrasings"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder for the runs")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="the other rows stay")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--duration", default=None, help="another length of training, '10 steps' for a try")
    parser.add_argument("--results", default=str(HERE / "results.json"))
    args = parser.parse_args()
    runtime.setup()
    path = pathlib.Path(args.results)
    rows = json.loads(path.read_text()) if path.exists() else []
    for method in args.methods:
        rows = [r for r in rows if r["method"] != method]
        rows += [one(method, seed, args) for seed in range(args.seeds)]
        path.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def one(method: str, seed: int, args: argparse.Namespace) -> dict:
    """Trains, and for a model with a decoder captions once more by beam search."""
    overrides = [("seed", str(seed))] + ([("duration", args.duration)] if args.duration else [])
    raw = config.load(f"{CONFIGS / method}.py:digits", overrides)
    start = time.perf_counter()
    result = loop.run(raw, pathlib.Path(args.out) / f"{method}_{seed}")
    minutes = (time.perf_counter() - start) / 60
    found = dict(result.report.metrics)
    if method == "coca":
        beam = dataclasses.replace(result.setup.config, evaluators=(Caption(Beam(4), PHRASINGS),))
        report = dataclasses.replace(result.setup, config=beam).evaluate(result.state.eval_params)
        found |= {f"beam/{k}": v for k, v in report.metrics.items()}
    about = workdir.provenance()
    return {
        "method": method,
        "seed": seed,
        "config": hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:12],
        **{k: about[k] for k in ("commit", "vit_jax", "jax")},
        "minutes": round(minutes, 2),
        **{k: found[k] for k in METRICS if k in found},
    }


def table(rows: list[dict]) -> str:
    """One line a run, as Markdown; shares in percent."""
    head = ["method", "seed", "minutes", *METRICS]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for r in sorted(rows, key=lambda r: (list(METHODS).index(r["method"]), r["seed"])):
        cells = [METHODS[r["method"]], str(r["seed"]), f"{r['minutes']:.1f}"]
        for k in METRICS:
            scale, unit = (1, "") if k.endswith("cider_d") else (100, " %")
            cells.append(f"{scale * r[k]:.2f}{unit}" if k in r else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
