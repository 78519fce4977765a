"""``vit_jax models``"""

from __future__ import annotations

import argparse
from typing import Any

import vit_jax as vj
from vit_jax.cli import options

HELP = "list the models, or describe one"
VALUES = "{parameters:>15,d} {megabytes:>11,.1f} {gflops:>13.2f} {size:>5d}"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("name", type=options.filled, nargs="?", help="a model, such as vit_b16; all of them by default")
    options.value(parser, "size", 224, "side of the image", 4096, metavar="PIXELS")
    options.value(parser, "num_classes", 1000, "outputs of the head", least=0, metavar="C")
    text = "also with the maps of attention and MLPs as, for instance, monarch(4)"
    parser.add_argument("--linear", type=options.filled, metavar="SPEC", help=text)
    options.json(parser, "table")


def run(args: argparse.Namespace) -> int:
    """Prints parameters, their bytes as they are trained, and FLOPs."""
    import dataclasses

    from vit_jax import config
    from vit_jax.cli import output
    from vit_jax.layers.linear.specs import FIELDS, Spec

    changes: list[tuple[str, dict[str, Any]]] = [("", {})]
    if args.linear:
        spec = config.parse(Spec, args.linear, "--linear")
        if hasattr(spec, "implementation"):  # count the structured product, whoever would run it here
            spec = dataclasses.replace(spec, implementation="xla")
        changes.append((f" {args.linear}", dict.fromkeys(FIELDS, spec)))
    rows = []
    for name in [args.name] if args.name else vj.list_models():
        for label, fields in changes:
            try:
                rows.append(_row(name, label, fields, args))
            except vj.UserError as e:
                if args.name:
                    raise
                rows.append({"model": name + label, "error": str(e)})
    if args.json != "-":
        width = max(16, *(len(r["model"]) for r in rows))
        print(f"{'model':{width}s} {'parameters':>15s} {'MB':>11s} {'GFLOPs/image':>13s} {'size':>5s}")
        for r in rows:
            print(f"{r['model']:{width}s} {r.get('error') or VALUES.format(**r, megabytes=r['bytes'] / 1e6)}")
    output.write(args.json, rows)
    return 0


def _row(name: str, label: str, fields: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One line of the table: the model ``name`` with ``fields`` set wherever it has them."""
    import math

    import jax

    from vit_jax import models
    from vit_jax.models import cost
    from vit_jax.train.state import abstract_params

    head = {"num_classes": args.num_classes} if name in models.IMAGES else {}
    model = models.replace_in_towers(models.create(name, **head), **fields)
    inputs = model.inputs(args.size)
    leaves = jax.tree.leaves(abstract_params(model, inputs))
    sizes = [math.prod(x.shape) for x in leaves]
    return {
        "model": name + label,
        "parameters": sum(sizes),
        "bytes": sum(n * x.dtype.itemsize for n, x in zip(sizes, leaves, strict=True)),
        "gflops": round(cost.flops(model, inputs) / 1e9, 6),
        "size": args.size,
    }
