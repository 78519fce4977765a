"""Random weights of published sizes through every format, against each project's own model.

    python experiments/conversion/run.py --out experiments/conversion --only 'convnext*'

For every row a model with random parameters is written in the format, its own project's package builds its own model
from that file, and both see the same noise and photographs. The file is then read back and compared bit for bit.
``results.json`` of that folder keeps the rows that were not measured anew, and its ``README.md``, where there is one,
gets the table of all. Needs the packages of ``pip install '.[torch]'``.
"""

import argparse
import fnmatch
import json
import math
import pathlib
import re
import tempfile

import jax
import numpy as np

from vit_jax import models, trees
from vit_jax.convert import read, verify, write
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.data.framing import Framing
from vit_jax.io.tensors import Tensor
from vit_jax.models import describe
from vit_jax.train.workdir import provenance

DINO = {"registers": 4, "layer_scale": 1e-5}
TANH = {"activation": "gelu_tanh"}
BARE = {"num_classes": 0}
BEIT = {"logit_bias": "relative(14)", "positions": "none", "qkv_bias": "qv", "layer_scale": 1e-5, "pool": "gap"} | {
    "cls_token": True, "final_norm": False, "pool_norm": True,
}  # fmt: skip
AXIAL = {"rotary": "rope(100, interleaved, index, xy)", "positions": "none", "layer_scale": 1e-5}
NAFLEX = {"position_grid": 16, "activation": "gelu_tanh"}
PARALLEL = {"parallel": True, "registers": 1, "layer_scale": 1e-5, "pool": "gap"} | {
    "final_norm": False, "pool_norm": True,
}  # fmt: skip
TITLES = {"vit_b16 as BEiT v2": BEIT, "vit_b16 as rope-vit's": AXIAL, "vit_b16 in parallel, as pwee": PARALLEL}
"""What the table calls rows whose fields are many."""
SMALL_TEXT = {"text_tower": {"vocab_size": 1000, "depth": 1}}
ROWS = [
    ("vit_ti16", {}, 224, "timm"), ("vit_s16", {}, 224, "timm"), ("vit_b16", {}, 224, "timm"),
    ("vit_b16", {"pool": "map"}, 224, "timm"), ("vit_b16", {"pool": "gap"}, 224, "timm"),
    ("vit_s14", DINO, 224, "timm"),
    ("vit_r_ti16", {"stem_numerics": "timm"}, 224, "timm"), ("vit_r26_s32", {"stem_numerics": "timm"}, 224, "timm"),
    ("vit_r50_b16", {"stem_numerics": "timm"}, 224, "timm"), ("mixer_b16", {}, 224, "timm"),
    ("vit_b16", {}, 240, "timm"), ("vit_b16", PARALLEL, 224, "timm"),
    ("convnext_tiny", {}, 224, "timm"), ("convnext_base", {}, 224, "timm"), ("convnext_large", {}, 224, "timm"),
    ("nf_resnet50", {}, 224, "timm"), ("mobilenetv2_100", {}, 224, "timm"),
    ("mobilenetv3_large_100", {}, 224, "timm"), ("mobilenetv3_small_100", {}, 224, "timm"),
    ("deit_s16_distilled", {}, 224, "timm"), ("deit_b16_distilled", {}, 224, "timm"),
    ("dinov2_vits14", BARE, 224, "timm"), ("dinov2_vitb14_reg", BARE, 224, "timm"),
    ("dinov2_vitg14", BARE, 224, "timm"),
    ("dinov3_vits16", BARE, 256, "timm"), ("dinov3_vits16plus", BARE, 256, "timm"),
    ("dinov3_vitb16", BARE, 256, "timm"), ("dinov3_vitl16", BARE, 256, "timm"),
    ("dinov3_vith16plus", BARE, 256, "timm"), ("dinov3_vit7b16", BARE | {"depth": 2}, 256, "timm"),
    ("eva02_ti14", {}, 224, "timm"), ("eva02_b14", {}, 224, "timm"), ("eva02_l14", {}, 224, "timm"),
    ("vit_b16", BEIT, 224, "timm"), ("vit_b16", AXIAL, 224, "timm"),
    ("vit_b16", NAFLEX | BARE | {"pool": "map"}, 256, "timm"),
    ("siglip2_vit_b16_naflex", SMALL_TEXT, 256, "hf"),
    ("vit_ti16", {"norm_epsilon": 1e-12}, 224, "hf"), ("vit_b16", {"norm_epsilon": 1e-12}, 224, "hf"),
    ("vit_s14", {"layer_scale": 1.0, "pool": "cls_gap"}, 224, "hf"),
    ("vit_b14", DINO | {"layer_scale": 1.0, "num_classes": 0}, 224, "hf"),
    ("deit_b16_distilled", {"norm_epsilon": 1e-12}, 224, "hf"), ("dinov2_vitb14_reg", BARE, 224, "hf"),
    ("dinov3_vits16plus", BARE, 256, "hf"), ("dinov3_vitb16", BARE | {"qkv_bias": "qv"}, 256, "hf"),
    ("vit_ti16", TANH, 224, "npz"), ("vit_s32", TANH, 224, "npz"), ("vit_b16", TANH, 224, "npz"),
    ("vit_s16", TANH | {"pool": "gap"}, 224, "big_vision"), ("vit_b16", TANH | {"pool": "map"}, 224, "big_vision"),
]  # fmt: skip


