"""Weak scaling in the compiler: the same batch a chip on 16, 64 and 256 chips, and what the pair loss takes there.

    python experiments/scaling/run.py                 # hours on two cores the first time; then at once
    python experiments/scaling/run.py --only vit_l16

Nothing runs on a TPU: every figure is read from programs that the TPU's compiler made (``vit_jax plan``). Resumable: a
row that ``results.json`` has is not made again (``--again`` makes all anew).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"

import matplotlib

import vit_jax as vj

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results.json"
CHIPS = {16: "v5e:4x4", 64: "v5e:8x8", 256: "v5e:16x16"}
CLIP = {
    "data.path": "tar:/data/{00000..41408}.tar",
    "model.image_tower.scan": True,
    "model.text_tower.scan": True,
}
TRAININGS = {
    "vit_l16": ("imagenet:vit_l16", 64, {"data.path": "tfds:imagenet2012", "model.scan": True, "model.remat": "full"}),
    "clip_b16": ("clip:clip_vit_b16", 128, {**CLIP, "objective.form": "ring", "accumulate": 2}),
}
"""Name -> recipe, examples a chip, keys."""
LOSSES = {
    f"loss {form}": (
        "clip:clip_vit_b16",
        2048,
        {
            **CLIP,
            "objective.form": form,
            "accumulate": 32,
            **{f"model.{tower}.{key}": value for tower in ("image_tower", "text_tower")
               for key, value in {"depth": 1, "width": 128, "heads": 2, "mlp_dim": 256}.items()},
        },
    )
    for form in ("ring", "dense")
}  # fmt: skip
"""Towers so small that what a chip takes is the loss: 2,048 pairs a chip."""


def row(recipe: str, per_chip: int, keys: dict, chips: int) -> dict:
    """The plan of one point, its figures alone."""
    plan = vj.plan(recipe, CHIPS[chips], changes={**keys, "batch_size": per_chip * chips})
    found = plan.summary()
    return {key: found[key] for key in ("fits", "memory", "exchanges", "time", "mfu", "flops", "hosts", "settings")}


def table(results: dict) -> str:
    """Rows of Markdown."""
    lines = [
        "| training | chips | GiB a chip | arrays exchanged, GiB | sent a chip, GiB | compute, ms | exchanges, ms | "
        "efficiency, none hidden | all hidden |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in (*TRAININGS, *LOSSES):
        first = None
        for chips in CHIPS:
            found = results.get(f"{name} {chips}")
            if found is None:
                continue
            needed = found["memory"]["needed"] / 2**30
            if found["time"] is None:
                lines.append(f"| {name} | {chips} | {needed:,.2f}: does not fit | | | | | | |")
                continue
            moved, sent = (sum(e[key] for e in found["exchanges"]) / 2**30 for key in ("bytes", "sent"))
            t = found["time"]
            first = first or t["compute"]  # the compute of the smallest slice, were nothing exchanged
            share = [f"{first / t[key]:.0%}" if name in TRAININGS else "" for key in ("most", "least")]  # else B^2
            ms = (f"{t[key] * 1e3:,.1f}" for key in ("compute", "exchange"))
            cells = [name, str(chips), *(f"{x:.2f}" for x in (needed, moved, sent)), *ms, *share]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: dict) -> None:
    """Memory, bytes and efficiency by the number of chips."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for name in (*TRAININGS, *LOSSES):
        points = [(chips, results[f"{name} {chips}"]) for chips in CHIPS if f"{name} {chips}" in results]
        if not points:
            continue
        chips = [n for n, _ in points]
        axes[0].plot(chips, [p["memory"]["needed"] / 2**30 for _, p in points], "o-", label=name)
        timed = [(n, p) for n, p in points if p["time"]]
        axes[1].plot([n for n, _ in timed], [sum(e["sent"] for e in p["exchanges"]) / 2**30 for _, p in timed], "o-")
        if timed and name in TRAININGS:
            first = timed[0][1]["time"]["compute"]
            color = axes[0].lines[-1].get_color()
            axes[2].plot([n for n, _ in timed], [first / p["time"]["most"] for _, p in timed], "o-", color=color)
            axes[2].plot([n for n, _ in timed], [first / p["time"]["least"] for _, p in timed], "o:", color=color)
    axes[0].axhline(15.75, color="0.6", linestyle="--", linewidth=1)
    for axis, title in zip(
        axes, ("GiB a chip (dashed: v5e has)", "GiB sent a chip and step", "efficiency"), strict=True
    ):
        axis.set(xscale="log", xticks=list(CHIPS), xticklabels=list(CHIPS), xlabel="chips", title=title)
        axis.minorticks_off()
    axes[0].set_yscale("log")
    axes[1].set_yscale("log")
    axes[2].set_ylim(0, 1.05)
    axes[2].legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="lower left")
    figure.savefig(HERE / "scaling.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="this training alone")
    parser.add_argument("--again", action="store_true", help="make all rows anew")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() and not args.again else {}
    for name, point in {**LOSSES, **TRAININGS}.items():
        for chips in CHIPS:
            key = f"{name} {chips}"
            if key not in results and args.only in (None, name):
                print(key, flush=True)
                results[key] = row(*point, chips)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    draw(results)
    print(table(results))


if __name__ == "__main__":
    main()
