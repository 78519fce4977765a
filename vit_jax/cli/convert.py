"""``vit_jax convert``"""

from __future__ import annotations

import argparse

from vit_jax.cli import options

HELP = "move weights between other projects' formats and ours"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    text = "a file, folder, run, hf://ORG/NAME[@REV][/FILE], gs:// or https://"
    parser.add_argument("source", type=options.path, metavar="SRC", help=text)
    parser.add_argument(
        "target", type=options.path, metavar="DST", help="a new folder, or a new file (.safetensors, .npz)"
    )
    options.best(parser)
    options.imports(parser)
    parser.add_argument("--to", required=True, metavar="FORMAT", help="vit_jax, timm, open_clip, hf, npz or big_vision")
    options.model(parser)
    parser.add_argument(
        "--linear", action="append", default=[], metavar="[FIELD=]SPEC",
        help="change linear maps on the way: 'packed24(int8)' packs what was trained as sparse24, 'dense' multiplies "
        "out, 'monarch(4)' projects, 'int8' rounds; 'mlp_linear=packed24' those of one field; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare pixels and outputs with the other project's own processor and model",
    )


def run(args: argparse.Namespace) -> int:
    """Converts; exit status 1 where ``--verify`` finds a difference above the tolerance."""
    import vit_jax as vj
    from vit_jax.convert.verify import TOLERANCE
    from vit_jax.io.remote import public

    where = str(vj.best_checkpoint(args.source)) if args.best else args.source
    changes = options.changes(args)
    source = vj.load(where, args.model, changes=changes) if changes else where
    done = vj.convert(source, args.target, to=args.to, model=args.model, linear=args.linear, verify=args.verify)
    print(f"{public(where)}: {done.summary}")
    for note in done.notes:
        print(f"  {note}")
    print(f"written to {args.target} as {args.to}")
    for row in done.differences:
        print(f"  {row.peer}, {row.images}: max |Δ{row.output}| {row.difference:.2e}, largest {row.largest:.3g}")
    if not done.ok:
        allowed = f"{TOLERANCE:g} of the largest value, of pixels one grey level"
        print(f"the difference is above {allowed}; {args.target} stays for inspection")
    return int(not done.ok)
