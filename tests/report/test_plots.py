"""Pictures: what is drawn is asserted on the figure; that it can be drawn at all, on the file."""

import pathlib
import runpy
import sys
from typing import Any

import numpy as np
import PIL.Image
import pytest

from vit_jax.evals.calibration import reliability
from vit_jax.report import plots


@pytest.fixture(autouse=True)
def as_users_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as small as the pictures of other tests."""
    monkeypatch.setattr(plots, "DPI", 150)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were saved."""
    figures: list[Any] = []
    save = plots._save

    def keep(figure: Any, path: Any) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", keep)
    return figures


def is_picture(path: pathlib.Path) -> bool:
    with PIL.Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    return min(pixels.shape) > 200 and pixels.std() > 5


def test_curves(tmp_path: pathlib.Path, drawn: list[Any], rng: np.random.Generator) -> None:
    steps = range(1, 301)
    rows: list[dict[str, float]] = [
        {"step": s, "train/loss": 3 / s + 0.01 * rng.random(), "train/accuracy": 1 - 1 / s, "lr": 1e-3, "seconds": 2.0}
        for s in steps
    ]
    rows[10]["train/loss"] = np.nan
    rows += [{"step": s, "val/loss": 4 / s, "val/accuracy": 1 - abs(s - 200) / 300} for s in range(50, 301, 50)]
    plots.curves(rows, tmp_path / "curves.png")
    (figure,) = drawn
    assert is_picture(tmp_path / "curves.png")
    loss, accuracy, rate = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Loss", "Accuracy", "Learning rate"]
    assert [ax.get_xlabel() for ax in figure.axes] == ["step"] * 3 and loss.get_yscale() == "log"
    assert [t.get_text() for t in loss.get_legend().get_texts()] == ["train", "val"]
    raw = np.array([row["train/loss"] for row in rows[:300]])
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), raw)
    assert "best val 100.00 % at step 200" in accuracy.get_title(loc="right")
    np.testing.assert_allclose(accuracy.lines[-2].get_ydata()[-1], 100 * rows[-1]["val/accuracy"])
    np.testing.assert_array_equal(rate.lines[0].get_ydata(), [1e-3] * 300)


def test_curves_of_images_and_texts(tmp_path: pathlib.Path, drawn: list[Any]) -> None:
    """Recall and zero-shot accuracy have panels of their own; steps are whole numbers, of a short run too."""
    kinds = ("loss", "i2t_r1", "i2t_r5", "t2i_r1", "coco/i2t_r1", "zero_shot/accuracy", "knn/accuracy")
    rows = [{"step": s, "train/loss": 1 / s, "train/lr": 0.1} | {f"val/{k}": 1 - 1 / s for k in kinds} for s in (1, 3)]
    plots.curves(rows, tmp_path / "curves.png")
    axes = {ax.get_title(loc="left"): ax for ax in drawn[0].axes}
    assert list(axes) == ["Loss", "Accuracy", "Retrieval", "Zero-shot", "Learning rate"]
    labels = [t.get_text() for t in axes["Retrieval"].get_legend().get_texts()]
    assert labels == ["coco image to text", "image to text", "text to image"]
    assert axes["Accuracy"].lines[0].get_label() == "val/knn"
    np.testing.assert_allclose(axes["Zero-shot"].lines[0].get_ydata(), [0, 200 / 3])
    assert axes["Zero-shot"].get_title(loc="right") == "best val/zero_shot 66.67 % at step 3"
    for ax in axes.values():
        ticks = [t for t in ax.get_xticks() if 1 <= t <= 3]
        assert ticks == [1, 2, 3] and ax.xaxis.get_major_formatter()(2000.0, 0) == "2,000"


