"""``vit_jax export``"""

from __future__ import annotations

import argparse

from vit_jax.cli import options

HELP = "write a program or weights that run without this package"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", type=options.path, metavar="DIR", help="folder of a run; its newest checkpoint")
    text = "one checkpoint, WORKDIR/checkpoints/STEP, or weights of any format and place"
    which.add_argument("--checkpoint", type=options.path, metavar="PLACE", help=text)
    options.best(parser)
    options.imports(parser)
    text = "stablehlo: a program for JAX; onnx: a program for ONNX runtimes; safetensors: weights that timm loads"
    parser.add_argument("--to", required=True, metavar="FORMAT", help=text)
    parser.add_argument("--int8", action="store_true", help="of onnx: weights in int8, and what that changes")
    parser.add_argument("out", type=options.path, metavar="OUT", help="a new folder")


def run(args: argparse.Namespace) -> int:
    """Prints what was written, its inputs and outputs, how far it is from the checkpoint and how to load it."""
    import vit_jax as vj

    written = vj.export(options.opened(args, options.changes(args)), args.out, to=args.to, int8=args.int8)
    for path in sorted(written.folder.iterdir()):
        print(f"{path}  {path.stat().st_size / 2**20:,.2f} MiB")
    print("input   " + written.signature[0])
    print("output  " + written.signature[1])
    if written.difference is not None:
        print(f"checked on two inputs: outputs differ from the checkpoint's by {written.difference:.1e} at most")
    for note in written.notes:
        print(f"note: {note}")
    print("in Python, inside that folder:", *written.usage, sep="\n  ")
    return 0
