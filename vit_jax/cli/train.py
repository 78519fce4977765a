"""``vit_jax train``"""

from __future__ import annotations

import argparse
import os
import sys

from vit_jax.cli import options

HELP = "train a model, or go on where the workdir left off"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.set_defaults(takes_overrides=True)
    parser.add_argument(
        "--config", type=options.path, required=True, metavar="FILE[:ARG]", help="configuration file and its argument"
    )
    parser.add_argument(
        "--workdir", type=options.path, required=True, metavar="DIR", help="folder of the run; created, or resumed"
    )
    parser.add_argument("--dry_run", action="store_true", help="build, trace and lower the step, print sizes, and stop")
    parser.epilog = "Any key can be changed: --config.optim.lr=3e-4 --config.batch_size=64"


def run(args: argparse.Namespace) -> int:
    """Trains."""
    import vit_jax as vj
    from vit_jax import config
    from vit_jax.train import loop, setup, start
    from vit_jax.train.config import TrainConfig
    from vit_jax.train.progress import say, table

    raw = config.load(args.config, args.overrides)
    if args.dry_run:
        parsed = config.parse(TrainConfig, raw)
        start.look(parsed)
        for logger in parsed.loggers:
            logger.check()
        say(table(setup.describe(setup.build(parsed))))
        return 0
    try:
        vj.train(raw, args.workdir)
    except loop.Interrupted as e:
        print(f"vit_jax train: {e}", file=sys.stderr, flush=True)
        os._exit(1)  # without waiting for threads; nothing is left to be written
    return 0
