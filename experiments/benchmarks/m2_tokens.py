"""Time of one block over the number of tokens: attention against the long convolutions of M2-ViT, A B A B in one run.

    python experiments/benchmarks/m2_tokens.py --json m2_tokens.json --plot m2_tokens.png

Models of one block, forward, without their patches' share being taken off: the same for all.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vit_jax import models
from vit_jax.bench.timing import alternate
from vit_jax.cli import output
from vit_jax.report import plots

SIZES = (224, 448, 896, 1344, 2048)
NAMES = ("attention", "monarch", "fft")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", default="ti", choices=("ti", "s", "b"), help="of the blocks (default ti)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="sides of the image, multiples of 16")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default 5)")
    parser.add_argument("--plot", metavar="FILE", help="draw how many times faster than attention")
    parser.add_argument("--json", metavar="FILE", help="write the result there, - for the terminal")
    args = parser.parse_args()
    rows = [row for size in args.sizes for row in measure(size, args)]
    growth = {}
    for name in NAMES:
        own = [r for r in rows if r["implementation"] == name]
        n, t = (np.log([r[k] for r in own]) for k in ("rows", "seconds"))
        growth[name] = float((t[-1] - t[0]) / (n[-1] - n[0]))
    if args.json != "-":
        for r in rows:
            print(f"{r['rows']:>6d} tokens {r['implementation']:10s} {1e3 * r['seconds']:>9.2f} ms  "
                  f"{r['times dense (median)']:.2f} times attention's speed")  # fmt: skip
        print("time grows as the power:", {k: round(v, 2) for k, v in growth.items()})
    if args.plot:
        title = f"A block of m2_vit_{args.width}16 by monarch or fft, {args.dtype}"
        mixers = [r for r in rows if r["implementation"] != "attention"]
        plots.crossover(mixers, title, args.plot, against="attention", per="tokens")
    output.write(args.json, {"rows": rows, "power of the number of tokens": growth})


def measure(size: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    image = jax.random.normal(jax.random.key(0), (1, size, size, 3))
    shared = {"depth": 1, "num_classes": 0, "dtype": args.dtype}
    mixed = f"m2_vit_{args.width}16"
    candidates = {
        "attention": models.create(f"vit_{args.width}16", pool="gap", positions="sincos2d", **shared),
        **{name: models.create(mixed, long_conv=name, mlp_linear="dense", **shared) for name in NAMES[1:]},
    }
    runs = {}
    for name, model in candidates.items():
        params = nn.unbox(jax.jit(model.init)(jax.random.key(1), image)["params"])
        run = jax.jit(lambda p, x, model=model: model.apply({"params": p}, x))
        runs[name] = lambda run=run, params=params: run(params, image)
    times = alternate(runs, args.rounds)
    return [
        {
            "implementation": name, "rows": math.prod((size // 16,) * 2), "seconds": times[name].median,
            **times[name].compared("times dense", times["attention"]),
        }
        for name in NAMES
    ]  # fmt: skip


if __name__ == "__main__":
    main()
