"""Pictures of a run: learning curves, confusions, reliability, retrieval, activity.

Figures are values; pyplot's global state is untouched.

matplotlib is imported where a figure is made: it costs more than the rest of the package.
"""

from __future__ import annotations

import os
import pathlib
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from vit_jax.io import atomic
from vit_jax.io.text import escaped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY, GRID = "#1f2933", "#7b8794", "#e4e7eb"
TRAIN, VAL, OVER, UNDER = "#2f6fb2", "#d9622b", "#edb498", "#9cc3e6"
DPI = 150
MAX_MATRIX_CLASSES = 100
"""With more classes a matrix has no legible rows: the most frequent confusions are drawn instead."""

Path = str | os.PathLike[str]


class Panel(NamedTuple):
    """A panel of the learning curves: its title, what its axis says, the metrics that it shows, and their scale."""

    title: str
    ylabel: str
    names: str
    scale: float = 1.0


PANELS = (
    Panel("Loss", "loss (nats)", r"(.+/)?loss"),
    Panel("Accuracy", "accuracy (%)", r"(?!.*zero_shot/)(.+/)?accuracy", 100),
    Panel("Retrieval", "recall at 1 (%)", r"(.+/)?(i2t|t2i)_r1", 100),
    Panel("Zero-shot", "accuracy (%)", r"(.+/)?zero_shot/accuracy", 100),
    Panel("Learning rate", "learning rate", r"(.+/)?lr"),
)
DIRECTIONS = {"i2t_r1": "image to text", "t2i_r1": "text to image"}


def curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Loss, metrics and learning rate over the steps, train and validation, from the rows of ``metrics.jsonl``.

    Of :data:`PANELS` those are drawn that any row has a metric of; NaN leaves a gap.
    """
    keys = sorted({key for row in rows for key in row if key != "step"})
    found = {panel: match for panel in PANELS if (match := [k for k in keys if re.fullmatch(panel.names, k)])}
    columns = len(found) if len(found) <= 3 else -(-len(found) // 2)
    lines = -(-len(found) // max(columns, 1))
    figure = _figure(4.6 * max(columns, 1) + 0.4, 3.8 * max(lines, 1))
    if not found:
        figure.text(0.5, 0.5, "nothing logged yet", ha="center", va="center", color=GREY)
    for i, (panel, match) in enumerate(found.items(), 1):
        ax = figure.add_subplot(lines, columns, i)
        for key in match:
            steps, values = np.asarray([(row["step"], row[key]) for row in rows if key in row], np.float64).T
            _curve(ax, steps, panel.scale * values, key)
        _dress(ax, panel.title, panel.ylabel, "step")
        _scale(ax, panel)
        if len(match) > 1:
            ax.legend(frameon=False, fontsize=9, loc="best")
    _save(figure, path)


def _curve(ax: Axes, steps: np.ndarray, values: np.ndarray, key: str) -> None:
    split, _, name = key.rpartition("/")
    if split in ("", "train"):
        mean = values if name == "lr" else smooth(values)
        if mean is not values:
            ax.plot(steps, values, color=TRAIN, alpha=0.22, lw=0.9)
        ax.plot(steps, mean, color=TRAIN, lw=1.8, label=split, marker="." if len(values) == 1 else None)
        return
    label = f"{split.removeprefix('val').lstrip('/')} {DIRECTIONS[name]}".strip() if name in DIRECTIONS else split
    color = {"val": VAL, "val/zero_shot": VAL}.get(split)
    color = TRAIN if color and name == "t2i_r1" else color
    (line,) = ax.plot(steps, values, lw=1.6, marker="o", ms=3.5 if len(values) < 40 else 0, label=label, color=color)
    if name == "loss" or not np.isfinite(values).any():
        return
    best = int(np.nanargmax(values))
    ax.plot(steps[best], values[best], "o", ms=7, mfc="white", mec=line.get_color(), mew=1.6, zorder=4, clip_on=False)
    ax.set_title(f"best {label} {values[best]:.2f} % at step {steps[best]:,.0f}", loc="right", fontsize=9, color=INK)


def smooth(values: np.ndarray, width: float = 1 / 60) -> np.ndarray:
    """Gaussian mean over neighbouring points, ``width`` of the curve; NaN stays out of it and stays NaN."""
    sigma = len(values) * width
    if sigma < 0.5:
        return values
    reach = int(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    valid = np.isfinite(values)
    mean = np.convolve(np.where(valid, values, 0.0), kernel)[reach : reach + len(values)]
    weight = np.convolve(valid.astype(float), kernel)[reach : reach + len(values)]
    return np.divide(mean, weight, out=np.full(len(values), np.nan), where=valid)


def _scale(ax: Axes, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    data = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines])
    data = data[np.isfinite(data)]
    if panel.title == "Loss" and len(data) and data.min() > 0 and data.max() > 20 * data.min():
        _log_scale(ax)
        ax.set_ylabel("loss (nats, log scale)")
    if panel.scale == 100:
        ax.set_ylim(top=min(ax.get_ylim()[1], 101.0))
    if panel.title == "Learning rate":
        ax.set_ylim(bottom=0.0)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")


def _log_scale(ax: Axes, ticks: tuple[int, ...] = (1, 2, 5)) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=ticks, numticks=8))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:.3g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def confusion(counts: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Confusion matrix int[C,C] (rows: truth): right answers in blue, mistakes in orange, as shares of their row.

    Up to 25 classes the counts are printed; above :data:`MAX_MATRIX_CLASSES` bars show the most frequent confusions.
    """
    counts, names = np.asarray(counts), [_short(name) for name in class_names]
    assert counts.shape == (len(names),) * 2, (counts.shape, len(names))
    if len(names) > MAX_MATRIX_CLASSES:
        return _top_confusions(counts, names, path)
    n, total = len(names), int(counts.sum())
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(max(0.42 * n, 3.6), 15)
    width = 0.09 * max(map(len, names))
    figure = _figure(side + width + 1.6, side + width + 0.9)
    ax = figure.add_subplot()
    right, wrong = np.eye(n, dtype=bool), ~np.eye(n, dtype=bool)
    worst = max(float(share[wrong].max(initial=0.0)), 0.1)
    for where, cmap, top, label in ((right, "Blues", 1.0, "right"), (wrong, "Oranges", worst, "mistaken")):
        image = ax.imshow(np.where(where & (counts > 0), 100 * share, np.nan), cmap=cmap, vmin=0, vmax=100 * top)
        bar = figure.colorbar(image, ax=ax, fraction=0.04, pad=0.015, shrink=0.6, aspect=24 if n <= 25 else 48)
        bar.set_label(f"{label} (% of the true class)", color=INK, fontsize=8.5)
        bar.ax.tick_params(labelsize=8, color=GREY, labelcolor=INK)
        bar.outline.set_visible(False)
    if n <= 25:
        for i, j in zip(*np.nonzero(counts), strict=True):
            dark = share[i, j] > 0.55 if i == j else share[i, j] > 0.6 * worst
            ax.text(j, i, f"{counts[i, j]}", ha="center", va="center", fontsize=8, color="white" if dark else INK)
    size = float(np.clip(72 * side / n * 0.55, 3.5, 9))
    rotation = 90 if 0.6 * size * max(map(len, names)) > 72 * side / n else 0
    ax.set_xticks(range(n), names, rotation=rotation, fontsize=size, parse_math=False)
    ax.set_yticks(range(n), names, fontsize=size, parse_math=False)
    ax.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    ax.grid(which="minor", color=GRID, lw=0.6 if n <= 40 else 0.3)
    _dress(ax, f"{_percent(np.trace(counts), total)} of {total:,} right", "true class", "predicted class", grid=False)
    ax.tick_params(which="both", length=0)
    _save(figure, path)


def _top_confusions(counts: np.ndarray, names: Sequence[str], path: Path, limit: int = 30) -> None:
    wrong, total = np.where(np.eye(len(names), dtype=bool), 0, counts), int(counts.sum())
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = [(i, j) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]]
    figure = _figure(8, 1.2 + 0.24 * max(len(pairs), 3))
    ax = figure.add_subplot()
    values = [int(wrong[i, j]) for i, j in pairs]
    bars = ax.barh(range(len(pairs)), values, color=VAL, height=0.7)
    shares = [f"{100 * wrong[i, j] / counts[i].sum():.0f} %" for i, j in pairs]
    ax.bar_label(bars, shares, padding=3, fontsize=8, color=GREY)
    ax.set_yticks(range(len(pairs)), [f"{names[i]} → {names[j]}" for i, j in pairs], fontsize=8.5, parse_math=False)
    ax.set_ylim(max(len(pairs), 1) - 0.4, -0.6)
    ax.set_xlim(0, 1.12 * max(values, default=1))
    title = f"{_percent(np.trace(counts), total)} of {total:,} right; most frequent of {int(wrong.sum()):,} confusions"
    _dress(ax, title, "", "images (and share of the true class)")
    ax.grid(axis="y", visible=False)
    _save(figure, path)


