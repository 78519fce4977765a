"""``vit_jax models``"""

from __future__ import annotations

import argparse
from typing import Any

import vit_jax as vj
from vit_jax import architectures
from vit_jax.cli import options

HELP = "list the models, or describe one"
VALUES = "{parameters:>15,d} {megabytes:>11,.1f} {gflops:>13.2f} {size:>5d}"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    text = "a model to describe, such as vit_b16 or 'vit_s16(reduce=merge(13))'; or a pattern of names to list, such "
    text += "as 'vit_*'; all by default"
    parser.add_argument("name", type=options.filled, nargs="?", default="*", help=text)
    text = "also the parameters, bytes and FLOPs of what is listed: about two seconds a model"
    parser.add_argument("--costs", action="store_true", help=text)
    options.value(parser, "size", 224, "side of the image", 4096, metavar="PIXELS")
    options.value(parser, "num_classes", 1000, "outputs of the head", least=0, metavar="C")
    text = "costs also with the maps of attention and MLPs as, for instance, monarch(4)"
    parser.add_argument("--linear", type=options.filled, metavar="SPEC", help=text)
    text = "costs also the microseconds of an image at this chip's bfloat16 peak, which no program beats; 'bench tpu' "
    text += "says what its compiler expects"
    parser.add_argument("--chip", choices=("v5e", "v5p", "v6e"), help=text)
    text = "type in which parameters that are no integers are counted"
    options.value(parser, "dtype", "float32", text, choices=("float32", "bfloat16"))
    options.json(parser, "table")


def at_once(args: argparse.Namespace) -> bool:
    """Whether names are all that is asked for, which takes no JAX."""
    return _pattern(args.name) and not (args.costs or args.linear or args.chip or args.json)


def run(args: argparse.Namespace) -> int:
    """Prints names, and of one model or with ``--costs`` parameters, their bytes in one type, and FLOPs."""
    found = architectures.names(args.name) if _pattern(args.name) else [args.name]
    if not found:
        raise vj.UsageError(f"no model is called like {args.name!r}; vit_jax models lists all of them.")
    if not _pattern(args.name) or args.costs or args.linear or args.chip:
        return _costs(found, args)
    rows = [{"model": name, "aliases": architectures.aliases(name)} for name in found]
    if args.json != "-":
        for row in rows:
            print(f"{row['model']:20s} {', '.join(row['aliases'])}".rstrip())
    _write(args.json, rows)
    return 0


def _pattern(name: str) -> bool:
    return any(c in name for c in "*?[")


def _write(target: str | None, rows: list[dict[str, Any]]) -> None:
    if target is not None:
        from vit_jax.cli import output

        output.write(target, rows)


def _costs(names: list[str], args: argparse.Namespace) -> int:
    """Prints a line for each model."""
    import dataclasses

    from vit_jax import config
    from vit_jax.layers.linear.specs import FIELDS, Spec

    changes: list[tuple[str, dict[str, Any]]] = [("", {})]
    if args.linear:
        spec = config.parse(Spec, args.linear, "--linear")
        if hasattr(spec, "implementation"):  # count the structured product, whoever would run it here
            spec = dataclasses.replace(spec, implementation="xla")
        changes.append((f" {args.linear}", dict.fromkeys(FIELDS, spec)))
    rows, width = [], max(16, len(args.linear or "") + 1 + max(map(len, names)))
    for name in names:
        for label, fields in changes:
            try:
                rows.append(_row(name, label, fields, args))
            except vj.UserError as e:
                if len(names) == 1:
                    raise
                rows.append({"model": name + label, "error": str(e)})
            if args.json != "-":
                if len(rows) == 1:
                    counted = f"MB {args.dtype}"
                    head = f"{'model':{width}s} {'parameters':>15s} {counted:>11s} {'GFLOPs/image':>13s} {'size':>5s}"
                    head += f"{f'us at peak, {args.chip}':>18s}" * bool(args.chip)
                    print(head + f"{'GFLOPs in masks':>17s}" * ("gflops_in_masks" in rows[-1]))
                r = rows[-1]
                values = r.get("error") or VALUES.format(**r, megabytes=r["bytes"] / 1e6)
                values += f"{r['us_at_peak']:>18.1f}" if "us_at_peak" in r else ""
                values += f"{r['gflops_in_masks']:>17.2f}" if "gflops_in_masks" in r else ""
                print(f"{r['model']:{width}s} {values}", flush=True)
    _write(args.json, rows)
    return 0


def _row(name: str, label: str, fields: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One line of the table: the model ``name`` with ``fields`` set wherever it has them."""
    import math

    import jax

    from vit_jax import models
    from vit_jax.models import cost
    from vit_jax.plan import topology
    from vit_jax.train.state import abstract_params

    head = {"num_classes": args.num_classes} if isinstance(models.create(name), models.ImageModel) else {}
    model = models.replace_in_towers(models.create(name, **head), **fields)
    inputs = model.inputs(args.size)
    leaves = jax.tree.leaves(abstract_params(model, inputs))
    sizes = [math.prod(x.shape) for x in leaves]
    flops, spared = cost.flops(model, inputs), cost.spared(model, inputs)
    return {
        "model": name + label,
        "parameters": sum(sizes),
        "bytes": sum(n * _itemsize(x.dtype, args.dtype) for n, x in zip(sizes, leaves, strict=True)),
        "gflops": round(flops / 1e9, 6),
        "size": args.size,
        **({"us_at_peak": round(1e6 * flops / topology.CHIPS[args.chip].peak, 6)} if args.chip else {}),
        **({"gflops_in_masks": round((flops - spared) / 1e9, 6)} if spared else {}),
    }


def _itemsize(stored: Any, counted: str) -> int:
    """Bytes of an entry, floating-point numbers being of the type ``counted``."""
    import jax.numpy as jnp

    return jnp.dtype(counted if jnp.issubdtype(stored, jnp.floating) else stored).itemsize
