"""``vit_jax data``"""

from __future__ import annotations

import argparse
from typing import Any

import vit_jax as vj
from vit_jax.cli import options

HELP = "look at data, check or pack it, or train a tokenizer on it"
CLASSES = 40
"""Lines of a table of classes."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    preview = commands.add_parser("preview", help="draw some examples as a model sees them, and count classes")
    preview.set_defaults(takes_overrides=True)
    preview.add_argument("path", type=options.filled, help="source, such as folder:/my/images")
    text = "draw them as this configuration frames and augments them"
    preview.add_argument("--config", type=options.path, metavar="FILE[:ARG]", help=text)
    options.value(preview, "out", "preview.png", "picture to write", metavar="FILE")
    preview.epilog = "Any key can be changed: --config.augment.size=384"
    check = commands.add_parser("check", help="read every image once; name the unreadable ones and count classes")
    check.add_argument("path", type=options.filled, help="source, such as folder:/my/images")
    options.json(check, "findings")
    options.max_pixels(check)
    pack = commands.add_parser("pack", help="write the examples as tar shards, in the same order")
    pack.add_argument("path", type=options.filled, help="source, such as folder:/my/images")
    pack.add_argument(
        "shards", type=options.path, help="file to write, with a field for the shard's number: /data/train-{:05d}.tar"
    )
    options.value(pack, "shard_size", 10_000, "examples a shard", 10**9, metavar="N")
    tokenizer = commands.add_parser("tokenizer", help="train a byte-level tokenizer on the captions of a source")
    tokenizer.add_argument("path", type=options.filled, help="source with captions, such as jsonl:/my/pairs.jsonl")
    tokenizer.add_argument(
        "out", type=options.path, help="file to write; --config.data.text.tokenizer=json:OUT uses it"
    )
    tokenizer.add_argument(
        "--vocab_size", type=options.number(1, 2**22), required=True, metavar="N", help="tokens, at least 259"
    )
    tokenizer.add_argument("--lower", action="store_true", help="ignore case")


def run(args: argparse.Namespace) -> int:
    """Draws, checks (exit status 1 if an image is unreadable), packs, or trains a tokenizer."""
    if args.action == "preview":
        return _preview(args)
    source = vj.open_source(args.path, holdout=0)
    return {"check": _check, "pack": _pack, "tokenizer": _tokenizer}[args.action](args, source)


def _preview(args: argparse.Namespace) -> int:
    from vit_jax import config
    from vit_jax.report import plots
    from vit_jax.train import inputs
    from vit_jax.train.progress import table

    if not args.out.endswith(".png"):
        raise vj.UsageError(f"--out {args.out!r} is no name of a picture; let it end in .png.")
    if args.overrides and not args.config:
        raise vj.UsageError(f"--config.{args.overrides[0][0]} changes a configuration; name it with --config.")
    raw = config.load(args.config, args.overrides) if args.config else None
    source, sections, notes = inputs.preview(args.path, raw)
    plots.contact_sheet(sections, args.out)
    counts, read = inputs.counts(source)
    print(f"{len(source):,} examples{f' of {len(counts):,} classes' if counts else ''}")
    if counts:
        shown = dict(sorted(counts.items(), key=lambda item: -item[1])[:CLASSES])
        print(table(shown))
        if rest := len(counts) - len(shown):
            print(f"  and {rest:,} more, the smallest with {min(counts.values()):,}")
        if read < len(source):
            print(f"  counted in {read:,} examples, spread evenly")
    for line in notes:
        print(line)
    print(f"{args.out} shows {len(next(iter(sections.values()))[1])} of them")
    return 0


def _pack(args: argparse.Namespace, source: Any) -> int:
    from vit_jax.data.sources.tar import write_tar

    shards = write_tar(source, args.shards, shard_size=args.shard_size)
    print(f"{len(source):,} examples in {len(shards)} shards, {shards[0]} to {shards[-1]}")
    return 0


def _check(args: argparse.Namespace, source: Any) -> int:
    from vit_jax.cli import output
    from vit_jax.data.check import check

    report = check(source, max_pixels=args.max_pixels)
    found: dict[str, Any] = {
        "examples": len(source),
        "classes": dict(zip(source.info.class_names, report.counts.tolist(), strict=True)),
        "captions": report.captions,
        "longest caption": report.longest,
        "notes": list(source.info.notes),
        "unreadable": list(report.unreadable.values()),
    }
    if args.json != "-":
        line = f"{len(source):,} examples"
        if classes := found["classes"]:
            smallest = min(classes, key=classes.get)
            line += f" of {len(classes)} classes; the smallest is {smallest!r} with {classes[smallest]:,}"
        if report.captions:
            line += f"; {report.captions:,} captions, the longest of {report.longest} bytes"
        print(f"{line}; {len(report.unreadable)} unreadable")
        for line in found["notes"] + found["unreadable"]:
            print(line)
    output.write(args.json, found)
    return int(bool(report.unreadable))


def _tokenizer(args: argparse.Namespace, source: Any) -> int:
    from vit_jax.data.tokenizer import open_tokenizer
    from vit_jax.data.tokenizer.train import captions, save, train

    if not source.info.captions:
        raise vj.UserError(f"{args.path!r} has no captions; name image-text data, such as jsonl:/my/pairs.jsonl.")
    skipped: list[str] = []
    save(args.out, lambda: train(captions(source, skipped), args.vocab_size, lower=args.lower))
    size = open_tokenizer(f"json:{args.out}").vocab_size
    print(f"{size:,} tokens from {len(source) - len(skipped):,} examples; use it as json:{args.out}")
    if size < args.vocab_size:
        print(f"no more than that: no other pair occurs twice ({args.vocab_size:,} were asked for)")
    if skipped:
        print(f"{len(skipped):,} examples left out, the first because {skipped[0]}")
    return 0