def random(name: str, fields: dict, size: int) -> Stored:
    """Every parameter random, none at a value that would hide a mistake; activations stay of the order of 1."""
    model, rng = models.create(name, **fields), np.random.default_rng(0)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        scale = 0.02 if path.startswith(("cls", "dist", "position", "registers", "pool/probe")) else 0.05
        if path.endswith("kernel"):
            scale = math.prod(shape[:-1]) ** -0.5
        mean = float(path.endswith("/scale") or path.split("/")[-1].startswith("scale_"))
        if "norm_3/" in path:  # a bottleneck's branch is smaller than its shortcut, as in trained stems
            mean, scale = 0.2 * mean, 0.2 * scale
        return (mean + scale * rng.standard_normal(shape)).astype(np.float32)

    params = {path: Tensor.of(draw(path, shape)) for path, shape in describe.shapes(model, size).items()}
    names = tuple(f"class {i}" for i in range(describe.classes(model)))
    variables = {
        path: np.exp(0.2 * rng.standard_normal(shape)).astype(np.float32)
        if path.endswith("/var")
        else draw(path, shape)
        for path, shape in describe.variables(model, size).items()
    }
    tower = getattr(model, model.ENCODER) if model.ENCODER else model
    preprocess = Preprocess(size, 0.9, "bicubic")
    if getattr(tower, "position_grid", None):
        preprocess = Preprocess(size, frame=Framing("patches", rounding="transformers", patch=tower.patch))
    return Stored(model, params, preprocess, names, source="random", variables=trees.nested(variables))


def measure(name: str, fields: dict, size: int, to: str, folder: pathlib.Path) -> dict:
    """One row of the table."""
    there = random(name, fields, size)
    path = folder / (f"{to}.npz" if to in ("npz", "big_vision") else to)
    write.save(there, path, to)
    found = [row for row in verify.verify(there, [path]) if row.output != "pixel"]
    with read.load(path) as again:
        exact = again.model == there.model and all(
            np.array_equal(again.params[key].read(), value.read()) for key, value in there.params.items()
        )
        exact &= jax.tree.all(jax.tree.map(np.array_equal, again.variables, there.variables))
    return {
        "model": name, "fields": fields, "format": to, "pixels": size,
        "parameters": sum(math.prod(t.shape) for t in there.params.values()),
        **{f"max difference, {images}": max(g.difference for g in found if g.images == images)
           for images in ("noise", "photographs")},
        "largest logit": max(g.largest for g in found), "bit-exact back": exact,
    }  # fmt: skip


def key(row: dict) -> str:
    """What a row is of."""
    return json.dumps([row["model"], row["fields"], row["format"], row["pixels"]], sort_keys=True)


def line(row: dict) -> str:
    """A line of the table."""
    short = ", ".join(f"{k}={v}" for k, v in row["fields"].items() if k != "text_tower")
    usual = 256 if row["model"].startswith("dinov3") or "position_grid" in row["fields"] else 224
    at = "" if row["pixels"] == usual or "naflex" in row["model"] else f", {row['pixels']} px"
    named = next((title for title, fields in TITLES.items() if fields == row["fields"]), None)
    name = named or row["model"] + at + (f" ({short})" if short else "")
    gaps = (f"{row[f'max difference, {images}']:.1e}" for images in ("noise", "photographs"))
    back = "yes" if row["bit-exact back"] else "no"
    cells = (row["format"], name, f"{row['parameters'] / 1e6:.1f}", *gaps, f"{row['largest logit']:.1f}", back)
    return f"| {' | '.join(cells)} |"


def keep(rows: list[dict], out: pathlib.Path) -> None:
    """``results.json`` in ``out`` with these rows new, in the order of :data:`ROWS`, and the table of its README.md."""
    file, readme = out / "results.json", out / "README.md"
    there = json.loads(file.read_text())["rows"] if file.exists() else []
    found = {key(row): row for row in [*there, *rows]}
    order = [key({"model": n, "fields": f, "format": to, "pixels": size}) for n, f, size, to in ROWS]
    found = {k: found[k] for k in sorted(found, key=lambda k: order.index(k) if k in order else len(order))}
    file.write_text(json.dumps({"rows": list(found.values()), "provenance": provenance()}, indent=1) + "\n")
    if readme.exists():
        head, *_, tail = re.split(r"(?<=\|---\|\n)(?:\|.*\n)+", readme.read_text(), maxsplit=1)
        readme.write_text("\n".join([head.rstrip("\n"), *map(line, found.values()), tail]))


def main() -> None:
    """Prints a row at a time and keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--only", default="*", help="models, by a pattern of their names")
    parser.add_argument("--new", action="store_true", help="only rows that the folder has not yet")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "results.json"
    done = {key(row) for row in json.loads(file.read_text())["rows"]} if args.new and file.exists() else set()
    for row in (row for row in ROWS if fnmatch.fnmatchcase(row[0], args.only)):
        if key(dict(zip(("model", "fields", "pixels", "format"), row, strict=True))) in done:
            continue
        with tempfile.TemporaryDirectory(dir=args.out) as scratch:
            found = measure(*row, pathlib.Path(scratch))
        print(json.dumps(found), flush=True)
        keep([found], args.out)
        jax.clear_caches()


if __name__ == "__main__":
    main()
