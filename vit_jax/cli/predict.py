"""``vit_jax predict``"""

from __future__ import annotations

import argparse
from typing import Any

HELP = "classes, captions or the best text for images"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", metavar="DIR", help="folder of a run; its newest checkpoint")
    which.add_argument(
        "--checkpoint",
        metavar="X",
        help="one checkpoint: WORKDIR/checkpoints/STEP, or weights of any format: a path, hf://ORG/NAME",
    )
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument(
        "--text", nargs="+", metavar="TEXT", help="how well each text fits an image, for image-text models"
    )
    asked.add_argument("--captions", action="store_true", help="write captions, for models with a caption decoder")
    parser.add_argument(
        "--decoder", metavar="D", help="of captions: greedy (default), beam(4), nucleus(0.9, temperature=0.7, seed=1)"
    )
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes or texts to name (default 5)")
    parser.add_argument("--json", metavar="FILE", help="write the predictions there, - for the terminal")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="images, or folders of images")


def run(args: argparse.Namespace) -> int:
    """Prints what was asked of every image. Exit status 1 if one could not be read."""
    from typing import Annotated

    import vit_jax as vj
    from vit_jax import config
    from vit_jax.cli import output
    from vit_jax.decoding import DECODERS
    from vit_jax.launch import runtime
    from vit_jax.types import UsageError

    if args.top < 1:
        raise UsageError(f"--top {args.top} is too small; the least is 1.")
    if args.decoder and not args.captions:
        raise UsageError(f"--decoder {args.decoder} says how captions are written; add --captions.")
    decoder = None
    if args.captions:
        decoder = config.parse(Annotated[Any, config.Choice(DECODERS)], args.decoder or "greedy", "--decoder")
    runtime.setup()
    model = args.workdir or args.checkpoint
    rows = vj.predict(model, args.paths, texts=args.text, captions=decoder, top=args.top)
    if args.json != "-":
        for row in rows:
            print(f"{row['path']}: {_line(row)}")
    output.write(args.json, rows)
    return int(any("error" in row for row in rows))


def _line(row: dict[str, Any]) -> str:
    if "error" in row or "caption" in row:
        return row.get("error") or row["caption"]
    return "  ".join(f"{p.get('class') or p['text']} {p['probability']:.1%}" for p in row["predictions"])
