"""``vit_jax stitch``"""

from __future__ import annotations

import argparse

from vit_jax.cli import options

HELP = "make one stitchable network of trained ViTs of several widths"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    text = "two or three trained ViTs, alike but for their width: runs, checkpoints, or weights of any format"
    parser.add_argument("anchors", type=options.path, nargs="+", metavar="ANCHOR", help=text)
    text = "source of images to fit the maps between them to, such as folder:/my/images: its training part"
    parser.add_argument("--data", type=options.filled, required=True, metavar="SOURCE", help=text)
    options.value(parser, "images", 100, "how many of them, evenly spread", metavar="N")
    options.value(parser, "kernel", 2, "neighbouring blocks among which each is stitched to each", most=8, metavar="K")
    parser.add_argument("--output", type=options.path, required=True, metavar="DIR", help="a new folder, in our format")
    parser.epilog = "To train it: --config finetune:init --config.init=DIR --config.objective='drawn(classify)'"


def run(args: argparse.Namespace) -> int:
    """Writes the network and says what it is made of."""
    import vit_jax as vj

    made = vj.stitch(args.anchors, args.data, count=args.images, kernel=args.kernel)
    vj.convert(made, args.output, to="vit_jax")
    for note in made.notes:
        print(note)
    print(f"written to {args.output}")
    return 0
