"""``vit_jax push``"""

from __future__ import annotations

import argparse

from vit_jax.cli import options

HELP = "publish weights with a model card on the Hugging Face hub"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    text = "a run, or weights of any format: a file, folder, hf://ORG/NAME"
    parser.add_argument("source", type=options.path, metavar="SRC", help=text)
    parser.add_argument(
        "target", type=options.path, metavar="hf://ORG/NAME", help="the repository; made if there is none"
    )
    options.best(parser)
    options.imports(parser)
    text = "timm, hf, open_clip or vit_jax; by default timm for images alone, open_clip for image-text models"
    parser.add_argument("--to", type=options.filled, metavar="FORMAT", help=text)
    parser.add_argument("--private", action="store_true", help="only you and your organisation see the repository")
    options.value(
        parser, "license", "unknown", "of the weights, as the hub spells it: apache-2.0, mit, cc-by-4.0, other"
    )
    parser.add_argument(
        "--dataset", type=options.filled, action="append", default=[], metavar="ORG/NAME",
        help="a data set of the hub that it was trained on; may be repeated",
    )  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--dry_run", action="store_true", help="print the files and the card; upload nothing")
    which.add_argument("--card_only", type=options.path, metavar="FOLDER", help="write README.md there; upload nothing")


def run(args: argparse.Namespace) -> int:
    """Prints the files with their sizes, and the address or the card."""
    import vit_jax as vj

    where = str(vj.best_checkpoint(args.source)) if args.best else args.source
    changes = options.changes(args)
    source = vj.load(where, changes=changes) if changes else where
    done = vj.push(
        source, args.target, to=args.to, private=args.private, license=args.license, datasets=args.dataset,
        dry_run=args.dry_run, card_only=args.card_only,
    )  # fmt: skip
    for name, size in done.files.items():
        print(f"{name}  {size / 2**20:,.2f} MiB")
    for note in done.notes:
        print(f"note: {note}")
    if args.dry_run:
        print(f"\n{done.card}\nnothing was uploaded")
    else:
        print(done.url or f"{args.card_only}/README.md")
    return 0
