"""``vit_jax find``"""

from __future__ import annotations

import argparse
import os
import pathlib

from vit_jax.cli import options

HELP = "find a learning rate, or the batch that the devices hold"
STEPS = 100


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    rate = commands.add_parser("lr", help="train for some steps at a rising learning rate, until the loss diverges")
    batch = commands.add_parser("batch", help="memory and speed of a step by the size of its batch; nothing is trained")
    for sub in (rate, batch):
        sub.set_defaults(takes_overrides=True)
        options.config(sub, "--config", required=True)
        sub.epilog = "Any key can be changed: --config.batch_size=64"
    options.value(rate, "steps", STEPS, "of the sweep", most=10**6, least=10, metavar="N")
    rate.add_argument("--least", type=float, default=1e-7, metavar="LR", help="first learning rate (default 1e-7)")
    rate.add_argument("--most", type=float, default=10.0, metavar="LR", help="last learning rate (default 10)")
    text = "folder for lr.png and lr.json (default find)"
    rate.add_argument("--output", type=options.path, default="find", metavar="DIR", help=text)
    text = "largest batch to try (default: the number of training examples)"
    batch.add_argument("--most", type=options.number(1, 2**20), metavar="N", help=text)
    options.json(batch, "table")


def run(args: argparse.Namespace) -> int:
    """Finds and prints. Exit status 1 where there is nothing to suggest."""
    return {"lr": _rate, "batch": _batch}[args.action](args)


def _rate(args: argparse.Namespace) -> int:
    import vit_jax as vj
    from vit_jax import config, hosts
    from vit_jax.cli import output
    from vit_jax.io import atomic
    from vit_jax.train.progress import say

    raw = config.load(args.config, args.overrides)
    found = vj.find_lr(raw, steps=args.steps, least=args.least, most=args.most)
    folder = pathlib.Path(args.output)
    if hosts.first():
        with atomic.writing(f"--output {args.output!r}"):
            folder.mkdir(parents=True, exist_ok=True)
            output.write(os.path.join(args.output, "lr.json"), found.summary())
            found.draw(folder / "lr.png")
    end = "where the loss diverged" if found.diverged else "the end of the sweep"
    say(f"{len(found.rates)} steps of {found.batch_size}, up to a rate of {found.rates[-1]:.2g}, {end}")
    say(f"the smoothed loss is least at {found.least:.2g} and falls fastest at {found.steepest:.2g}")
    say(f"{folder / 'lr.png'} and lr.json show it")
    if found.suggestion is None:
        raise vj.UserError(f"no learning rate to suggest: {found.failed}")
    say(f"--config.optim.lr={found.suggestion:.2g} is {found.rule}, for batches of {found.batch_size}")
    return 0


def _batch(args: argparse.Namespace) -> int:
    import vit_jax as vj
    from vit_jax import config, hosts
    from vit_jax.cli import output
    from vit_jax.train.progress import say

    found = vj.find_batch(config.load(args.config, args.overrides), most=args.most)
    if args.json != "-":
        say(f"{'batch':>9s} {'GiB a device':>13s} {'examples/s':>11s}")
        for row in found.rows:
            rate = "" if row.rate is None else f"{row.rate:,.0f}"
            say(f"{row.size:>9,d} {row.memory / 2**30:>13.3g} {rate:>11s}{'' if row.fits else '  does not fit'}")
        most = f", the largest tried (--most; there are {found.examples:,} examples)" if found.rows[-1].fits else ""
        need, have = (f"{n / 2**30:.3g} GiB" for n in (found.largest.memory, found.memory))
        say(f"--config.batch_size={found.largest.size} fits{most}: it takes {need}, and {found.where} is {have}")
        say(f"--config.batch_size={found.enough.size} is as fast: no other gives 5 % more examples a second")
        if found.compares:
            say("this objective compares the examples of a batch: another size is another loss, not only another speed")
        say("a learning rate that was found for another batch is found again: vit_jax find lr")
    output.write(args.json if hosts.first() else None, found.summary())
    return 0
