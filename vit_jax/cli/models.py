"""``vit_jax models``"""

from __future__ import annotations

import argparse

HELP = "list the models, or describe one"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("name", nargs="?", help="a model, such as vit_b16; all of them by default")
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS", help="side of the image (default 224)")
    parser.add_argument("--num_classes", type=int, default=1000, metavar="C", help="outputs of the head (default 1000)")
    parser.add_argument("--json", metavar="FILE", help="write the table there, - for the terminal")


def run(args: argparse.Namespace) -> int:
    """Prints parameters and FLOPs."""
    import math

    import jax

    from vit_jax import models
    from vit_jax.cli import output
    from vit_jax.train import flops
    from vit_jax.train.state import abstract_params
    from vit_jax.types import UserError

    rows = []
    for name in [args.name] if args.name else [n for n in models.MODELS if n not in models.FAMILIES]:
        size = args.size
        try:
            head = {"num_classes": args.num_classes} if name in models.IMAGES else {}
            model = models.create(name, **head)
            inputs = model.inputs(size)
            shapes = jax.tree.leaves(abstract_params(model, inputs))
        except UserError as e:
            if args.name:
                raise
            rows.append({"model": name, "error": str(e)})
            continue
        parameters = sum(math.prod(x.shape) for x in shapes)
        gflops = flops.forward(model, inputs) / 1e9
        rows.append({"model": name, "parameters": parameters, "gflops": round(gflops, 3), "size": size})
    if args.json != "-":
        print(f"{'model':16s} {'parameters':>15s} {'GFLOPs/image':>13s} {'size':>5s}")
        for r in rows:
            values = r.get("error") or f"{r['parameters']:>15,d} {r['gflops']:>13.2f} {r['size']:>5d}"
            print(f"{r['model']:16s} {values}")
    output.write(args.json, rows)
    return 0