@pytest.mark.parametrize("rows", [[], [{"step": 1, "other": 2.0}], [{"step": 5, "train/loss": 2.0}]])
def test_curves_of_almost_nothing(rows: list[dict[str, float]], tmp_path: pathlib.Path) -> None:
    plots.curves(rows, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_curves_of_nothing_but_nan(tmp_path: pathlib.Path) -> None:
    plots.curves([{"step": s, "train/loss": np.nan, "val/accuracy": np.nan} for s in range(100)], tmp_path / "c.png")
    assert is_picture(tmp_path / "c.png")


def test_smooth_is_a_mean_without_lag(rng: np.random.Generator) -> None:
    line = np.linspace(3, 1, 600)
    smooth = plots.smooth(line + rng.normal(0, 0.1, 600))
    assert np.abs(smooth - line)[30:-30].max() < 0.1
    np.testing.assert_allclose(plots.smooth(np.full(600, 2.5)), 2.5)
    holes = np.where(np.arange(600) % 7 == 0, np.nan, 2.5)
    np.testing.assert_allclose(plots.smooth(holes), holes)
    np.testing.assert_array_equal(plots.smooth(line[:5]), line[:5])


@pytest.mark.first(1)
@pytest.mark.parametrize("c", [2, 10, 26])
def test_confusion_matrix(c: int, tmp_path: pathlib.Path, drawn: list[Any], rng: np.random.Generator) -> None:
    counts = rng.integers(0, 3, (c, c)) * (rng.random((c, c)) < 0.3) + 20 * np.eye(c, dtype=int)
    counts[-1] = 0
    names = [f"$\\frac{i}$ 狗 and something long indeed" for i in range(c)]
    plots.confusion(counts, names, tmp_path / "confusion.png")
    ax = drawn[0].axes[0]
    assert is_picture(tmp_path / "confusion.png")
    assert f"of {counts.sum():,} right" in ax.get_title(loc="left")
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("true class", "predicted class")
    assert ax.get_yticklabels()[0].get_text() == plots._short(names[0]) and len(plots._short(names[0])) == 24
    right, wrong = (np.asarray(image.get_array().filled(np.nan)) for image in ax.images)
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(np.nan_to_num(right) + np.nan_to_num(wrong), share)
    assert np.isnan(wrong.diagonal()).all()
    assert len(ax.texts) == (np.count_nonzero(counts) if c <= 25 else 0)


def test_many_classes_show_the_top_confusions(tmp_path: pathlib.Path, drawn: list[Any]) -> None:
    counts = 50 * np.eye(101, dtype=int)
    counts[3, 7], counts[9, 2] = 30, 10
    plots.confusion(counts, [f"c{i}" for i in range(101)], tmp_path / "confusion.png")
    ax = drawn[0].axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["c3 → c7", "c9 → c2"]
    assert [t.get_text() for t in ax.texts] == ["38 %", "17 %"]
    plots.confusion(50 * np.eye(101, dtype=int), ["x"] * 101, tmp_path / "perfect.png")
    assert is_picture(tmp_path / "confusion.png")


@pytest.mark.parametrize("one_bin", [False, True])
def test_reliability(one_bin: bool, tmp_path: pathlib.Path, drawn: list[Any], rng: np.random.Generator) -> None:
    confidence = np.full(40, 0.99) if one_bin else rng.random(500)
    bins = reliability(confidence, rng.random(len(confidence)) < confidence**2)
    plots.reliability(bins, tmp_path / "reliability.png")
    top, bottom = drawn[0].axes
    assert is_picture(tmp_path / "reliability.png")
    assert top.get_title(loc="left") == f"Reliability: ECE {100 * bins.ece():.2f} %"
    filled = bins.examples > 0
    tops = [p.get_y() + p.get_height() for p in top.patches]
    blue, under = np.array(tops[: filled.sum()]), np.array(tops[filled.sum() : 2 * filled.sum()])
    np.testing.assert_allclose(np.maximum(blue, under), np.maximum(bins.accuracy, bins.confidence)[filled])
    assert [p.get_height() for p in bottom.patches] == bins.examples[filled].tolist()


def test_activity(tmp_path: pathlib.Path, drawn: list[Any]) -> None:
    plots.activity({"block_0/mlp": 0.25, "block_1/mlp": 0.05}, tmp_path / "a.png")
    (ax,) = drawn[0].axes
    assert is_picture(tmp_path / "a.png")
    assert [round(p.get_height(), 6) for p in ax.patches] == [25.0, 5.0]
    assert ax.get_title(loc="left") == "15 % of the hidden units are active"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "1"]


