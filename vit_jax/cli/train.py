"""``vit_jax train``"""

from __future__ import annotations

import argparse
import os

from vit_jax.cli import options

HELP = "train a model, or go on where the workdir left off"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.set_defaults(takes_overrides=True)
    options.config(parser, "--config", "; without it the run in --workdir is resumed")
    parser.add_argument(
        "--workdir", type=options.path, required=True, metavar="DIR", help="folder of the run; created, or resumed"
    )
    parser.add_argument("--dry_run", action="store_true", help="build, trace and lower the step, print sizes, and stop")
    parser.epilog = "Any key can be changed: --config.optim.lr=3e-4 --config.batch_size=64"


def run(args: argparse.Namespace) -> int:
    """Trains."""
    import vit_jax as vj
    from vit_jax import config
    from vit_jax.train import inherit, setup, start
    from vit_jax.train.config import TrainConfig
    from vit_jax.train.progress import say, table

    raw = config.load(args.config or _stored(args.workdir), args.overrides)
    if args.dry_run:
        parsed = inherit.with_tokenizer(config.parse(TrainConfig, inherit.resolved(raw)), args.workdir)
        setup.check_best(parsed)
        start.look(parsed)
        for logger in parsed.loggers:
            logger.check()
        built = setup.build(parsed)
        for note in built.notes:
            say(note)
        say(table(setup.describe(built)))
        return 0
    vj.train(raw, args.workdir)
    return 0


def onward(workdir: str) -> str:
    """What is left of a run that another host's end stopped, as the end of a sentence."""
    from vit_jax import checkpoint
    from vit_jax.train.workdir import place

    return f"{checkpoint.kept(place(workdir) / checkpoint.FOLDER)}, and the same command goes on from what there is"


def _stored(workdir: str) -> str:
    """The configuration of the run in ``workdir``."""
    from vit_jax import configfile
    from vit_jax.io import mirror, store
    from vit_jax.types import UsageError

    file = os.path.join(mirror.local(workdir), configfile.STORED)
    if not os.path.isfile(file):
        raise UsageError(
            f"{workdir!r} holds no run to resume ({configfile.STORED} is missing); name what to train with --config: a "
            f"file, or one of the recipes {', '.join(configfile.recipes())}."
        )
    return workdir if store.is_address(workdir) else file