def reliability(bins: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], path: Path) -> None:
    """Reliability diagram with the number of examples per bin below.

    Args:
      bins: edges [M+1], examples [M], confidence [M], accuracy [M], as ``evals.calibration.reliability`` returns them.
      path: the file to write.
    """
    edges, count, confidence, accuracy = map(np.asarray, bins)
    total, filled = max(int(count.sum()), 1), count > 0
    ece = float(np.sum(count[filled] * np.abs(accuracy - confidence)[filled]) / total)
    figure = _figure(4.8, 5.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    left, width = edges[:-1][filled], np.diff(edges)[filled]
    acc, conf = accuracy[filled], confidence[filled]
    style = {"align": "edge", "edgecolor": "white", "lw": 0.8}
    top.bar(left, np.minimum(acc, conf), width, color=TRAIN, label="accuracy", **style)
    under, over = np.maximum(acc - conf, 0), np.maximum(conf - acc, 0)
    top.bar(left, under, width, conf, color=UNDER, label="accuracy above confidence", hatch="\\\\\\", **style)
    top.bar(left, over, width, acc, color=OVER, label="confidence above accuracy", hatch="///", **style)
    top.plot([0, 1], [0, 1], color=INK, lw=1, ls=(0, (4, 3)), label="perfectly calibrated")
    top.legend(frameon=False, fontsize=9, loc="upper left")
    _dress(top, f"Reliability: ECE {_percent(ece, 1)}", "accuracy in the bin", "")
    top.set(xlim=(0, 1), ylim=(0, 1.001), aspect="auto")
    bottom.bar(left, count[filled], width, color=GREY, **style)
    _log_scale(bottom, ticks=(1,))
    bottom.set_ylim(bottom=0.7)
    _dress(bottom, "", "examples", "confidence")
    _save(figure, path)


def retrieval(rows: Sequence[tuple[str, float, np.ndarray, Sequence[tuple[np.ndarray, bool]]]], path: Path) -> None:
    """Contact sheet: a caption per row, the image it describes, then the images found for it, the right one framed.

    Args:
      rows: caption, rank of its image, that image float[H,W,3], and the nearest images, best first, with whether each
        is the right one. Pixels may be normalised in any way: each channel's range over the whole sheet becomes black
        to full.
      path: the file to write.
    """
    columns = max(len(found) for *_, found in rows)
    pictures = np.stack([x for *_, own, found in rows for x in (own, *(image for image, _ in found))])
    shown = iter(displayable(pictures))
    figure = _figure(3.0 + 1.25 * (columns + 1), 0.6 + 1.35 * len(rows))
    axes = figure.subplots(len(rows), columns + 2, squeeze=False, width_ratios=(2.2, *[1] * (columns + 1)))
    heads = ("caption", "its image", *(f"found {i}" for i in range(1, columns + 1)))
    for ax, head in zip(axes[0], heads, strict=True):
        ax.set_title(head, fontsize=9, color=GREY, loc="left" if head == "caption" else "center")
    for line, (caption, place, _, found) in zip(axes, rows, strict=True):
        for ax in line:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        words = "\n".join(textwrap.wrap(_short(caption, 140), 28)) or "(no words)"
        line[0].text(0, 0.95, words, va="top", fontsize=9, color=INK, parse_math=False, transform=line[0].transAxes)
        line[0].text(0, 0.02, f"rank {place:g}", fontsize=8.5, color=GREY, transform=line[0].transAxes)
        for ax, right in zip(line[1:], (False, *(right for _, right in found)), strict=False):
            ax.imshow(next(shown))
            ax.spines[:].set(visible=right, color=VAL, linewidth=3)
    _save(figure, path)


def contact_sheet(sections: Mapping[str, tuple[np.ndarray, Sequence[str]]], path: Path, *, columns: int = 8) -> None:
    """Images with a text below each, in rows of ``columns``, section below section.

    Args:
      sections: title -> images float[N,H,W,3] in [0, 1] or uint8, and a text for each; N > 0.
      path: the file to write.
      columns: images side by side, where there are as many.
    """
    columns = min(columns, max([4, *(len(texts) for _, texts in sections.values())]))  # a title takes four
    wide, high = 1.12, 1.42  # a cell around an image of side 1
    rows = [-(-len(texts) // columns) for _, texts in sections.values()]
    figure = _figure(1.25 * wide * columns, 1.25 * high * sum(rows) + 0.45 * len(rows))
    axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
    for ax, (title, (images, texts)), n in zip(axes, sections.items(), rows, strict=True):
        ax.set_title(title, loc="left", fontsize=11.5, color=INK, fontweight="bold", parse_math=False)
        images = images if images.dtype == np.uint8 else np.clip(images, 0, 1)  # resampling overshoots by a rounding
        for i, (image, text) in enumerate(zip(images, texts, strict=True)):
            top, left = high * (i // columns), wide * (i % columns)
            how = "antialiased" if len(image) > 64 else "nearest"  # of a small image every pixel is to be seen
            ax.imshow(image, extent=(left, left + 1, top + 1, top), interpolation=how)
            words = "\n".join(textwrap.wrap(_short(text, 54), 19)[:3])
            ax.text(left, top + 1.04, words, va="top", fontsize=7.5, color=INK, parse_math=False)
        ax.set(xlim=(-0.02, wide * columns), ylim=(high * n, -0.02))
        ax.set_axis_off()
    _save(figure, path)


def crossover(
    rows: Sequence[Mapping[str, Any]], title: str, path: Path, *, against: str = "dense", per: str = "rows"
) -> None:
    """How many times faster each implementation is than what it was timed ``against``: rows of ``bench kernels``."""
    figure = _figure(6.4, 3.8)
    ax = figure.add_subplot()
    middle, low, high = (f"times dense ({k})" for k in ("median", "10th percentile", "90th percentile"))
    ax.axhline(1, color=GREY, lw=1, ls="--")
    for i, name in enumerate(dict.fromkeys(r["implementation"] for r in rows)):
        own = sorted((r for r in rows if r["implementation"] == name), key=lambda r: r["rows"])
        x = [r["rows"] for r in own]
        color = (TRAIN, VAL, INK, GREY)[i % 4]
        ax.fill_between(x, [r[low] for r in own], [r[high] for r in own], color=color, alpha=0.15, lw=0)
        ax.plot(x, [r[middle] for r in own], color=color, marker="o", ms=4, label=name)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=9)
    _dress(ax, title, f"times faster than {against}", per)
    _save(figure, path)


def lines(
    panels: Mapping[str, tuple[str, Mapping[str, Sequence[tuple[float, float]]]]],
    xlabel: str,
    path: Path,
    *,
    scale: Literal["linear", "log"] = "linear",
) -> None:
    """Curves side by side: panel -> what its axis says, and curve -> points; on ``log`` axes powers are straight."""
    figure = _figure(5.2 * len(panels), 3.8)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, (ylabel, curves)) in zip(axes, panels.items(), strict=True):
        for color, (name, points) in zip((TRAIN, VAL, INK, GREY), curves.items(), strict=False):
            ax.plot(*zip(*points, strict=True), color=color, lw=1.8, marker="o", ms=4, label=name)
        _dress(ax, title, ylabel, xlabel)
        if scale == "log":
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            _log_scale(ax)
        ax.legend(frameon=False, fontsize=9, loc="best")
    _save(figure, path)


def ratios(rows: Mapping[str, Sequence[float]], title: str, path: Path) -> None:
    """How many times as fast, a line each: median, 10th and 90th percentile, on a scale where a doubling is a step."""
    figure = _figure(8.4, 1.2 + 0.27 * len(rows))
    ax = figure.add_subplot()
    ax.axvline(1, color=GREY, lw=1, ls="--")
    for place, (middle, low, high) in enumerate(rows.values()):
        color = TRAIN if low > 1 else VAL if high < 1 else GREY
        ax.plot((low, high), (place, place), color=color, lw=5, alpha=0.35, solid_capstyle="butt")
        ax.plot(middle, place, color=color, marker="o", ms=4.5)
    _dress(ax, title, "", "times as fast")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    ax.grid(axis="y", visible=False)
    ax.set_yticks(range(len(rows)), [_short(row, 90) for row in rows], fontsize=8.5, parse_math=False)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    _save(figure, path)


def stacked(
    panels: Mapping[str, Mapping[str, Mapping[str, float]]], parts: Sequence[str], title: str, xlabel: str, path: Path
) -> None:
    """Bars of several panels with one scale: panel -> bar -> part -> value; ``parts`` in the order of their colours."""
    most = max(len(bars) for bars in panels.values())
    figure = _figure(5.6 * len(panels), 1.4 + 0.27 * most)
    shades = (TRAIN, VAL, UNDER, OVER, INK, GREY)
    axes = figure.subplots(1, len(panels), sharex=True, squeeze=False)[0]
    for ax, (name, bars) in zip(axes, panels.items(), strict=True):
        left = np.zeros(len(bars))
        for i, part in enumerate(parts):
            values = np.asarray([bar.get(part, 0.0) for bar in bars.values()])
            ax.barh(range(len(bars)), values, left=left, color=shades[i % len(shades)], height=0.7, label=part)
            left += values
        _dress(ax, f"{name}: {left.sum():,.1f}", "", xlabel)
        ax.grid(axis="y", visible=False)
        ax.set_yticks(range(len(bars)), [_short(row, 60) for row in bars], fontsize=8.5, parse_math=False)
        ax.set_ylim(most - 0.4, -0.6)
    figure.axes[-1].legend(frameon=False, fontsize=9, loc="lower right")
    figure.suptitle(title, fontsize=10, color=GREY)
    _save(figure, path)


def rates(rate: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, marks: Mapping[str, float], path: Path) -> None:
    """Loss over a learning rate that rises from step to step; ``marks`` are rates to point out, by name."""
    figure = _figure(6.4, 4.0)
    ax = figure.add_subplot()
    ax.plot(rate, losses, color=TRAIN, alpha=0.3, lw=0.9, label="loss of a step")
    ax.plot(rate, smoothed, color=TRAIN, lw=1.8, label="smoothed")
    for color, (name, at) in zip((GREY, UNDER, VAL), marks.items(), strict=False):
        ax.axvline(at, color=color, lw=1.4, ls="--", label=f"{name}: {at:.2g}")
    low, first = float(smoothed.min()), float(smoothed[0])
    if first > low:  # where the loss has diverged is not of interest
        ax.set_ylim(low - 0.3 * (first - low), first + 1.5 * (first - low))
    ax.set_xscale("log")
    ax.legend(frameon=False, fontsize=9, loc="best")
    _dress(ax, "Learning-rate range test", "loss", "learning rate")
    _save(figure, path)


def activity(shares: Mapping[str, float], path: Path) -> None:
    """Share of active hidden units over the MLPs of a model, from ``{"block_0/mlp": 0.1, ...}`` in their order."""
    figure = _figure(max(4.6, 0.42 * len(shares) + 1.6), 3.8)
    ax = figure.add_subplot()
    values = [100 * v for v in shares.values()]
    bars = ax.bar(range(len(values)), values, color=TRAIN, width=0.7)
    ax.bar_label(bars, fmt="%.3g", padding=2, fontsize=8, color=GREY)
    names = [name.removesuffix("/mlp").removeprefix("block_") for name in shares]
    ax.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 4 else 90, fontsize=8.5)
    ax.set_ylim(0, 1.12 * max([*values, 1e-9]))
    _dress(ax, f"{np.mean(values):.3g} % of the hidden units are active", "not 0 (%)", "block")
    ax.grid(axis="x", visible=False)
    _save(figure, path)


def mistakes(images: np.ndarray, texts: Sequence[str], path: Path) -> None:
    """Contact sheet of images float[N,H,W,3], normalised in any way, with what each was taken for."""
    contact_sheet({"The most confident mistakes": (displayable(images), texts)}, path)


def displayable(images: np.ndarray) -> np.ndarray:
    """float[N,H,W,3] -> float32 in [0, 1], each channel scaled by its range over all images; NaN is black."""
    images = np.nan_to_num(np.asarray(images, np.float32))
    low, high = images.min((0, 1, 2)), images.max((0, 1, 2))
    return (images - low) / np.where(high > low, high - low, 1)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=0.06), facecolor="white")


def _dress(ax: Axes, title: str, ylabel: str, xlabel: str, *, grid: bool = True) -> None:
    ax.set_title(title, loc="left", fontsize=11.5, color=INK, fontweight="bold", pad=10)
    ax.set_xlabel(xlabel, color=INK)
    ax.set_ylabel(ylabel, color=INK)
    ax.tick_params(color=GREY, labelcolor=INK)
    for side, spine in ax.spines.items():
        spine.set_visible(grid and side in ("left", "bottom"))
        spine.set_color(GREY)
    if grid:
        ax.grid(color=GRID, lw=0.8)
        ax.set_axisbelow(True)


def _percent(part: Any, whole: Any) -> str:
    return f"{100 * float(part) / max(float(whole), 1e-12):.2f} %"


def _short(name: str, limit: int = 24) -> str:
    name = escaped(name)
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():  # a class name in a script the font lacks shows as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        with atomic.new_file(pathlib.Path(path)) as new:
            figure.savefig(new, dpi=DPI, bbox_inches="tight", pad_inches=0.15)
