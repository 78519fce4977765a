"""What a GPU makes of this code: kernels against float64, then against dense products, models against timm's.

    python experiments/benchmarks/gpu.py --minutes 9 --json gpu.json

Every job is a process (or, where models race, one for each side) that prints one JSON line for each result, and the
file is written anew after each: a run that is cut short, a kernel that takes its process with it and a job without the
time for it leave the others' results. timm's models are compiled by torch; without torch they are left out, and it is
said. ``--tiny`` does everything at sizes for a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from gpu_contracts import Cases, Record, contracts, kernel_here

RACES = {  # name -> kind, our model, timm's, images a step, calls a round
    "vit_b16 train": ("train", "vit_b16", "vit_base_patch16_224", 128, 10),
    "vit_b16 forward": ("forward", "vit_b16", "vit_base_patch16_224", 256, 10),
    "vit_l16 train": ("train", "vit_l16", "vit_large_patch16_224", 64, 5),
    "vit_l16 forward": ("forward", "vit_l16", "vit_large_patch16_224", 128, 5),
}
SIDES = ("vit_jax", "vit_jax, XLA attention", "plain flax", "timm")


# --- jobs of one process: each yields (name of the case, function that measures it) ---


def precision(tiny: bool) -> Cases:
    """Logits of a float32 ViT on the accelerator against those of the same program on the CPU."""
    import jax
    import numpy as np

    from vit_jax import models

    model = models.create("vit_ti16", num_classes=1000, depth=2 if tiny else 12)
    images = np.asarray(jax.random.normal(jax.random.key(0), (4, 224, 224, 3)))
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        params = jax.jit(model.init)(jax.random.key(1), images)
        params = jax.tree.map(lambda x: x + 0.02 * np.random.default_rng(0).standard_normal(x.shape), params)
        with jax.default_matmul_precision("highest"):
            want = np.asarray(jax.jit(model.apply)(params, images))
    for setting in ("default", "highest"):

        def case(setting: str = setting) -> Record:
            with jax.default_matmul_precision(setting):
                got = np.asarray(jax.jit(model.apply)(jax.device_put(params, jax.devices()[0]), images))
            return {
                "largest difference of the logits": float(np.abs(got - want).max()),
                "of": float(np.abs(want).max()),
            }

        yield f"float32 logits, matmul precision {setting}", case


def kernels(tiny: bool) -> Cases:
    """Structured products against dense ones, bfloat16, distinct inputs and weights in every call."""
    big = [
        ("monarch", {}, 12608, 768, 3072), ("sparse24", {}, 8, 4096, 4096), ("sparse24", {}, 64, 4096, 11008),
        ("monarch", {}, 12608, 3072, 768), ("sparse24", {}, 8, 4096, 11008), ("monarch", {}, 12608, 1024, 4096),
        ("block_diagonal", {}, 12608, 768, 3072), ("block_sparse", {"density": 0.25}, 12608, 768, 3072),
        ("topk_mlp", {"k": 256}, 64, 768, 3072),
        ("block_sparse", {"density": 0.25, "block": 128}, 12608, 768, 3072),
        ("block_sparse", {"density": 0.25, "block": 64}, 12608, 768, 3072),
        ("block_sparse", {"density": 0.25, "block": 128}, 1576, 768, 3072),
    ]  # fmt: skip
    sizes = [("monarch", {}, 64, 64, 128), ("sparse24", {}, 8, 64, 64)] if tiny else big
    for op, options, rows, inputs, outputs in sizes:
        for backward in (False, True):
            if backward and op in ("sparse24", "topk_mlp"):
                continue
            given = ", ".join(f"{k}={v}" for k, v in options.items())
            name = f"{op}({given})" if given else op
            name += f" {inputs} x {outputs}, {rows} rows{', with gradients' if backward else ''}"
            yield name, functools.partial(_product, op, options, rows, inputs, outputs, backward)


def _product(op: str, options: Record, rows: int, inputs: int, outputs: int, backward: bool) -> Record:
    import jax

    from vit_jax.bench.kernels import CASES
    from vit_jax.bench.timing import alternate
    from vit_jax.kernels.products import matmul

    copies = 4
    case = CASES[op](**options)(rows, inputs, outputs, "bfloat16")
    xs = [jax.numpy.roll(case.x, i, 0) for i in range(copies)]
    parameters = [
        tuple(p * (1 + i) if jax.numpy.issubdtype(p.dtype, jax.numpy.floating) else p for p in case.parameters)
        for i in range(copies)
    ]
    weights = [case.dense(*p) for p in parameters]
    g = jax.random.normal(jax.random.key(1), (rows, outputs), "bfloat16")

    def repeated(product: Callable[..., Any], every: list[tuple[Any, ...]]) -> Callable[[], Any]:
        def one(x: Any, *p: Any) -> Any:
            if not backward:
                return product(x, *p)
            y, pull = jax.vjp(product, x, *p)
            return y, pull(g)

        compiled = jax.jit(lambda xs, every: [one(x, *p) for x, p in zip(xs, every, strict=True)])
        return lambda: compiled(xs, every)

    candidates = {"a dense weight": repeated(matmul, [(w,) for w in weights])}
    failed = {}
    for name in case.here():
        run = repeated(functools.partial(case.run, name), parameters)
        try:
            jax.block_until_ready(run())
        except Exception as e:  # what a kernel does on a device that nobody tried is a result
            failed[name] = f"{type(e).__name__}: {str(e)[:400]}"
        else:
            candidates[name] = run
    times = alternate(candidates, 15, 4)
    times = {name: t.__class__(t.seconds / copies) for name, t in times.items()}
    flops, least = (case.flops * (3 if backward else 1), case.bytes)
    return {
        "microseconds": {name: t.median * 1e6 for name, t in times.items()},
        "times faster than a dense weight": {
            name: t.over(times["a dense weight"]) for name, t in times.items() if name in case.implementations
        },
        "TFLOP/s of the structured product": {name: flops / t.median / 1e12 for name, t in times.items()},
        **({} if backward else {"GB/s at the least": {n: least / t.median / 1e9 for n, t in times.items()}}),
        **({"failed": failed} if failed else {}),
    }


def attentions(tiny: bool) -> Cases:
    """XLA's two products and softmax against cuDNN's fused attention, bfloat16."""
    import jax

    from vit_jax.bench.timing import alternate
    from vit_jax.layers.attention import attention

    def fused(q: Any, k: Any, v: Any) -> Any:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn" if kernel_here("gpu") == "gpu" else "xla")

    for shape in (
        [(2, 5, 2, 8)] if tiny else [(128, 197, 12, 64), (64, 577, 16, 64), (128, 50, 12, 64), (8, 1024, 16, 64)]
    ):
        for backward in (False, True):

            def case(shape: tuple[int, ...] = shape, backward: bool = backward) -> Record:
                q, k, v, g = jax.random.normal(jax.random.key(0), (4, *shape), "bfloat16")

                def program(f: Callable[..., Any]) -> Callable[[], Any]:
                    def one(q: Any, k: Any, v: Any, g: Any) -> Any:
                        if not backward:
                            return f(q, k, v)
                        y, pull = jax.vjp(f, q, k, v)
                        return y, pull(g)

                    compiled = jax.jit(one)
                    return lambda: compiled(q, k, v, g)

                both = {
                    n: program(functools.partial(attention, implementation=kernel_here(n))) for n in ("xla", "cudnn")
                }
                a, b = (jax.tree.leaves(f()) for f in both.values())
                apart = max(
                    float(abs(x.astype("float32") - y.astype("float32")).max()) for x, y in zip(a, b, strict=True)
                )
                times = alternate(both, 15, 10)
                return {
                    "microseconds": {n: t.median * 1e6 for n, t in times.items()},
                    "cudnn times faster": times["cudnn"].over(times["xla"]),
                    "largest difference": apart,
                }

            yield f"attention {shape}{', with gradients' if backward else ''}", case


def contrastive(tiny: bool) -> Cases:
    """Forms of CLIP's loss with its gradients: seconds and temporaries."""
    from vit_jax.bench import loss

    for batch in (64,) if tiny else (8192, 32768):
        for name in ("softmax", "sigmoid"):
            chunk = batch // 8
            yield f"{name}, {batch} pairs", functools.partial(loss.compare, name, batch, 512, chunk=chunk, rounds=5)