def test_crossover(tmp_path: pathlib.Path, drawn: list[Any]) -> None:
    keys = ("median", "10th percentile", "90th percentile")
    rows = [
        {
            "implementation": name,
            "rows": n,
            **{f"times dense ({k})": f * n for k, f in zip(keys, (1, 0.5, 2), strict=True)},
        }
        for name in ("xla", "dense")
        for n in (4, 1)
    ]
    plots.crossover(rows, "title", tmp_path / "c.png")
    (ax,) = drawn[0].axes
    assert is_picture(tmp_path / "c.png")
    assert [line.get_label() for line in ax.lines[1:]] == ["xla", "dense"]
    assert ax.lines[1].get_xdata().tolist() == [1, 4] and ax.lines[1].get_ydata().tolist() == [1, 4]


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_lines(scale: Any, tmp_path: pathlib.Path, drawn: list[Any]) -> None:
    curves = {"one": [(1.0, 1.0), (4.0, 4.0)], "other": [(1.0, 0.5), (4.0, 8.0)]}
    plots.lines({"Time": ("seconds", curves), "Memory": ("MB", curves)}, "tokens", tmp_path / "l.png", scale=scale)
    (figure,) = drawn
    assert [ax.get_xscale() + ax.get_yscale() for ax in figure.axes] == [2 * scale] * 2
    assert [list(line.get_ydata()) for line in figure.axes[1].lines] == [[1, 4], [0.5, 8]]


def test_ratios(tmp_path: pathlib.Path, drawn: list[Any]) -> None:
    plots.ratios({"a": (2.0, 1.5, 3.0), "b_1": (0.5, 0.4, 0.6), "c": (1.0, 0.9, 1.1)}, "title", tmp_path / "r.png")
    (ax,) = drawn[0].axes
    assert is_picture(tmp_path / "r.png") and [t.get_text() for t in ax.get_yticklabels()] == ["a", "b_1", "c"]
    spreads, medians = ax.lines[1::2], ax.lines[2::2]
    assert [tuple(line.get_xdata()) for line in spreads] == [(1.5, 3.0), (0.4, 0.6), (0.9, 1.1)]
    assert [float(line.get_xdata()[0]) for line in medians] == [2.0, 0.5, 1.0]
    assert [line.get_color() for line in medians] == [plots.TRAIN, plots.VAL, plots.GREY]


def test_stacked(tmp_path: pathlib.Path, drawn: list[Any]) -> None:
    panels = {
        "ours": {"mlp": {"product": 2.0, "copy": 1.0}, "head": {"product": 0.5}},
        "theirs": {"mlp": {"copy": 4.0}},
    }
    plots.stacked(panels, ("product", "copy"), "title", "cycles", tmp_path / "s.png")
    ours, theirs = drawn[0].axes
    assert is_picture(tmp_path / "s.png") and ours.get_title(loc="left") == "ours: 3.5"
    assert [t.get_text() for t in ours.get_yticklabels()] == ["mlp", "head"]
    assert [(bar.get_x(), bar.get_width()) for bar in ours.patches] == [(0, 2), (0, 0.5), (2, 1), (0.5, 0)]
    assert [bar.get_width() for bar in theirs.patches] == [0, 4]


