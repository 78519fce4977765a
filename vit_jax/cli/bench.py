"""``vit_jax bench``"""

from __future__ import annotations

import argparse
from typing import Annotated, Any

import vit_jax as vj
from vit_jax.cli import options

HELP = "measure speed, as ratios within one run"
SIZES = {
    "model": ("vit_b16", "its name"),
    "batch": (8, "images a step", 2**16),
    "size": (224, "side of the image", 4096),
}
MODEL = SIZES | {"rounds": (10, "pairs of measurements", 10_000)}
AGAINST = ("flax", "timm", "timm_compiled", "bare")
OPS = "monarch(nblocks), block_diagonal(nblocks), block_sparse(density, block), sparse24, int8(dynamic) or topk_mlp(k)"
KINDS: dict[str, tuple[str, dict[str, tuple[Any, ...]]]] = {
    "forward": ("images to logits, against the same model of others", MODEL),
    "train": ("forward, backward and AdamW, against the same model of others", MODEL),
    "compile": ("tracing, lowering and compiling a train step, unrolled and as a loop, each in a new process", {
        **SIZES,
        "layers": ("12,24,48", "numbers of blocks, two table lines each"),
        "rounds": (1, "measurements of each", 1000),
    }),
    "memory": ("what a train step keeps and how long it takes, by what the backward pass computes again", {
        **SIZES, "rounds": (5, "measurements of each; 0 compiles alone", 10_000, 0),
    }),
    "loss": ("a contrastive loss and its gradient, chunked against dense: time and memory", {
        "loss": ("softmax", "softmax, sigmoid or cloob"),
        "batch": (16384, "pairs", 2**20),
        "dim": (512, "width of the embeddings", 2**16),
        "chunk": (256, "rows of a chunk", 2**20),
        "rounds": (5, "pairs of measurements", 10_000),
    }),
    "kernels": ("products with structured matrices against dense ones, values checked first", {
        "op": ("monarch(4)", f"the operation: {OPS}"),
        "inputs": (768, "width of the input", 2**14),
        "outputs": (3072, "width of the output", 2**14),
        "rows": ("197,1576", "numbers of rows, one table line each"),
        "rounds": (10, "pairs of measurements", 10_000),
    }),
    "tpu": ("what a TPU's compiler expects of a model on one chip that need not be here (extra tpu-compile)", {
        "model": ("vit_b16", "its name"),
        "batch": (64, "images a step", 2**16),
        "size": (224, "side of the image", 4096),
    }),
    "input": ("batches from a data source without any model, against bare decoding: speed, and where time goes", {
        "data": ("fake:2000x224x10", "source"),
        "batch": (64, "images a batch", 2**16),
        "canvas": (224, "side of the canvas", 4096),
        "rounds": (10, "pairs of measurements, of four batches each", 10_000),
        "workers": (0, "threads, 0 for one per core", 1024, 0),
    }),
}  # fmt: skip
"""What is measured -> what that is, and its options: default, meaning, the most and least that a number may be."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, (text, values) in KINDS.items():
        sub = kinds.add_parser(kind, help=text)
        for name, (default, meaning, *ends) in values.items():
            options.value(sub, name, default, meaning, *ends)
        options.json(sub, "result")
    forward, train, compiling, memory, loss, kernels, tpu, _ = kinds.choices.values()
    for sub in (forward, train, compiling, memory, kernels):
        options.value(sub, "dtype", "bfloat16", "of the computation", choices=("bfloat16", "float32"))
    for sub in (forward, train):
        which = sub.add_mutually_exclusive_group()
        text = "whose: of plain flax layers in its faster type (default), timm's, timm's under torch.compile; or bare, "
        text += "without the fields that --model 'vit_s16(reduce=merge(13))' names"
        which.add_argument("--against", choices=AGAINST, default="flax", help=text)
        text = "instead compare it with itself, its maps being, for instance, monarch(4)"
        which.add_argument("--linear", type=options.filled, metavar="SPEC", help=text)
        text = "instead profile single steps on the CPU: time by kind of operation"
        which.add_argument("--breakdown", action="store_true", help=text)
    memory.add_argument("--scan", action="store_true", help="run the blocks as one loop")
    text = "as which numbers a step keeps what it keeps, a row for each"
    memory.add_argument("--saved", choices=("float", "int8"), nargs="+", default=["float"], help=text)
    loss.add_argument("--alone", action="store_true", help="leave the dense form out, for batches that it cannot hold")
    options.value(tpu, "chip", "v5e", "which", choices=("v5e", "v5p", "v6e"))
    tpu.add_argument("--train", action="store_true", help="loss and gradient instead of the forward pass")
    tpu.add_argument("--linear", type=options.filled, metavar="SPEC", help="its maps being, for instance, monarch(4)")
    text = "the same model of plain flax layers, with dense maps, or without the fields that --model names"
    tpu.add_argument("--against", choices=("plain", "dense", "bare"), default="", help=text)
    tpu.add_argument("--plot", type=options.path, metavar="FILE", help="draw cycles by layer and kind")
    kernels.add_argument("--backward", action="store_true", help="time value and gradients, not the value alone")
    kernels.add_argument("--plot", type=options.path, metavar="FILE", help="draw how the ratios change with the rows")


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    from vit_jax.cli import output

    if args.kind == "tpu":
        return _tpu(args)
    measure = {"input": _input, "loss": _loss, "kernels": _kernels, "compile": _compile, "memory": _memory}
    result: Any = measure.get(args.kind, _models)(args)
    if args.json != "-" and isinstance(result, list):
        print(table(result) if args.kind == "kernels" else columns(result))
    elif args.json != "-":
        for key, value in result.items():
            print(f"{key:34s} {_shown(value)}")
    output.write(args.json, result)
    return 0


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def columns(rows: list[dict[str, Any]]) -> str:
    """Every key a column, texts to the left and numbers to the right."""
    texts = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    sides = ["<" if isinstance(value, str) else ">" for value in rows[0].values()]
    cells = ([f"{t:{side}{w}s}" for t, side, w in zip(line, sides, widths, strict=True)] for line in texts)
    return "\n".join("  ".join(line).rstrip() for line in cells)


def _input(args: argparse.Namespace) -> dict[str, Any]:
    from vit_jax.bench.input import measure

    return measure(args.data, batch=args.batch, canvas=args.canvas, rounds=args.rounds, workers=args.workers)


def _loss(args: argparse.Namespace) -> dict[str, Any]:
    from vit_jax.bench.loss import compare

    return compare(args.loss, args.batch, args.dim, chunk=args.chunk, rounds=args.rounds, alone=args.alone)


def _compile(args: argparse.Namespace) -> list[dict[str, Any]]:
    from vit_jax.bench.compile import compare

    layers = _numbers("layers", args.layers, 1024)
    return compare(args.model, args.dtype, args.batch, args.size, layers=layers, rounds=args.rounds)


def _memory(args: argparse.Namespace) -> list[dict[str, Any]]:
    from vit_jax.bench.memory import compare

    return compare(args.model, args.dtype, args.batch, args.size, scan=args.scan, rounds=args.rounds, saved=args.saved)


def _models(args: argparse.Namespace) -> dict[str, Any] | list[dict[str, Any]]:
    from vit_jax import config
    from vit_jax.bench import breakdown
    from vit_jax.bench.models import compare
    from vit_jax.layers.linear.specs import Spec

    linear = (args.linear, config.parse(Spec, args.linear, "--linear")) if args.linear else None
    sizes = {"batch": args.batch, "size": args.size, "rounds": args.rounds}
    if args.breakdown:
        return breakdown.profile(args.kind, args.model, args.dtype, **sizes)
    return compare(args.kind, args.model, args.dtype, **sizes, against=args.against, linear=linear)


def _tpu(args: argparse.Namespace) -> int:
    import jax

    from vit_jax import config, models
    from vit_jax.bench import tpu
    from vit_jax.cli import output
    from vit_jax.layers.linear.specs import Spec
    from vit_jax.plan.account import KINDS as PARTS
    from vit_jax.report import plots

    jax.config.update("jax_platforms", "cpu")  # the devices of this machine are not asked
    if args.against == "dense" and not args.linear:
        raise vj.UsageError("--against dense compares with --linear, which is not given; --against plain does not.")
    linear = (args.linear, config.parse(Spec, args.linear, "--linear")) if args.linear else None
    work: Any = "train" if args.train else "forward"
    sizes = {"batch": args.batch, "size": args.size}
    model = models.create(args.model)
    found = tpu.compare(work, args.model, model, args.chip, **sizes, linear=linear, against=args.against)
    what = "loss and gradient" if args.train else "forward"
    title = f"Estimate of the TPU's compiler, no measurement: {what}, {args.batch} images of {args.size} px, bfloat16, "
    title += f"one {args.chip} chip"
    result: dict[str, Any] = {"estimate": title, "models": [one.summary() for one in found]}
    if len(found) > 1:
        result["times the cycles"] = found[1].cycles / found[0].cycles
    if args.json != "-":
        print(title, *(line for one in found for line in ("", *one.lines())), "", *found[0].notes, sep="\n")
        if len(found) > 1:
            print(f"{found[1].name} takes {result['times the cycles']:.2f} times the cycles of {found[0].name}.")
    if args.plot:
        plots.stacked({one.name: tpu.bars(one) for one in found}, PARTS, title, "million cycles", args.plot)
    output.write(args.json, result)
    return 0


def _kernels(args: argparse.Namespace) -> list[dict[str, Any]]:
    from vit_jax import config
    from vit_jax.bench.kernels import CASES, compare
    from vit_jax.report import plots

    make = config.parse(Annotated[Any, config.Choice(CASES)], args.op, "--op")
    cases = (make(n, args.inputs, args.outputs, args.dtype) for n in _numbers("rows", args.rows, 2**20))
    rows = [row for case in cases for row in compare(case, rounds=args.rounds, backward=args.backward)]
    if args.plot:
        plots.crossover(rows, f"{args.op}, {args.inputs} to {args.outputs}, {args.dtype}", args.plot)
    return rows


def _numbers(name: str, text: str, most: int) -> list[int]:
    try:
        return [options.number(1, most)(n) for n in text.split(",")]
    except argparse.ArgumentTypeError as e:
        raise vj.UsageError(f"--{name} {text!r:.80}: {e}, several as 12,48.") from None


def table(rows: list[dict[str, Any]]) -> str:
    """One line a row: time, its floor in FLOPs and bytes, the dense product's time, how many times faster."""
    lines = [
        f"{'rows':>7s} {'runs as':12s} {'ms':>9s} {'GFLOP/s':>9s} {'GB/s':>7s} {'dense ms':>9s} "
        "times faster (10th to 90th percentile)"
    ]
    for r in rows:
        low, middle, high = (r[f"times dense ({k})"] for k in ("10th percentile", "median", "90th percentile"))
        lines.append(
            f"{r['rows']:>7d} {r['implementation']:12s} {1e3 * r['seconds']:>9.3f} {r['GFLOP/s']:>9.0f} "
            f"{r['GB/s']:>7.1f} {1e3 * r['dense seconds']:>9.3f} {middle:.2f} ({low:.2f} to {high:.2f})"
        )
    return "\n".join(lines)