def clip(tiny: bool) -> Cases:
    """Train steps of CLIP with each form of the loss, and the peak of the device's memory."""
    import jax
    from image_text_train import batch, ours

    from vit_jax import models

    name, pairs = ("clip_vit_b32", 2) if tiny else ("clip_vit_b16", 256)

    def case() -> Record:
        size = 224
        run = ours(name, *batch(pairs, size, models.create(name).text_tower.length))
        jax.block_until_ready(run())
        start, calls = time.perf_counter(), 1 if tiny else 10
        for _ in range(calls):
            out = run()
        jax.block_until_ready(out)
        return {"pairs/s": pairs * calls / (time.perf_counter() - start), "peak GB": _peak()}

    yield f"{name}, {pairs} pairs, dense softmax loss, train step", case


JOBS: dict[str, tuple[Callable[[bool], Cases], float]] = {
    "contracts": (contracts, 200), "precision": (precision, 60), "kernels": (kernels, 150),
    "attention": (attentions, 60), "contrastive": (contrastive, 60), "clip": (clip, 90),
}  # fmt: skip
"""Cases and most seconds."""
ORDER = (
    "contracts", "precision", "attention", "vit_b16 train", "kernels", "vit_b16 forward", "vit_l16 train",
    "contrastive", "clip", "vit_l16 forward",
)  # fmt: skip


