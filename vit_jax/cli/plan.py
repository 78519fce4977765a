"""``vit_jax plan``"""

from __future__ import annotations

import argparse

from vit_jax.cli import options

HELP = "say what a run takes on TPUs that are not here"
MOST = 2**40


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.set_defaults(takes_overrides=True)
    options.config(parser, "--config", required=True)
    text = "v5e:16x16, v5p:4x4x4, v6e:4x4 (extra tpu-compile), or cpu:8"
    parser.add_argument("--topology", type=options.filled, required=True, metavar="KIND:SHAPE", help=text)
    text = "of the training data, where that is not here (default 1,281,167; 400,000,000 where there are captions)"
    parser.add_argument("--examples", type=options.number(1, MOST), metavar="N", help=text)
    text = "of the training data, where that is not here (default 1,000; none where there are captions)"
    parser.add_argument("--classes", type=options.number(1, 2**20), metavar="N", help=text)
    text = "try other micro-batches, recomputation and meshes with the same batch, and name the fastest that fits"
    parser.add_argument("--search", action="store_true", help=text)
    options.json(parser, "plan")
    parser.epilog = "Any key can be changed: --config.batch_size=4096 --config.mesh.fsdp=16"


def run(args: argparse.Namespace) -> int:
    """Plans and prints. Exit status 1 where the step does not fit, in a search where nothing does."""
    import jax

    import vit_jax as vj
    from vit_jax import config
    from vit_jax.cli import output
    from vit_jax.plan.search import search
    from vit_jax.train.progress import say

    jax.config.update("jax_platforms", "cpu")  # the devices of this machine are not asked
    raw, options = config.load(args.config, args.overrides), {"examples": args.examples, "classes": args.classes}
    found = vj.plan(raw, args.topology, **options)
    summary = found.summary()
    shown = args.json != "-"
    if shown:
        say(found.text())
    if args.search or not found.fits:
        if shown:
            say("\nSearching for " + ("the fastest that fits ..." if args.search else "the nearest that fits ..."))
        others = search(raw, args.topology, nearest=not args.search, **options)
        summary |= {"search": others.summary()}
        if shown:
            say(others.text())
        fits = found.fits or (args.search and others.best is not None)
    else:
        fits = True
    output.write(args.json, summary)
    return 0 if fits else 1
