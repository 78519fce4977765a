"""``vit_jax data``"""

from __future__ import annotations

import argparse
from typing import Any

HELP = "check a data source, or pack it into tar shards"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = commands.add_parser("check", help="read every image once; name the unreadable ones and count classes")
    check.add_argument("path", help="source, such as folder:/my/images")
    check.add_argument("--json", metavar="FILE", help="write the findings there, - for the terminal")
    pack = commands.add_parser("pack", help="write the examples as tar shards, in the same order")
    pack.add_argument("path", help="source, such as folder:/my/images")
    pack.add_argument("shards", help="file to write, with a field for the shard's number: /data/train-{:05d}.tar")
    pack.add_argument("--shard_size", type=int, default=10_000, metavar="N", help="examples a shard (default 10000)")


def run(args: argparse.Namespace) -> int:
    """Checks (exit status 1 if an image is unreadable) or packs."""
    from vit_jax.data.sources import open_source

    source = open_source(args.path, holdout=0)
    return _check(args, source) if args.action == "check" else _pack(args, source)


def _pack(args: argparse.Namespace, source: Any) -> int:
    from vit_jax.data.sources.tar import write_tar

    shards = write_tar(source, args.shards, shard_size=args.shard_size)
    print(f"{len(source):,} examples in {len(shards)} shards, {shards[0]} to {shards[-1]}")
    return 0


def _check(args: argparse.Namespace, source: Any) -> int:
    from vit_jax.cli import output
    from vit_jax.data.check import check

    report = check(source)
    found: dict[str, Any] = {
        "examples": len(source),
        "classes": dict(zip(source.info.class_names, report.counts.tolist(), strict=True)),
        "notes": list(source.info.notes),
        "unreadable": list(report.unreadable.values()),
    }
    if args.json != "-":
        smallest = min(found["classes"], key=found["classes"].get)
        print(
            f"{len(source):,} examples of {len(report.counts)} classes; the smallest is {smallest!r} "
            f"with {found['classes'][smallest]:,}; {len(report.unreadable)} unreadable"
        )
        for line in found["notes"] + found["unreadable"]:
            print(line)
    output.write(args.json, found)
    return int(bool(report.unreadable))
