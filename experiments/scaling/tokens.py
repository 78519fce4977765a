"""Time and memory of Vim's blocks and of ViT's over the number of tokens, A B A B in one run: what grows how.

    python experiments/scaling/tokens.py --json tokens.json --plot tokens.png

Forward, one image, the patches included, which are the same for both. Memory is what the compiler plans for temporaries
at their peak.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from vit_jax import models
from vit_jax.bench.timing import alternate, processor
from vit_jax.cli import output
from vit_jax.report import plots

MODELS = ("Vim", "ViT")
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
    powers = {name: growth(name, args) for name in MODELS}
    if args.json != "-":
        for r in rows:
            own = f"{r['tokens']:>6d} tokens {r['model']} {1e3 * r['seconds']:>9.2f} ms {r['temporaries MB']:>9.2f} MB"
            print(f"{own}  {r['times ViT (median)']:.2f} times ViT's speed")
        print("grows as the power of the number of tokens:", powers)
    if args.plot:
        title = f"{args.depth} blocks of vim_{args.width}16 and vit_{args.width}16, {args.dtype}"
        curves = {
            f"{panel}, {title}": (label, {n: [(r["tokens"], r[key]) for r in rows if r["model"] == n] for n in MODELS})
            for panel, (key, label) in PANELS.items()
        }
        plots.lines(curves, "tokens", args.plot, scale="log")
    output.write(args.json, {"processor": processor(), "rows": rows, "power of the number of tokens": powers})


def growth(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The powers of the number of tokens with which time and temporaries grow between the last two sizes.

    Both sizes run in turn, nothing else between: of the time median, 10th and 90th percentile.
    """
    less, more = args.sizes[-2:]
    made = {size: program(name, size, args) for size in (less, more)}
    times = alternate({str(size): run for size, (run, _) in made.items()}, args.rounds)
    seconds = times[str(less)].over(times[str(more)])
    tokens = (more // 16) ** 2 / (less // 16) ** 2
    return {"Time": [power(r, tokens) for r in seconds], "Memory": power(made[more][1] / made[less][1], tokens)}


def power(ratio: float, tokens: float) -> float:
    """p, where ``tokens`` times as many tokens are ``ratio`` times as much: ``ratio = tokens ** p``."""
    return round(math.log(ratio) / math.log(tokens), 3)


def program(name: str, size: int, args: argparse.Namespace) -> tuple[Callable[[], Any], float]:
    """A model's forward on an image of ``size`` pixels, and MB of temporaries."""
    model = models.create(f"{name.lower()}_{args.width}16", depth=args.depth, num_classes=0, dtype=args.dtype)
    image = jax.random.normal(jax.random.key(0), (1, size, size, 3))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(1), image)["params"])
    compiled = jax.jit(lambda p, x: model.apply({"params": p}, x)).lower(params, image).compile()
    memory: Any = compiled.memory_analysis()
    return lambda: compiled(params, image), memory.temp_size_in_bytes / 1e6


def measure(size: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    made = {name: program(name, size, args) for name in MODELS}
    runs = {name: run for name, (run, _) in made.items()}
    times = alternate(runs, args.rounds)
    return [
        {
            "model": name, "tokens": math.prod((size // 16,) * 2), "seconds": times[name].median,
            "temporaries MB": made[name][1], **times[name].compared("times ViT", times["ViT"]),
        }
        for name in runs
    ]  # fmt: skip


if __name__ == "__main__":
    main()
