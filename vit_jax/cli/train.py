"""``vit_jax train``"""

from __future__ import annotations

import argparse

HELP = "train a model, or go on where the workdir left off"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="configuration file and its argument")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run; created, or resumed")
    parser.add_argument("--dry_run", action="store_true", help="build, trace and lower the step, print sizes, and stop")
    parser.epilog = "Any key can be changed: --config.optim.lr=3e-4 --config.batch_size=64"


def run(args: argparse.Namespace) -> int:
    """Trains."""
    import vit_jax as vj
    from vit_jax import config
    from vit_jax.train import setup
    from vit_jax.train.config import TrainConfig
    from vit_jax.train.progress import say, table

    raw = config.load(args.config, args.overrides)
    if args.dry_run:
        say(table(setup.describe(setup.build(config.parse(TrainConfig, raw)))))
        return 0
    vj.train(raw, args.workdir)
    return 0