def _peak() -> float | None:
    import jax

    found = jax.devices()[0].memory_stats()
    return found["peak_bytes_in_use"] / 1e9 if found else None


# --- one side of a race ---


def side(name: str, race: str, tiny: bool) -> None:
    """Serves one model of a race."""
    from vit_jax.bench.sides import serve

    kind, ours, theirs, batch, _ = RACES[race]
    if name == "timm":
        return serve(functools.partial(_timm, kind, "vit_tiny_patch16_224" if tiny else theirs, 2 if tiny else batch),
                     _torch_facts)  # fmt: skip

    def make() -> Any:
        import jax

        from vit_jax import models
        from vit_jax.bench.plain import twin
        from vit_jax.bench.steps import candidate
        from vit_jax.layers import attention

        if "XLA" in name:
            del attention.IMPLEMENTATIONS["cudnn"]
        model = models.create("vit_ti16" if tiny else ours, dtype="bfloat16", num_classes=1000)
        model = twin(model) if name == "plain flax" else model
        return candidate(kind, model, 2 if tiny else batch, 224)[0], jax.block_until_ready

    return serve(make, lambda: {"peak GB": _peak()})


def _timm(kind: str, name: str, batch: int) -> Any:
    import timm
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    model = timm.create_model(name, num_classes=1000).to(device)
    images = torch.rand(batch, 3, 224, 224, device=device)
    labels = torch.arange(batch, device=device) % 1000
    wait = (lambda _: torch.cuda.synchronize()) if device == "cuda" else (lambda _: None)
    if kind == "forward":
        model = torch.compile(model.eval().to(torch.bfloat16))
        images = images.to(torch.bfloat16)

        def forward() -> Any:
            with torch.inference_mode():
                return model(images)

        return forward, wait
    tx = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.1, fused=True)
    model = torch.compile(model.train())

    def train() -> Any:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        tx.step()
        tx.zero_grad(set_to_none=True)
        return loss

    return train, wait


def _torch_facts() -> Any:
    import torch

    return {"peak GB": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None}


# --- the parent ---


