"""The command line: one file a command, each with ``HELP``, ``arguments(parser)`` and ``run(args) -> exit status``.

Commands import the package inside ``run``, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from vit_jax import __version__, interrupts
from vit_jax.cli import (
    bench,
    completion,
    config,
    convert,
    data,
    embed,
    evaluate,
    export,
    find,
    launch,
    models,
    plan,
    predict,
    push,
    stitch,
    train,
)
from vit_jax.launch import memory

MODULES = (
    train,
    find,
    plan,
    evaluate,
    predict,
    embed,
    convert,
    stitch,
    export,
    push,
    config,
    models,
    data,
    bench,
    launch,
    completion,
)
COMMANDS = {module.__name__.rpartition(".")[2]: module for module in MODULES}
REPEATING = ("train", "find", "evaluate", "embed", "bench")
"""Commands that run one program again and again."""
COMPUTING = ("train", "find", "evaluate", "predict", "embed", "convert", "stitch", "export", "push")
"""Commands whose compiled programs are worth keeping."""
JOINING = (*COMPUTING, "bench", "data")
"""Commands that may run on several hosts."""
ALONE = ("predict", "embed", "convert", "stitch", "export", "push", "bench", "data")
"""Those of them that the first host runs, on its own devices, while the others wait."""


OUTSIDE = "vit_jax train: stopped before or after training; the same command goes on."
"""What SIGTERM leads to, and exit status 75, where the loop is not there to save."""


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the whole command line, and those of its commands by name."""
    parser = argparse.ArgumentParser(prog="vit_jax", description="Vision Transformers in JAX, from images to results.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False)
        sub.add_argument("--verbose", action="store_true", help="show the traceback of an error")
        module.arguments(sub)
    return parser, commands.choices


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of one command. Wrong usage exits with status 2.

    ``overrides`` holds its ``--config.KEY=VALUE``; ``words``, of ``launch``, the command after ``--``, and ``inner``
    that command's own arguments.
    """
    parser, commands = parsers()
    here = argv.index("--") if "--" in argv and argv[0] == "launch" else len(argv)
    # argparse takes what holds a space for no option, and '--config.model.scales=(1, 2)' for an image
    words = [word.replace(" ", "\0") if word.startswith("--config.") else word for word in argv[:here]]
    args, rest = parser.parse_known_args(words)
    rest = [word.replace("\0", " ") for word in rest]
    args.overrides = _overrides(commands[args.command], rest, hasattr(args, "takes_overrides"))
    if hasattr(args, "takes_words"):
        args.words = list(argv[here + 1 :])
        args.inner = parse(args.words) if args.words else None
        wordless = "verb" in args and args.verb in args.wordless
        if not wordless and (args.inner is None or args.inner.command not in JOINING):
            which = f"one of {', '.join(JOINING)}"
            commands["launch"].error(
                f"give what the hosts are to run, {which}: vit_jax launch {args.kind} -- train ..."
            )
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Exit status: 0 ok, 1 failed, 2 wrong usage, 75 stopped and to be resumed."""
    args = parse(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.filterwarnings("ignore", module="PIL")  # of metadata that nothing here depends on
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")  # what orbax drops once a write has failed
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that are no UTF-8, or that a terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    watch: Any = None
    try:
        with interrupts.delivered(), contextlib.ExitStack() as stack:
            stack.enter_context(_repeated())
            if args.command == "train":
                stack.enter_context(interrupts.left_when_asked(75, OUTSIDE, last=argv is None))
            with interrupts.held():
                if argv is None and args.command in REPEATING:
                    memory.restart()
                if not (args.command == "models" and models.at_once(args)):
                    importlib.import_module("vit_jax.api" if args.command in COMPUTING else "vit_jax.types")
            if args.command in JOINING:
                watch = importlib.import_module("vit_jax.launch.runtime").join(args.command in ALONE)
            if args.command in COMPUTING:
                importlib.import_module("vit_jax.launch.runtime").setup()
            if watch:
                return _on_several(watch, args)
            return COMMANDS[args.command].run(args)
    except KeyboardInterrupt:
        reason, status = "interrupted.", 1
    except Exception as e:
        reason, status = _reason(e)
        reason = _shown(reason)
        if (args.verbose and not _is_stuck(e)) or not reason:
            raise
        if _is_stuck(e):
            print(f"vit_jax {args.command}: {reason}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(status)
    print(f"vit_jax {args.command}: {reason}", file=sys.stderr)
    return status


def _shown(reason: str) -> str:
    """A sentence in which folders that stand for addresses are called by these."""
    from vit_jax.io import mirror

    return mirror.shown(reason)


@contextlib.contextmanager
def _repeated() -> Iterator[None]:
    """Says how often something was tried again, on the way out."""
    from vit_jax.io import retry

    before = retry.counts()
    try:
        yield
    finally:
        if said := retry.summary(before):
            print(said, file=sys.stderr)


def _is_stuck(error: Exception) -> bool:
    """Whether this process would wait for its threads for ever."""
    from vit_jax.types import Stuck

    return isinstance(error, Stuck)


def _on_several(watch: Any, args: argparse.Namespace) -> int:
    """As one of several hosts: the first alone prints, an error on any ends all, and none ends before the others."""
    from vit_jax.launch import runtime
    from vit_jax.types import Stopped, UsageError

    watch.command, status = f"vit_jax {args.command}", 0
    if args.command == "train":
        watch.onward = lambda: train.onward(args.workdir)
    try:
        with open(os.devnull, "w") as nobody, contextlib.redirect_stdout(nobody if watch.index else sys.stdout):
            if not watch.index or args.command not in ALONE:
                status = COMMANDS[args.command].run(args)
    except KeyboardInterrupt:
        watch.stop("interrupted.", 1)
    except Exception as e:
        reason, status = _reason(e)
        if not (isinstance(e, Stopped) and not _is_stuck(e)):  # all stop at the same step, but one alone may be stuck
            if not isinstance(e, UsageError):
                watch.doubt()
            if args.verbose or not reason:
                traceback.print_exc()
            reason = reason or f"{type(e).__name__}: {' '.join(str(e).split())[:500]}"
            watch.stop(reason, status)
        if not watch.index:
            print(f"{watch.command}: {reason}", file=sys.stderr)
    runtime.part(watch)
    return status


def _reason(error: Exception) -> tuple[str, int]:
    """A sentence for a user's mistake, a file system or a memory that is full, empty for any other; the exit status."""
    from vit_jax.types import UserError

    if isinstance(error, UserError):
        return str(error), error.status
    if isinstance(error, BrokenPipeError):
        return "nobody reads the output any more.", 1
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'!s:.200}: {error.strerror}.", 1
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error):
        return "there is not enough memory; take a smaller batch, smaller images or a smaller model.", 1
    return "", 1


def _overrides(parser: argparse.ArgumentParser, rest: Sequence[str], allowed: bool) -> list[tuple[str, str]]:
    """``--config.KEY=VALUE`` or ``--config.KEY VALUE`` -> (KEY, VALUE); anything else is wrong usage."""
    pairs, words = [], list(rest)
    while words:
        word = words.pop(0)
        match = re.fullmatch(r"--config\.([\w.]+)(?:=(.*))?", word, re.DOTALL)
        if not match or not allowed:
            parser.error(f"unrecognized argument {word!r}; see vit_jax {parser.prog.split()[-1]} --help")
        if match[2] is None and not words:
            parser.error(f"{word} needs a value: {word}=VALUE")
        pairs.append((match[1], words.pop(0) if match[2] is None else match[2]))
    return pairs
