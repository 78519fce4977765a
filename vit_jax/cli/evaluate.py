"""``vit_jax evaluate``"""

from __future__ import annotations

import argparse

HELP = "evaluate the newest checkpoint of a run"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--checkpoint", metavar="DIR", help="another checkpoint than the newest: WORKDIR/checkpoints/STEP"
    )
    parser.add_argument("--json", metavar="FILE", help="write the metrics there, - for the terminal")
    parser.epilog = "Other data: --config.data.val=folder:/other/images"


def run(args: argparse.Namespace) -> int:
    """Evaluates; pictures and results.json go to WORKDIR/evaluation."""
    import pathlib

    from vit_jax import config
    from vit_jax.cli import output
    from vit_jax.launch import runtime
    from vit_jax.train import setup, start, workdir
    from vit_jax.train.config import TrainConfig
    from vit_jax.train.progress import say, table

    path = pathlib.Path(args.workdir)
    raw = config.override(workdir.load(path), args.overrides)
    typed = config.parse(TrainConfig, raw)
    runtime.setup()
    built = setup.build(typed)
    params, folder = start.eval_params(built, args.checkpoint or path)
    report = built.evaluate(params)
    report.save(path / "evaluation", built.train.info.class_names, checkpoint=str(folder))
    if args.json != "-":
        say(table({"checkpoint": folder, **report.prefixed("val")}))
    output.write(args.json, {"checkpoint": str(folder), **report.prefixed("val")})
    return 0
