"""Arguments that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

NAME = 255
"""Bytes that a name may have in a file system."""


def path(text: str) -> str:
    """A place to read from or to write to, for ``add_argument(type=path)``."""
    text = filled(text)
    if "://" not in text and any(len(part.encode("utf-8", "surrogatepass")) > NAME for part in text.split("/")):
        raise argparse.ArgumentTypeError(f"{text[:40]!r}... holds a name of more than {NAME} bytes")
    return text


def filled(text: str) -> str:
    """A text that says something."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; is a variable of the shell not set?")
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} holds a NUL character")
    return text


def number(least: int, most: int) -> Callable[[str], int]:
    """A whole number within ends that belong to it."""

    def whole(text: str) -> int:
        from vit_jax.checks import Range

        try:
            value = int(text)
        except ValueError:  # also of thousands of digits
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number; give {Range(least, most)}") from None
        if value not in Range(least, most):
            raise argparse.ArgumentTypeError(f"{text[:40]} is not allowed; give {Range(least, most)}")
        return value

    return whole


def config(parser: argparse.ArgumentParser, name: str, text: str = "", **more: Any) -> None:
    """A configuration by its place; what else there is goes to ``add_argument``."""
    what = "a recipe by its name (digits, finetune:vit_ti16), a file FILE.py[:ARG], or a run or config.json to repeat"
    parser.add_argument(name, type=path, metavar="RECIPE[:ARG]", help=what + text, **more)


def weights(parser: argparse.ArgumentParser) -> None:
    """The model of a command that applies one: of a run, or of weights in any format."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", type=path, metavar="DIR", help="folder of a run; its newest checkpoint")
    text = "one checkpoint: WORKDIR/checkpoints/STEP, or weights of any format: a path, hf://ORG/NAME"
    which.add_argument("--checkpoint", type=path, metavar="X", help=text)
    best(parser)
    model(parser)
    imports(parser)


def best(parser: argparse.ArgumentParser) -> None:
    """Which checkpoint of a run, for :func:`place`."""
    parser.add_argument("--best", action="store_true", help="the best checkpoint of the run instead of the newest")


def model(parser: argparse.ArgumentParser) -> None:
    """What the weights of another project are, for :func:`opened`."""
    text = "what the model is, where the weights of another project do not say: 'vit_b16(heads=12)'"
    parser.add_argument("--model", type=filled, metavar="NAME", help=text)


def imports(parser: argparse.ArgumentParser) -> None:
    """Where classes of one's own are, for :func:`changes`."""
    text = (
        "file or module whose classes a run names, where the one it recorded is gone or came with it; may be repeated"
    )
    parser.add_argument("--imports", type=filled, action="append", default=[], metavar="FILE.py", help=text)


def changes(args: argparse.Namespace) -> dict[str, Any]:
    """Keys of a run's configuration to which ``--config.KEY=VALUE`` and options of the command give other values."""
    from vit_jax import config

    found = {key: config.literal(text) for key, text in args.overrides}
    return found | ({"imports": tuple(args.imports)} if args.imports else {})


def opened(args: argparse.Namespace, changes: Mapping[str, Any] | None = None) -> Any:
    """What is at :func:`place`: the model itself where ``--model`` says what it is or a run changes, else the place."""
    import logging

    import vit_jax as vj

    where, kind = place(args), vars(args).get("model")
    if kind is None and not changes:
        return where
    found = vj.load(where, kind, changes=changes)
    for note in found.notes:
        logging.getLogger("vit_jax").warning("%s: %s", found.source, note)
    return found


def place(args: argparse.Namespace) -> str:
    """Where the weights are that ``--workdir``, ``--checkpoint`` and ``--best`` name."""
    import vit_jax as vj

    where = args.checkpoint or args.workdir
    return str(vj.best_checkpoint(where)) if args.best else where


def value(
    parser: argparse.ArgumentParser, name: str, default: Any, text: str, most: int = 2**20, least: int = 1, **more: Any
) -> None:
    """``--name`` with a ``default``, which the help says: a number from ``least`` to ``most``, or a text.

    What else there is goes to ``add_argument``.
    """
    kind = number(least, most) if isinstance(default, int) else filled
    parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default {default})", **more)


def max_pixels(parser: argparse.ArgumentParser) -> None:
    """The limit of :mod:`vit_jax.data.image`."""
    value(parser, "max_pixels", 2**26, "an image with more is unreadable, but for a JPEG", most=2**40, metavar="N")


def json(parser: argparse.ArgumentParser, what: str) -> None:
    """Where ``vit_jax.cli.output`` writes."""
    parser.add_argument("--json", type=path, metavar="FILE", help=f"write the {what} there, - for the terminal")
