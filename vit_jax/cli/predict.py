"""``vit_jax predict``"""

from __future__ import annotations

import argparse

HELP = "name the classes of image files"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", metavar="DIR", help="folder of a run; its newest checkpoint")
    which.add_argument(
        "--checkpoint",
        metavar="X",
        help="one checkpoint: WORKDIR/checkpoints/STEP, or weights of any format: a path, hf://ORG/NAME",
    )
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes to name (default 5)")
    parser.add_argument("--json", metavar="FILE", help="write the predictions there, - for the terminal")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="images, or folders of images")


def run(args: argparse.Namespace) -> int:
    """Prints the top classes of every image. Exit status 1 if one could not be read."""
    from vit_jax.cli import output
    from vit_jax.launch import runtime
    from vit_jax.predict import Predictor, expand
    from vit_jax.types import UsageError

    if args.top < 1:
        raise UsageError(f"--top {args.top} is too small; the least is 1.")
    runtime.setup()
    files = expand(args.paths)
    predictor = Predictor.load(args.workdir or args.checkpoint)
    rows = list(predictor(files, top=args.top))
    if args.json != "-":
        for row in rows:
            found = row.get("error") or "  ".join(f"{p['class']} {p['probability']:.1%}" for p in row["predictions"])
            print(f"{row['path']}: {found}")
    output.write(args.json, rows)
    return int(any("error" in row for row in rows))
