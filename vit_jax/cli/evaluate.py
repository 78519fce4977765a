"""``vit_jax evaluate``"""

from __future__ import annotations

import argparse

from vit_jax.cli import options

HELP = "evaluate a run again, or any weights on your images"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("--workdir", type=options.path, metavar="DIR", help="folder of the run; its newest checkpoint")
    text = "another checkpoint: WORKDIR/checkpoints/STEP; with --data weights of any format: a path, hf://ORG/NAME"
    parser.add_argument("--checkpoint", type=options.path, metavar="X", help=text)
    options.best(parser)
    options.model(parser)
    options.imports(parser)
    text = "source to score the weights on, such as folder:/my/images: its own validation part, or all of it"
    parser.add_argument("--data", type=options.filled, metavar="SOURCE", help=text)
    parser.add_argument(
        "--evaluators", type=options.filled, nargs="+", default=[], metavar="E",
        help="with --data: classify, linear_probe, knn, zero_shot, ... or 'knn(k=5)'; by default classify, of an "
        "image-text model zero_shot, or retrieval on captions. Probes are fitted to the training part, else in folds",
    )  # fmt: skip
    text = "with --data: side of the images in pixels, if not the weights' own; positions are resized"
    parser.add_argument("--size", type=options.number(1, 4096), metavar="PIXELS", help=text)
    text = "with --data: folder for results.json and pictures; WORKDIR/evaluation by default, without --workdir none"
    parser.add_argument("--output", type=options.path, metavar="DIR", help=text)
    options.json(parser, "metrics")
    parser.epilog = "Other data for a run's own evaluators: --config.data.val=folder:/other/images"


def run(args: argparse.Namespace) -> int:
    """Evaluates; pictures and results.json go to WORKDIR/evaluation, or to ``--output``."""
    import pathlib

    import vit_jax as vj
    from vit_jax import hosts
    from vit_jax.cli import output
    from vit_jax.train.progress import say, table

    if not (args.workdir or (args.data and args.checkpoint)):
        raise vj.UsageError("name the --workdir of a run, or weights: --checkpoint X --data folder:/my/images.")
    if args.best and args.workdir and args.checkpoint:
        raise vj.UsageError("--best and --checkpoint name two checkpoints; give one of them.")
    if args.model and not args.data:
        raise vj.UsageError("--model goes with --data; a run knows its own model.")
    checkpoint = options.opened(args) if args.best or args.model else args.checkpoint
    changes = options.changes(args)
    if args.data:
        where = args.output or (args.workdir and pathlib.Path(args.workdir, "evaluation"))
        scored = {"data": args.data, "evaluators": args.evaluators, "size": args.size, "output": where}
        report = vj.evaluate(checkpoint or args.workdir, changes=changes or None, **scored)
    elif args.evaluators or args.size or args.output:
        raise vj.UsageError("--evaluators, --size and --output go with --data; a run's own are --config.evaluators.")
    else:
        report = vj.evaluate(args.workdir, checkpoint=checkpoint, changes=changes)
    found = {"checkpoint": report.checkpoint, **report.prefixed("val")}
    if args.json != "-":
        say(table(found))
    output.write(args.json if hosts.first() else None, found)
    return 0
