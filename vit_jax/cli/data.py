"""``vit_jax data``"""

from __future__ import annotations

import argparse

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


def _pack(args: argparse.Namespace, source: object) -> int:
    from vit_jax.data.sources.tar import write_tar

    shards = write_tar(source, args.shards, shard_size=args.shard_size)
    print(f"{len(source):,} examples in {len(shards)} shards, {shards[0]} to {shards[-1]}")
    return 0


def _check(args: argparse.Namespace, source: object) -> int:
    import numpy as np
    from tqdm import tqdm

    from vit_jax.cli import output
    from vit_jax.data.decode import decode
    from vit_jax.data.sources.base import Unreadable

    counts, sizes, bad = np.zeros(source.info.num_classes, int), [], []
    for i in tqdm(range(len(source)), unit="image", disable=None):
        record = source[i]
        counts[record["label"]] += 1
        try:
            sizes.append(decode(record, 32, "squash")[1])
        except Unreadable as e:
            bad.append(str(e))
    height, width = np.median(sizes, axis=0) if sizes else (0, 0)
    found = {
        "examples": len(source),
        "classes": dict(zip(source.info.class_names, counts.tolist(), strict=True)),
        "median_height": float(height),
        "median_width": float(width),
        "notes": list(source.info.notes),
        "unreadable": bad,
    }
    if args.json != "-":
        smallest = min(found["classes"], key=found["classes"].get)
        print(f"{len(source):,} examples of {len(counts)} classes; the smallest is {smallest!r} with {counts.min():,}")
        print(f"median size {height:.0f}x{width:.0f}; {len(bad)} unreadable")
        print(*source.info.notes, *bad, sep="\n")
    output.write(args.json, found)
    return int(bool(bad))