def test_retrieval(tmp_path: pathlib.Path, drawn: list[Any], rng: np.random.Generator) -> None:
    gradient = np.broadcast_to(np.linspace(0, 1, 8)[:, None, None], (8, 8, 3))
    norm = lambda x: (x - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.5]  # noqa: E731
    pictures = [norm(rng.random((8, 8, 3)) * 0.98 + 0.01) for _ in range(4)] + [norm(gradient)]
    own = pictures[4]
    rows = [
        ("a $\\frac{1}{2}$ price 狗 " + "long " * 40, 1.0, own, [(own, True), *((p, False) for p in pictures[:3])]),
        ("", 7.5, pictures[3], [(p, False) for p in pictures[:2]]),  # fewer found, none of them right
    ]
    plots.retrieval(rows, tmp_path / "retrieval.png")
    assert is_picture(tmp_path / "retrieval.png")
    axes = np.array(drawn[0].axes).reshape(2, 6)
    texts = [[t.get_text() for t in line[0].texts] for line in axes]
    assert texts[0][1] == "rank 1" and texts[1] == ["(no words)", "rank 7.5"]
    assert texts[0][0].startswith("a $\\frac{1}{2}$ price") and texts[0][0].endswith("…") and len(texts[0][0]) == 140
    framed = [[bool(ax.spines["top"].get_visible()) for ax in line] for line in axes]
    assert framed == [[False, False, True, False, False, False], [False] * 6]
    assert [len(ax.images) for ax in axes.ravel()] == [0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0]
    np.testing.assert_allclose(axes[0, 1].images[0].get_array(), gradient, atol=1e-6)  # whatever the normalisation
    np.testing.assert_array_equal(axes[0, 2].images[0].get_array(), axes[0, 1].images[0].get_array())


def test_contact_sheet(tmp_path: pathlib.Path, drawn: list[Any], rng: np.random.Generator) -> None:
    images, texts = rng.random((11, 8, 8, 3)), [f"$class {i}" for i in range(11)]
    large = rng.integers(0, 256, (1, 80, 80, 3), dtype=np.uint8)
    plots.contact_sheet({"ours": (images, texts), "theirs": (large, ["狗 " + "long " * 40])}, tmp_path / "s.png")
    assert is_picture(tmp_path / "s.png")
    ours, theirs = drawn[0].axes
    assert [ax.get_title(loc="left") for ax in (ours, theirs)] == ["ours", "theirs"]
    assert [t.get_text() for t in ours.texts] == texts and len(theirs.texts[0].get_text().split("\n")) == 3
    corners = [tuple(image.get_extent()[::3]) for image in ours.images]
    assert len(set(corners)) == 11 and corners[8][0] == corners[0][0] and corners[8][1] > corners[0][1]
    np.testing.assert_array_equal(ours.images[10].get_array(), images[10])


def test_pictures_of_one_colour_or_nan_can_be_shown() -> None:
    assert (plots.displayable(np.full((2, 3, 3, 3), 7.0)) == 0).all()
    broken = np.full((1, 2, 2, 3), np.nan)
    broken[0, 0, 0] = 1
    np.testing.assert_array_equal(plots.displayable(broken)[0, :, :, 0], [[1, 0], [0, 0]])


def test_importing_costs_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it raises
    assert "curves" in runpy.run_path(str(plots.__file__))


def test_names_that_are_no_utf8_are_drawn(tmp_path: pathlib.Path) -> None:
    plots.confusion(np.eye(3, dtype=int), ("chien_\udce9t\udce9", "\ud800", "猫"), tmp_path / "a.png")
    many = ["\udcff", *map(str, range(plots.MAX_MATRIX_CLASSES))]
    plots.confusion(np.ones((len(many), len(many)), int), many, tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size and (tmp_path / "b.png").stat().st_size


def test_a_picture_takes_the_place_of_a_link_and_leaves_its_target(tmp_path: pathlib.Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "curves.png").symlink_to(tmp_path / "victim")
    plots.curves([{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": 0.5}], tmp_path / "curves.png")
    assert (tmp_path / "victim").read_text() == "mine" and not (tmp_path / "curves.png").is_symlink()
