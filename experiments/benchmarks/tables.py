"""The rows of the benchmarks: how each is measured, and which lines of README.md's tables its result makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

Found = dict[str, Any]


class Row(NamedTuple):
    """A name, what is measured, words for ``vit_jax`` or a script beside this one, and what it is compared with."""

    name: str
    what: str
    argv: str
    against: str = ""


class Table(NamedTuple):
    """Its columns, the lines of one result, and what is measured for it."""

    columns: str
    lines: Callable[[Row, Any], Iterator[list[str]]]
    rows: tuple[Row, ...]


def ratio(found: Found, what: str = "times ") -> list[float]:
    """Median, 10th and 90th percentile of the comparison whose columns begin with ``what``."""
    return [value for key, value in found.items() if key.startswith(what) and key.endswith(("(median)", "percentile)"))]


def spread(values: Sequence[float]) -> str:
    return "**{:.2f}x** ({:.2f} to {:.2f})".format(*values)


def speed(row: Row, found: Found) -> Iterator[list[str]]:
    work = [value for key, value in found.items() if key.endswith("core seconds/step")]
    share = found.get("share of one large product's speed")
    cores = f"{min(work[1:]) / work[0]:.2f}x" if work else ""
    share = f"{share:.0%}" if share else ""
    yield [row.what, row.against, spread(ratio(found)), cores, share, found.get("processor", "")]


def others(row: Row, found: Found) -> Iterator[list[str]]:
    for one in found.get("rows", [found]):
        how = f", {one['rows']:,} tokens, {one['implementation']}" if "rows" in one else ""
        how = f", {one['what']}" if "what" in one else how
        if one.get("implementation") != row.against:
            yield [row.what + how, row.against, spread(ratio(one))]


def loss(row: Row, found: Found) -> Iterator[list[str]]:
    yield [row.what, row.against, f"1/{found['times less memory']:.0f}", spread(ratio(found, "chunked takes times"))]


def compiling(row: Row, found: list[Found]) -> Iterator[list[str]]:
    for one in found:
        (times,) = (value for key, value in one.items() if key.startswith("times "))
        seconds = "{all s:.1f} ({all s (least):.1f} to {all s (most):.1f})".format(**one)
        yield [f"{row.what}, {one['layers']} layers", one["blocks"], one["cache"], seconds, f"**{times:.2f}x**"]


def memory(row: Row, found: list[Found]) -> Iterator[list[str]]:
    for one in found:
        shares = [f"{one[key]:.2f}x" for key in ("share of none's", "share of none's with state")]
        how = f"`{one['remat']}`" + (f", `saved={one['saved']}`" if one.get("saved", "float") != "float" else "")
        yield [row.what, how, *shares, spread(times) if (times := ratio(one)) else ""]


def loading(row: Row, found: Found) -> Iterator[list[str]]:
    spent = {key.split()[0]: value for key, value in found.items() if key.endswith("ms an image")}
    shares = ", ".join(f"{stage} {ms / sum(spent.values()):.0%}" for stage, ms in spent.items())
    yield [row.what, row.against, spread(ratio(found)), found["resized by"], shares]


def tpu(row: Row, found: Found) -> Iterator[list[str]]:
    own, times = found["models"][0], found.get("times the cycles")
    cycles = [f"{own[key] / 1e6:.1f}" for key in ("cycles", "floor")]
    more = f"**{times:.2f}x** {row.against}" if times else ""
    yield [row.what, *cycles, f"{own['mfu']:.0%}", str(own["copies"]), more]


def pieces(row: Row, found: Found) -> Iterator[list[str]]:
    """Of each kernel the shape at which its own rule is furthest above the best size."""
    table: dict[str, list[tuple[float, str, str]]] = {}
    for one in found["rows"]:
        known = {size: cycles for size, cycles in one["cycles"].items() if not isinstance(cycles, str)}
        best = min(known, key=lambda size: (known[size], size == "rule"))
        gap = known["rule"] / known[best] - 1
        table.setdefault(one["kernel"], []).append((gap, one["shape"], best))
    for kernel, gaps in table.items():
        gap, shape, best = max(gaps)
        yield [f"`{kernel}`", str(len(gaps)), f"**{gap:.1%}**", *((shape, best) if gap else ("", ""))]


def gpu(row: Row, found: Found) -> Iterator[list[str]]:
    """Of each case the newest record; the file has all."""
    runs = ((job, one) for run in found["runs"] for job, records in run.items() if isinstance(records, list)
            for one in records)  # fmt: skip
    for (job, case), one in {(job, one.get("case", "")): one for job, one in runs}.items():
        for side, values in one.get("vit_jax times faster (median, 10th, 90th percentile)", {}).items():
            share = f"{one['share of 989 TFLOP/s']['vit_jax']:.0%}"
            yield [f"{job}, {one['images a step']} images", side, spread(values), share]
        if "cudnn times faster" in one:
            yield [f"cuDNN's {case}", "XLA's", spread(one["cudnn times faster"]), ""]
        for how, values in one.get("times faster than a dense weight", {}).items():
            yield [f"{case}, {how}", "a dense weight", spread(values), ""]


FLAX, PLAIN = "plain Flax layers, faster type", "by plain Flax layers"
TABLES = {
    "cpu": Table("model | against | times as fast | by core seconds | of one large product's speed | by", speed, (
        Row("vit_b16_forward_timm", "ViT-B/16 forward, bfloat16", "bench forward --against timm", "timm"),
        Row("vit_b16_train_timm", "ViT-B/16 train step, bfloat16", "bench train --against timm", "timm"),
        Row("vit_b16_forward_timm_float32", "ViT-B/16 forward, float32",
            "bench forward --dtype float32 --against timm", "timm"),
        Row("vit_b16_train_timm_float32", "ViT-B/16 train step, float32",
            "bench train --dtype float32 --against timm", "timm"),
        Row("mixer_b16_forward_timm", "Mixer-B/16 forward, bfloat16",
            "bench forward --model mixer_b16 --against timm", "timm"),
        Row("mixer_b16_train_timm", "Mixer-B/16 train step, bfloat16",
            "bench train --model mixer_b16 --against timm", "timm"),
        Row("mixer_b16_forward_timm_float32", "Mixer-B/16 forward, float32",
            "bench forward --model mixer_b16 --dtype float32 --against timm", "timm"),
        Row("mixer_b16_train_timm_float32", "Mixer-B/16 train step, float32",
            "bench train --model mixer_b16 --dtype float32 --against timm", "timm"),
        Row("vit_ti16_forward_timm", "ViT-Ti/16 forward, 16 images, bfloat16",
            "bench forward --model vit_ti16 --batch 16 --against timm", "timm"),
        Row("vit_ti16_train_timm", "ViT-Ti/16 train step, 16 images, bfloat16",
            "bench train --model vit_ti16 --batch 16 --against timm", "timm"),
        Row("vit_ti16_forward_timm_float32", "ViT-Ti/16 forward, 16 images, float32",
            "bench forward --model vit_ti16 --batch 16 --dtype float32 --against timm", "timm"),
        Row("vit_ti16_train_timm_float32", "ViT-Ti/16 train step, 16 images, float32",
            "bench train --model vit_ti16 --batch 16 --dtype float32 --against timm", "timm"),
        Row("vit_b16_forward_flax", "ViT-B/16 forward, bfloat16", "bench forward", FLAX),
        Row("vit_b16_train_flax", "ViT-B/16 train step, bfloat16", "bench train", FLAX),
        Row("vit_b16_monarch_train_float32", "ViT-B/16 with `monarch(4)`, train step, float32",
            "bench train --dtype float32 --linear 'monarch(4)'", "dense maps"),
        Row("vit_b16_monarch_train", "ViT-B/16 with `monarch(4)`, train step, bfloat16",
            "bench train --linear 'monarch(4)'", "dense maps"),
        Row("vit_b16_int8_forward", "ViT-B/16 with `int8(dynamic)`, forward, bfloat16",
            "bench forward --linear 'int8(dynamic)'", "dense maps"),
    )),
    "others": Table("work | against | times as fast", others, (
        Row("clip_vit_b32_train", "CLIP B/32 train step, 16 pairs, bfloat16", "image_text_train.py", "open_clip"),
        Row("coca_vit_b32_train", "CoCa B/32 train step, 16 pairs, bfloat16",
            "image_text_train.py --model coca_vit_b32", "open_clip"),
        Row("decode", "CoCa B/32 captions of 76 tokens, keys and values cached", "decode.py", "no cache"),
        Row("m2_tokens", "a block of `m2_vit_ti16`",
            "m2_tokens.py --plot experiments/benchmarks/m2_tokens.png", "attention"),
        Row("two_pass_softmax", "softmax in two passes", "two_pass_softmax.py", "`jax.nn.softmax`"),
    )),
    "loss": Table("loss and gradient | against | temporaries | times as long", loss, (
        Row("contrastive_loss", "softmax of 16,384 pairs, chunked", "bench loss", "dense"),
    )),
    "compile": Table("train step | blocks | cache | seconds (least to most) | times those of 12 layers", compiling, (
        Row("compile", "ViT-B/16", "bench compile --layers 12,24,48 --rounds 3"),
    )),
    "memory": Table("train step | remat | temporaries | with parameters, optimizer and batch | times as long", memory, (
        Row("memory", "ViT-L/16, 16 images, float32",
            "bench memory --model vit_l16 --batch 16 --dtype float32 --rounds 2"),
        Row("saved", "ViT-Ti/16, 16 images, float32",
            "bench memory --model vit_ti16 --batch 16 --dtype float32 --saved float int8 --rounds 3"),
    )),
    "input": Table("images | against | times as fast | resized by | a thread's time", loading, (
        Row("input", "256 JPEGs of 467 x 395 pixels, to 256 px",
            "bench input --data folder:{photographs} --canvas 256", "bare decoding"),
    )),
    "tpu": Table("program | million cycles | floor | MFU | copies of activations | times the cycles", tpu, (
        Row("tpu_vit_b16_forward", "ViT-B/16 forward",
            "bench tpu --against plain --plot experiments/benchmarks/tpu_vit_b16.png", PLAIN),
        Row("tpu_vit_b16_train", "ViT-B/16 loss and gradient", "bench tpu --train --against plain", PLAIN),
        Row("tpu_vit_l16_forward", "ViT-L/16 forward", "bench tpu --model vit_l16"),
        Row("tpu_vit_l16_train", "ViT-L/16 loss and gradient", "bench tpu --train --model vit_l16"),
        Row("tpu_mixer_b16_forward", "Mixer-B/16 forward", "bench tpu --model mixer_b16"),
        Row("tpu_mixer_b16_train", "Mixer-B/16 loss and gradient", "bench tpu --train --model mixer_b16"),
        Row("tpu_clip_vit_b16_forward", "CLIP B/16 forward", "bench tpu --model clip_vit_b16"),
        Row("tpu_clip_vit_b16_train", "CLIP B/16 loss and gradient", "bench tpu --train --model clip_vit_b16"),
        Row("tpu_monarch_train", "ViT-B/16 with `monarch(4)`, loss and gradient", "bench tpu --train "
            "--linear 'monarch(4)' --against dense --plot experiments/benchmarks/tpu_monarch.png", "by dense maps"),
    )),
    "tiles": Table("kernel | shapes | most cycles above the best | where | best there", pieces, (
        Row("tpu_tiles", "", "tiles.py"),
    )),
    "gpu": Table("work | against | times as fast | MFU", gpu, (Row("gpu_h200", "", ""),)),
}  # fmt: skip
