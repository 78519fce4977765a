"""``vit_jax convert``"""

from __future__ import annotations

import argparse

HELP = "move weights between other projects' formats and ours"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "source", metavar="SRC", help="a file, folder, run, hf://ORG/NAME[@REV][/FILE], gs:// or https://"
    )
    parser.add_argument("target", metavar="DST", help="a new folder, or a new file (.safetensors, .npz)")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="vit_jax, timm, open_clip, hf, npz or big_vision")
    parser.add_argument(
        "--model", metavar="NAME", help="what the model is, where shapes do not say: 'vit_b16(heads=12)'"
    )
    parser.add_argument(
        "--linear", action="append", default=[], metavar="[FIELD=]SPEC",
        help="change linear maps on the way: 'packed24(int8)' packs what was trained as sparse24, 'dense' multiplies "
        "out, 'monarch(4)' projects; 'mlp_linear=packed24' those of one field; may be repeated",
    )  # fmt: skip
    parser.add_argument("--verify", action="store_true", help="compare outputs with the other project's own model")


def run(args: argparse.Namespace) -> int:
    """Converts; exit status 1 where ``--verify`` finds a difference above the tolerance."""
    import math
    import pathlib

    from vit_jax.convert import base, relinear, store, verify
    from vit_jax.launch import runtime

    runtime.setup()
    store.check_target(pathlib.Path(args.target), args.to)
    requests = [relinear.Request.parse(text) for text in args.linear]
    with store.load(args.source, args.model) as pretrained:
        name = base.describe(pretrained.model)["name"]
        sizes = [math.prod(t.shape) for t in pretrained.params.values()]
        tower = getattr(pretrained.model, "text_tower", None)
        what = f"texts of {tower.length} tokens" if tower else f"{base.classes(pretrained.model)} classes"
        print(f"{args.source}: {name}, {sum(sizes):,} parameters, {what}, {pretrained.preprocess.size} px")
        notes = list(pretrained.notes)
        if requests:
            pretrained, changes = relinear.relinear(pretrained, requests)
            notes += changes
        notes += store.save(pretrained, args.target, args.to)
        for note in notes:
            print(f"  {note}")
        print(f"written to {args.target} as {args.to}")
        if not args.verify:
            return 0
        rows = verify.verify(pretrained, [args.target] if requests else [args.source, args.target])
    for row in rows:
        print(f"  {row.peer}, {row.images}: max |Δ{row.output}| {row.difference:.2e}, largest {row.largest:.3g}")
    bad = [row for row in rows if not row.ok]
    if bad:
        print(f"the difference is above {verify.TOLERANCE:g} of the largest value; {args.target} stays for inspection")
    return int(bool(bad))
