"""``vit_jax completion``"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from vit_jax import architectures
from vit_jax.cli import options

HELP = "print a script that completes commands in a shell"
SHELLS = ("bash", "zsh", "tcsh")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("shell", choices=SHELLS, help="which shell")
    parser.epilog = 'In bash: eval "$(vit_jax completion bash)"; in a startup file this works in every shell.'


def run(args: argparse.Namespace) -> int:
    """Prints the script."""
    import shtab

    from vit_jax import cli, configfile
    from vit_jax.convert import formats
    from vit_jax.export import FORMATS
    from vit_jax.publish import card

    parser, commands = cli.parsers()
    for name, known in {"convert": [*formats.TARGETS], "export": [*FORMATS], "push": [*card.LIBRARIES]}.items():
        next(action for action in commands[name]._actions if action.dest == "to").choices = known
    for command in commands.values():
        if command.get_default("takes_overrides"):
            for key in keys():
                command.add_argument(f"--config.{key}")
    recipes = " ".join(configfile.recipes())
    words = {
        "bash": "_vit_jax_recipes", "zsh": "_vit_jax_recipes", "tcsh": "f",
        "preamble": {
            "bash": f'_vit_jax_recipes() {{\n  compgen -W "{recipes}" -- $1\n  _shtab_compgen_files $1\n}}',
            "zsh": f"_vit_jax_recipes() {{\n  compadd -- {recipes}\n  _files\n}}",
        },
    }  # fmt: skip
    for action in actions(parser):
        if action.dest == "config" and action.type is options.path:
            action.complete = words  # type: ignore[attr-defined]
        elif action.type is options.path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif names_a_model(action) and action.choices is None and action.nargs != 0:
            action.choices = architectures.names("*")
    print(shtab.complete(parser, args.shell))
    return 0


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a parser and of those below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from actions(below)


def names_a_model(action: argparse.Action) -> bool:
    """Whether an argument is an architecture; ``--name`` of a launcher is none."""
    return action.dest == "model" or (action.dest == "name" and not action.option_strings)


def keys() -> list[str]:
    """Those of a configuration that any recipe has."""
    from vit_jax import config
    from vit_jax.report import keys as report
    from vit_jax.train.config import TrainConfig

    return [key.name for key in report.keys(config.parse(TrainConfig, config.load("digits")))]