def race(name: str, tiny: bool, seconds: float) -> Record:
    """Times the sides that are ready in turn."""
    import jax

    from vit_jax import models
    from vit_jax.bench.sides import Side, alternate
    from vit_jax.models import cost
    from vit_jax.types import UserError

    kind, ours, _, batch, calls = RACES[name]
    command = [sys.executable, __file__, "--race", name, *(["--tiny"] if tiny else []), "--side"]
    sides = {s: Side([*command, s], seconds) for s in SIDES}
    record: Record = {"images a step": batch, "seconds until ready": {}, "failed": {}}
    try:
        for s in SIDES:
            try:
                record["seconds until ready"][s] = sides[s].answer()
            except UserError as e:
                record["failed"][s] = str(e)
                sides.pop(s).close()
        times = alternate(sides, 2 if tiny else 8, 1 if tiny else calls)
        record["facts"] = {s: one.ask("facts") for s, one in sides.items()}
    finally:
        for one in sides.values():
            one.close()
    with jax.default_device(jax.devices("cpu")[0]):
        model = models.create("vit_ti16" if tiny else ours, dtype="bfloat16", num_classes=1000)
        total = cost.flops(model, model.inputs(224)) * (2 if tiny else batch) * (3 if kind == "train" else 1)
    return record | {
        "milliseconds": {s: t.median * 1e3 for s, t in times.items()},
        "images/s": {s: (2 if tiny else batch) / t.median for s, t in times.items()},
        "vit_jax times faster (median, 10th, 90th percentile)": {
            s: times["vit_jax"].over(t) for s, t in times.items() if "vit_jax" in times and s != "vit_jax"
        },
        "model TFLOP/s": {s: total / t.median / 1e12 for s, t in times.items()},
        "share of 989 TFLOP/s": {s: total / t.median / cost.PEAK["NVIDIA H100"] for s, t in times.items()},
    }


def work(job: str, tiny: bool, first: int) -> None:
    """Measures the cases of a job from the ``first`` on, a line before and after each."""
    import jax

    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    print(json.dumps({"device": jax.devices()[0].device_kind, "jax": jax.__version__}), flush=True)
    for number, (name, measure) in enumerate(JOBS[job][0](tiny)):
        if number < first:
            continue
        print(json.dumps({"start": name, "number": number}), flush=True)
        start = time.perf_counter()
        try:
            record = measure()
        except Exception as e:  # the next case is measured all the same
            record = {"passed": False, "failed": f"{type(e).__name__}: {str(e)[:2000]}"}
        record["seconds of the case"] = time.perf_counter() - start
        print(json.dumps({"case": name, **record}), flush=True)


def collect(job: str, tiny: bool, seconds: float, note: Callable[[Record], None]) -> None:
    """Runs a job in its process, and in a new one behind a case with which the process ended."""
    first, deadline = 0, time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        command = [sys.executable, __file__, "--job", job, "--first", str(first), *(["--tiny"] if tiny else [])]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        limit = threading.Timer(left, process.kill)
        limit.start()
        open_case: Record | None = None
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if "start" in record:
                    open_case = record
                elif "case" in record:
                    open_case = None
                    note(record)
                else:
                    note(record)
        code = process.wait()
        limit.cancel()
        if open_case is None:
            return
        why = f"the process ended with exit code {code}" if time.monotonic() < deadline else "the job's time was over"
        note({"case": open_case["start"], "passed": False, "failed": why})
        first = open_case["number"] + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="end by then (default 9)")
    parser.add_argument("--only", default=",".join(ORDER), help="jobs in order, separated by commas")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU")
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="where the results go")
    for hidden in ("--job", "--race", "--side"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share the device
    if args.job:
        return work(args.job, args.tiny, args.first)
    if args.side:
        return side(args.side, args.race, args.tiny)
    os.environ.setdefault("PYTHONPATH", str(pathlib.Path(__file__).parents[2]))
    sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
    results: dict[str, list[Record]] = {}
    deadline = time.monotonic() + 60 * args.minutes
    for job in args.only.split(","):
        left = deadline - time.monotonic()

        def note(record: Record, job: str = job) -> None:
            results.setdefault(job, []).append(record)
            print(job, json.dumps(record), flush=True)
            if args.json:
                args.json.write_text(json.dumps(results, indent=1))

        if left < (0 if args.tiny else 20):
            note({"failed": "there was no time left"})
        elif job in RACES:
            try:
                note(race(job, args.tiny, left))
            except Exception as e:  # the others are measured all the same
                note({"failed": f"{type(e).__name__}: {e}"})
        else:
            collect(job, args.tiny, min(left, JOBS[job][1] if not args.tiny else 600), note)


if __name__ == "__main__":
    main()
