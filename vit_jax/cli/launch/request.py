"""What every launcher of other machines is told: its verb, the name of the run, and a checked command."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Mapping, Sequence

from vit_jax.cli import options

HELP = {
    "run": "start it, or go on with it",
    "status": "say what there is",
    "tail": "follow its output",
    "stop": "let it save and end; the machines stay",
    "delete": "end it and give the machines back",
}


def arguments(parser: argparse.ArgumentParser, *verbs: str) -> None:
    """Adds the verb, of which the first alone is given a command after ``--``, the name and ``--dry_run``."""
    text = "; ".join(f"{verb}: {HELP[verb]}" for verb in verbs)
    parser.add_argument("verb", nargs="?", choices=verbs, default=verbs[0], metavar="VERB", help=text)
    parser.add_argument("--name", type=_name, required=True, help="of the run, small letters, digits and hyphens")
    parser.add_argument("--dry_run", action="store_true", help="print what would be done and stop")
    parser.set_defaults(wordless=verbs[1:])


def shared_workdir(parser: argparse.ArgumentParser) -> None:
    """Adds what allows a local ``--workdir``, for :func:`check`."""
    text = "a --workdir without :// is a folder that all machines share"
    parser.add_argument("--shared_workdir", action="store_true", help=text)


def variables(parser: argparse.ArgumentParser) -> None:
    """Adds the environment of the hosts."""
    text = "a variable of the hosts' environment; may be repeated"
    parser.add_argument("--env", type=_variable, action="append", default=[], metavar="NAME=VALUE", help=text)


def check(args: argparse.Namespace, hosts: int) -> None:
    """Whether ``args.inner``, the command of the hosts, can run on several machines.

    Raises:
      UsageError: its folder is on one of them.
    """
    from vit_jax.types import UsageError

    workdir = vars(args.inner).get("workdir")
    if workdir and "://" not in workdir and hosts > 1 and not args.shared_workdir:
        raise UsageError(
            f"--workdir {workdir!r} is a folder of one machine, and {hosts} hosts are to write there and to find it "
            "again on other machines; give an address, such as gs://BUCKET/RUN, or --shared_workdir if all see it."
        )


def environment(args: argparse.Namespace) -> Mapping[str, str]:
    """What ``--env`` says; of a name that is given twice the last."""
    return dict(args.env)


def again() -> list[int]:
    """Exit statuses after which a run goes on: RESUME, and what SIGKILL (no memory) or SIGTERM leaves."""
    from vit_jax.hosts import RESUME

    return [RESUME, 128 + 9, 128 + 15]


def show(*commands: Sequence[str]) -> None:
    """Prints commands as a shell takes them, one a line."""
    for words in commands:
        print(shlex.join(words))


def say(text: str) -> None:
    """What a launcher does, beside what the hosts print."""
    print(f"vit_jax launch: {text}.", file=sys.stderr, flush=True)


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r} is no name that clouds allow; give up to 40 small letters, digits and hyphens, "
            "a letter first"
        )
    return text


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = options.filled(text).partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not NAME=VALUE")
    return name, value
