"""``vit_jax predict``"""

from __future__ import annotations

import argparse
from typing import Annotated, Any

import vit_jax as vj
from vit_jax.cli import options

HELP = "classes, captions or the best text for images"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.set_defaults(takes_overrides=True)
    options.weights(parser)
    asked = parser.add_mutually_exclusive_group()
    text = "how well each text fits an image, for image-text models"
    asked.add_argument("--text", type=options.filled, nargs="+", metavar="TEXT", help=text)
    asked.add_argument("--captions", action="store_true", help="write captions, for models with a caption decoder")
    text = "of captions: greedy (default), beam(4), nucleus(0.9, temperature=0.7, seed=1)"
    parser.add_argument("--decoder", type=options.filled, metavar="D", help=text)
    options.value(parser, "top", 5, "classes or texts to name", metavar="K")
    options.max_pixels(parser)
    options.json(parser, "predictions")
    text = "a row for each image there: .csv or .parquet, with its label where PATH is a source that has them"
    parser.add_argument("--table", type=options.path, metavar="FILE", help=text)
    parser.add_argument(
        "paths",
        type=options.path,
        nargs="+",
        metavar="PATH",
        help="images, folders of images, or a source such as folder:/my/images",
    )


def run(args: argparse.Namespace) -> int:
    """Prints what was asked of every image. Exit status 1 if one could not be read."""
    from vit_jax import config
    from vit_jax.cli import output
    from vit_jax.decoding import DECODERS

    if args.decoder and not args.captions:
        raise vj.UsageError(f"--decoder {args.decoder} says how captions are written; add --captions.")
    if args.table:
        output.check_table(args.table)
    choice = Annotated[Any, config.Choice(DECODERS)]
    decoder = config.parse(choice, args.decoder or "greedy", "--decoder") if args.captions else None
    asked = {"texts": args.text, "captions": decoder, "top": args.top, "max_pixels": args.max_pixels}
    rows = vj.predict(options.opened(args, options.changes(args)), args.paths, **asked)
    if args.json != "-":
        for row in rows:
            if not args.table or "error" in row:
                print(f"{row['path']}: {_line(row)}")
    output.write(args.json, rows)
    if args.table:
        output.table(args.table, [_columns(row) for row in rows])
        if args.json != "-":
            print(f"{len(rows):,} rows in {args.table}{_right(rows)}")
    return int(any("error" in row for row in rows))


def _right(rows: list[dict[str, Any]]) -> str:
    """How many of the rows with a label name that class first."""
    best = [
        (row["predictions"][0].get("class"), row["label"]) for row in rows if row.keys() >= {"label", "predictions"}
    ]
    right = [name == label for name, label in best if name is not None]
    return f"; {sum(right):,} of {len(right):,} name their label first" if right else ""


def _columns(row: dict[str, Any]) -> dict[str, Any]:
    """One row of ``--table``: ``class_1`` (or ``text_1``), ``probability_1`` and so on instead of a list."""
    out = {key: value for key, value in row.items() if key not in ("predictions", "captions", "error")}
    for i, prediction in enumerate(row.get("predictions", ()), 1):
        out |= {f"{key}_{i}": value for key, value in prediction.items()}
    return out | ({"error": row["error"]} if "error" in row else {})


def _line(row: dict[str, Any]) -> str:
    if "error" in row or "caption" in row:
        return row.get("error") or row["caption"]
    return "  ".join(f"{p['class'] if 'class' in p else p['text']} {p['probability']:.1%}" for p in row["predictions"])
