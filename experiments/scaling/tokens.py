"""Time and memory of Vim's blocks and of ViT's over the number of tokens, A B A B in one run: what grows how.

    python experiments/scaling/tokens.py --json tokens.json --plot tokens.png

Forward, one image, the patches included, which are the same for both. Memory is what the compiler plans for temporaries
at their peak.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vit_jax import models
from vit_jax.bench.timing import alternate, processor
from vit_jax.cli import output
from vit_jax.report import plots

SIZES = (224, 448, 896, 1344, 2048)
PANELS = {"Time": ("seconds", "seconds"), "Memory": ("temporaries MB", "MB of temporaries")}
"""Panel of the plot -> the column that it shows, and what its axis says."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", default="ti", choices=("ti", "s", "b"), help="of the models (default ti)")
    parser.add_argument("--depth", type=int, default=2, help="blocks of each (default 2)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="sides of the image, multiples of 16")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default 5)")
    parser.add_argument("--plot", metavar="FILE", help="draw both curves of both")
    parser.add_argument("--json", metavar="FILE", help="write the result there, - for the terminal")
    args = parser.parse_args(argv)
    rows = [row for size in args.sizes for row in measure(size, args)]
    powers = {
        name: {panel: power([(r["tokens"], r[key]) for r in rows if r["model"] == name]) for panel, (key, _) in
               PANELS.items()}
        for name in ("Vim", "ViT")
    }  # fmt: skip
    if args.json != "-":
        for r in rows:
            own = f"{r['tokens']:>6d} tokens {r['model']} {1e3 * r['seconds']:>9.2f} ms {r['temporaries MB']:>9.2f} MB"
            print(f"{own}  {r['times ViT (median)']:.2f} times ViT's speed")
        print("grows as the power of the number of tokens:", powers)
    if args.plot:
        title = f"{args.depth} blocks of vim_{args.width}16 and vit_{args.width}16, {args.dtype}"
        curves = {
            f"{panel}, {title}": (label, {n: [(r["tokens"], r[key]) for r in rows if r["model"] == n] for n in powers})
            for panel, (key, label) in PANELS.items()
        }
        plots.lines(curves, "tokens", args.plot, scale="log")
    output.write(args.json, {"processor": processor(), "rows": rows, "power of the number of tokens": powers})


def power(points: list[tuple[float, float]]) -> float:
    """The power of x that y grows with between the last two points, where what is constant counts least."""
    (x, y), (more, most) = np.log(points[-2:])
    return round(float((most - y) / (more - x)), 3)


def measure(size: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    image = jax.random.normal(jax.random.key(0), (1, size, size, 3))
    shared = {"depth": args.depth, "num_classes": 0, "dtype": args.dtype}
    runs, memory = {}, {}
    for name in ("Vim", "ViT"):
        model = models.create(f"{name.lower()}_{args.width}16", **shared)
        params = nn.unbox(jax.jit(model.init)(jax.random.key(1), image)["params"])
        program = jax.jit(lambda p, x, model=model: model.apply({"params": p}, x)).lower(params, image).compile()
        memory[name] = program.memory_analysis().temp_size_in_bytes / 1e6
        runs[name] = lambda program=program, params=params: program(params, image)
    times = alternate(runs, args.rounds)
    return [
        {
            "model": name, "tokens": math.prod((size // 16,) * 2), "seconds": times[name].median,
            "temporaries MB": memory[name], **times[name].compared("times ViT", times["ViT"]),
        }
        for name in runs
    ]  # fmt: skip


if __name__ == "__main__":
    main()
