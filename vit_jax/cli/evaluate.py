"""``vit_jax evaluate``"""

from __future__ import annotations

import argparse

from vit_jax.cli import options

HELP = "evaluate the newest checkpoint of a run"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("--workdir", type=options.path, required=True, metavar="DIR", help="folder of the run")
    text = "another checkpoint than the newest: WORKDIR/checkpoints/STEP"
    parser.add_argument("--checkpoint", type=options.path, metavar="DIR", help=text)
    options.json(parser, "metrics")
    parser.epilog = "Other data: --config.data.val=folder:/other/images"


def run(args: argparse.Namespace) -> int:
    """Evaluates; pictures and results.json go to WORKDIR/evaluation."""
    import vit_jax as vj
    from vit_jax import config
    from vit_jax.cli import output
    from vit_jax.train.progress import say, table

    changes = {key: config.literal(text) for key, text in args.overrides}
    report = vj.evaluate(args.workdir, checkpoint=args.checkpoint, changes=changes)
    found = {"checkpoint": report.checkpoint, **report.prefixed("val")}
    if args.json != "-":
        say(table(found))
    output.write(args.json, found)
    return 0
