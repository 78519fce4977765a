"""``vit_jax bench``"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

HELP = "measure speed, as ratios within one run"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    texts = {"forward": "images to logits", "train": "forward, backward and AdamW"}
    for kind, text in texts.items():
        sub = kinds.add_parser(kind, help=f"{text}, against the same ViT written with plain flax layers")
        sub.add_argument("--model", default="vit_b16", help="a ViT (default vit_b16)")
        sub.add_argument("--batch", type=int, default=8, help="images a step (default 8)")
        sub.add_argument("--size", type=int, default=224, help="side of the image (default 224)")
        sub.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of the computation")
        sub.add_argument(
            "--linear", metavar="SPEC", help="instead compare it with itself, its maps being, for instance, monarch(4)"
        )
        sub.add_argument("--rounds", type=int, default=10, help="pairs of measurements (default 10)")
        sub.add_argument("--json", metavar="FILE", help="write the result there, - for the terminal")
    sub = kinds.add_parser("loss", help="a contrastive loss and its gradient, chunked against dense: time and memory")
    sub.add_argument("--loss", default="softmax", help="softmax, sigmoid or cloob (default softmax)")
    sub.add_argument("--batch", type=int, default=16384, help="pairs (default 16384)")
    sub.add_argument("--dim", type=int, default=512, help="width of the embeddings (default 512)")
    sub.add_argument("--chunk", type=int, default=256, help="rows of a chunk (default 256)")
    sub.add_argument("--rounds", type=int, default=5, help="pairs of measurements (default 5)")
    sub.add_argument("--alone", action="store_true", help="leave the dense form out, for batches that it cannot hold")
    sub.add_argument("--json", metavar="FILE", help="write the result there, - for the terminal")
    sub = kinds.add_parser("kernels", help="products with structured matrices against dense ones, values checked first")
    sub.add_argument(
        "--op",
        default="monarch(4)",
        help="the operation: monarch(nblocks), block_diagonal(nblocks), block_sparse(density, block), sparse24 or "
        "topk_mlp(k) (default monarch(4))",
    )
    sub.add_argument("--inputs", type=int, default=768, help="width of the input (default 768)")
    sub.add_argument("--outputs", type=int, default=3072, help="width of the output (default 3072)")
    sub.add_argument("--rows", default="197,1576", help="numbers of rows, one table line each (default 197,1576)")
    sub.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of the computation")
    sub.add_argument("--backward", action="store_true", help="time value and gradients, not the value alone")
    sub.add_argument("--rounds", type=int, default=10, help="pairs of measurements (default 10)")
    sub.add_argument("--plot", metavar="FILE", help="draw how the ratios change with the rows")
    sub.add_argument("--json", metavar="FILE", help="write the result there, - for the terminal")
    sub = kinds.add_parser("input", help="batches from a data source, without any model")
    sub.add_argument("--data", default="fake:2000x224x10", help="source (default fake:2000x224x10)")
    sub.add_argument("--batch", type=int, default=64, help="images a batch (default 64)")
    sub.add_argument("--canvas", type=int, default=224, help="side of the canvas (default 224)")
    sub.add_argument("--rounds", type=int, default=30, help="batches to time (default 30)")
    sub.add_argument("--json", metavar="FILE", help="write the result there, - for the terminal")


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    from vit_jax.cli import bench_kernels, output

    result: Any = {"input": _input, "loss": _loss, "kernels": bench_kernels.run}.get(args.kind, _models)(args)
    if args.json != "-" and isinstance(result, list):
        print(bench_kernels.table(result))
    elif args.json != "-":
        for key, value in result.items():
            print(f"{key:34s} {value:.4g}" if isinstance(value, float) else f"{key:34s} {value}")
    output.write(args.json, result)
    return 0


def _input(args: argparse.Namespace) -> dict[str, Any]:
    import time

    from vit_jax.data.loader import train_batches
    from vit_jax.data.sources import open_source

    source = open_source(args.data, holdout=0)
    batches = train_batches(source, batch_size=args.batch, seed=0, canvas=args.canvas)
    next(batches)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(args.rounds):
        next(batches)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    batches.close()
    images = args.rounds * args.batch
    return {"data": args.data, "images/s": images / wall, "CPU seconds per 1000 images": 1000 * cpu / images}


def _loss(args: argparse.Namespace) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    from vit_jax import benchmark, losses
    from vit_jax.config import lookup

    loss = lookup(losses.CONTRASTIVE, args.loss, "loss")()
    image, text = jax.random.normal(jax.random.key(0), (2, args.batch, args.dim))
    image, text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    inputs = image, text, jnp.float32(1 / 0.07), jnp.float32(-10.0)
    mask = jnp.ones(args.batch, bool)
    forms = {"chunked": losses.Chunked(args.chunk)} | ({} if args.alone else {"dense": losses.Dense()})
    compiled = {}
    for name, form in forms.items():
        mean = lambda *x, form=form: jnp.mean(loss(*x, mask, form))  # noqa: E731
        compiled[name] = jax.jit(jax.value_and_grad(mean, (0, 1, 2, 3))).lower(*inputs).compile()
    candidates = {name: lambda run=run: run(*inputs) for name, run in compiled.items()}
    times = benchmark.alternate(candidates, args.rounds)
    result: dict[str, Any] = {"loss": f"{args.loss}, {args.batch} pairs of width {args.dim}, chunks of {args.chunk}"}
    for name, run in compiled.items():
        result[f"{name} seconds"] = times[name].median
        memory: Any = run.memory_analysis()
        result[f"{name} temporary MB"] = memory.temp_size_in_bytes / 1e6
    if not args.alone:
        slower, low, high = times["dense"].over(times["chunked"])
        result["chunked takes times as long (median)"] = slower
        result["chunked takes times as long (10th percentile)"] = low
        result["chunked takes times as long (90th percentile)"] = high
        result["times less memory"] = result["dense temporary MB"] / result["chunked temporary MB"]
    return result


def _models(args: argparse.Namespace) -> dict[str, Any]:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from vit_jax import benchmark, config, models
    from vit_jax.layers.linear.specs import FIELDS, Spec
    from vit_jax.models.plain import PlainViT
    from vit_jax.train import flops
    from vit_jax.types import UserError

    model = models.create(args.model, dtype=args.dtype)
    if not isinstance(model, models.ViT):
        raise UserError(f"bench {args.kind} compares ViTs, and {args.model!r} is none; take vit_b16 for instance.")
    compared: dict[str, Any]
    if args.linear:
        spec = config.parse(Spec, args.linear, "--linear")
        compared = {args.linear: model.clone(**dict.fromkeys(FIELDS, spec)), "dense": model}
    else:
        fields = ("num_classes", "patch", "width", "depth", "heads", "mlp_dim", "dtype")
        compared = {"vit_jax": model, "plain flax": PlainViT(**{name: getattr(model, name) for name in fields})}
    ours, theirs = compared
    images = jax.random.uniform(jax.random.key(0), (args.batch, args.size, args.size, 3))
    labels = jnp.arange(args.batch) % model.num_classes
    make: Callable[..., Callable[[], Any]] = _forward if args.kind == "forward" else _train
    candidates, sizes = {}, {}
    for name, one in compared.items():
        params = jax.jit(lambda m=one: nn.unbox(m.init(jax.random.key(1), images)["params"]))()
        sizes[name] = sum(x.size for x in jax.tree.leaves(params))
        candidates[name] = make(one, params, images, labels)
    times = benchmark.alternate(candidates, args.rounds)
    ratio, low, high = times[ours].over(times[theirs])
    result: dict[str, Any] = {
        "model": f"{args.model} {args.dtype}, {args.batch} images of {args.size} px",
        f"{ours} images/s": args.batch / times[ours].median,
        f"{theirs} images/s": args.batch / times[theirs].median,
        "times faster (median)": ratio,
        "times faster (10th percentile)": low,
        "times faster (90th percentile)": high,
    }
    if args.linear:
        return {**result, "share of the dense model's parameters": sizes[ours] / sizes[theirs]}
    total = flops.forward(model, model.inputs(args.size)) * args.batch * (1 if args.kind == "forward" else 3)
    peak = flops.peak(jax.devices()[0], args.dtype)
    return {**result, "share of one large product's speed": total / times[ours].median / peak}


def _forward(model: Any, params: Any, images: Any, labels: Any) -> Callable[[], Any]:
    import jax

    run = jax.jit(lambda p, x: model.apply({"params": p}, x))
    return lambda: run(params, images)  # float32 parameters for both, as in training and evaluation


def _train(model: Any, params: Any, images: Any, labels: Any) -> Callable[[], Any]:
    import jax
    import optax

    from vit_jax.losses import softmax_cross_entropy

    tx = optax.adamw(1e-4, weight_decay=0.1)

    def loss(p: Any) -> jax.Array:
        return softmax_cross_entropy(model.apply({"params": p}, images), labels).mean()

    def step(state: Any) -> Any:
        p, opt = state
        value, grads = jax.value_and_grad(loss)(p)
        updates, opt = tx.update(grads, opt, p)
        return (optax.apply_updates(p, updates), opt), value

    compiled = jax.jit(step, donate_argnums=0)
    state = (params, jax.jit(tx.init)(params))

    def run() -> Any:
        nonlocal state
        state, value = compiled(state)
        return value, jax.tree.leaves(state)[0]

    return run
