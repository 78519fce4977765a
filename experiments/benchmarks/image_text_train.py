"""Train steps of CLIP and CoCa against open_clip's on the same device, A B A B in one run.

    python experiments/benchmarks/image_text_train.py --model clip_vit_b32 --json -

Forward, backward and AdamW over float32 parameters, computed in bfloat16 (open_clip: autocast, as its ``--precision
amp_bf16``), of random images and texts. Needs ``pip install '.[torch]'``.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vit_jax import models, sharding
from vit_jax.bench.timing import alternate
from vit_jax.cli import output
from vit_jax.config import Duration
from vit_jax.objectives import OBJECTIVES
from vit_jax.optim import OptimConfig, build
from vit_jax.optim.optimizers import AdamW
from vit_jax.train.state import abstract_params, make_init
from vit_jax.train.step import make_train_step

PEERS = {"clip_vit_b32": "ViT-B-32", "clip_vit_b16": "ViT-B-16", "coca_vit_b32": "coca_ViT-B-32"}


def batch(rows: int, size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images float32[B,S,S,3] and texts int32[B,L] of 8 to L tokens that end as CLIP's do."""
    rng = np.random.default_rng(0)
    text = rng.integers(1, 49000, (rows, length)).astype(np.int32)
    for row, n in zip(text, rng.integers(8, length, rows), strict=True):
        row[n - 1], row[n:] = 49407, 0
    return rng.standard_normal((rows, size, size, 3), np.float32), text


def ours(name: str, image: np.ndarray, text: np.ndarray) -> Callable[[], Any]:
    """The train step with the objective and the optimizer of the configurations."""
    model = models.replace_in_towers(models.create(name), dtype="bfloat16")
    objective = OBJECTIVES["coca" if isinstance(model, models.CoCa) else "contrast"]()
    inputs = {"image": image, "text": text, "mask": np.ones(len(text), bool)}
    shapes = model.inputs(image.shape[1])
    config = OptimConfig(AdamW(b2=0.98), lr=5e-4, weight_decay=0.2, bounds=(("logit_scale", 0.0, 4.6052),))
    params = nn.unbox(abstract_params(model, shapes))
    steps_of = functools.partial(Duration.steps, batch_size=16, num_examples=16, total=1000)
    tx, schedule = build(config, params, model.roles(params), 1000, steps_of)
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    init, _, shardings = make_init(model, shapes, tx, objective, seed=0, ema=False, mesh=mesh)

    step = make_train_step(
        model, objective, tx, augment=lambda _, batch: batch, schedule=schedule, seed=0, mesh=mesh, shardings=shardings
    )
    state, batch = init(), sharding.put(inputs, mesh)

    def run() -> Any:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = step(state, batch)
        return metrics, jax.tree.leaves(state)[0]

    return run


def theirs(name: str, image: np.ndarray, text: np.ndarray) -> Callable[[], Any]:
    """One step of open_clip, its own losses."""
    import open_clip
    import torch
    from open_clip.loss import ClipLoss, CoCaLoss

    model = open_clip.create_model(PEERS[name])
    model.train()
    if name.startswith("coca"):
        torch.nn.init.normal_(model.text_decoder.text_projection, std=0.02)  # left as it was in memory otherwise
    tx = torch.optim.AdamW(model.parameters(), 5e-4, betas=(0.9, 0.98), weight_decay=0.2)
    images, texts = torch.tensor(image).permute(0, 3, 1, 2).contiguous(), torch.tensor(text).long()
    coca, clip = CoCaLoss(2.0, 1.0), ClipLoss()

    def run() -> Any:
        tx.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(images, texts)
            if name.startswith("coca"):
                labels = texts[:, 1:]
                parts = coca(
                    out["image_features"], out["text_features"], out["logits"][:, : labels.shape[1]], labels,
                    out["logit_scale"],
                )  # fmt: skip
                loss = sum(parts)
            else:
                loss = clip(*out[:3])
        loss.backward()
        tx.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        return loss.item()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="clip_vit_b32", choices=PEERS)
    parser.add_argument("--batch", type=int, default=16, help="pairs a step (default 16)")
    parser.add_argument("--size", type=int, default=224, help="side of the image (default 224)")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of measurements (default 10)")
    parser.add_argument("--json", metavar="FILE", help="write the result there, - for the terminal")
    args = parser.parse_args()
    image, text = batch(args.batch, args.size, models.create(args.model).text_tower.length)
    steps = {"vit_jax": ours(args.model, image, text), "open_clip": theirs(args.model, image, text)}
    times = alternate(steps, args.rounds)
    result = {
        "model": f"{args.model} bfloat16, {args.batch} pairs of {args.size} px",
        **{f"{name} pairs/s": args.batch / t.median for name, t in times.items()},
        **times["vit_jax"].compared("times faster", times["open_clip"]),
    }
    for key, value in result.items():
        print(f"{key:34s} {value}")
    output.write(args.json, result)


if __name__ == "__main__":
    main()
