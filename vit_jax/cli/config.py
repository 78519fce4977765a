"""``vit_jax config``"""

from __future__ import annotations

import argparse

from vit_jax.cli import options

HELP = "show every key of a configuration, or the recipes"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.set_defaults(takes_overrides=True)
    options.config(parser, "config", nargs="?")
    options.json(parser, "whole configuration, every key set, which --config takes,")
    parser.epilog = "Values that are not the default have a star. A key is changed by --config.KEY=VALUE, here too."


def run(args: argparse.Namespace) -> int:
    """Prints the keys as a table; without a configuration the recipes that there are."""
    from vit_jax import config, configfile
    from vit_jax.cli import output
    from vit_jax.report.keys import keys
    from vit_jax.train import inherit, workdir
    from vit_jax.train.config import TrainConfig

    if args.config is None:
        names = configfile.recipes()
        print("\n".join(f"{name:{max(map(len, names))}}  {configfile.title(name)}" for name in names))
        return 0
    raw = config.load(args.config, args.overrides)
    if isinstance(data := raw.get("data", {}), dict):
        raw["data"] = {"path": "", **data}  # which a recipe may leave to the command line
    found = config.parse(TrainConfig, inherit.resolved(raw))
    if args.json != "-":
        with config.known(found.imports):
            rows = [(" *"[not k.default] + k.name, k.value, k.kind.replace("`", ""), k.about) for k in keys(found)]
        widths = [min(40, max(len(row[i]) for row in rows)) for i in range(3)]
        for row in rows:
            print("  ".join([*(text.ljust(w) for text, w in zip(row, widths, strict=False)), row[3]]))
    output.write(args.json, workdir.complete(found))
    return 0
