"""The contact sheet, found while batches pass, against a search among all images at once."""

import pathlib
import types
from typing import Any

import numpy as np
import pytest

from vit_jax.report.contact_sheet import MISTAKES, NEAREST, QUERIES, ContactSheet, Mistakes

ENCODER = types.SimpleNamespace(decode=lambda ids: f"caption {ids[0]}")


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def parts(image: np.ndarray, text: np.ndarray, captions: np.ndarray, size: int) -> Any:
    """Batches of pictures (pixels: 10 * index) with a masked first row, and the embeddings of their valid rows."""
    for start in range(0, len(image), size):
        at = np.arange(start, min(start + size, len(image)))
        pixels = np.concatenate([[-1], 10 * at]).astype(np.float32)
        batch = {
            "image": np.broadcast_to(pixels[:, None, None, None], (len(pixels), 2, 2, 3)),
            "text": np.concatenate([[-1], at]).astype(np.int32)[:, None, None],
        }
        found = {"row": 1 + np.arange(len(at)), "index": at.astype(np.uint32)}
        yield batch, found | {"image": image[at], "text": text[at], "captions": captions[at]}


@pytest.mark.parametrize("size", [4, 7, 50])
def test_against_a_search_among_all(size: int, rng: np.random.Generator) -> None:
    image, text = unit(rng.normal(size=(50, 6))), unit(rng.normal(size=(50, 2, 6)))
    captions = np.array([0, 1, 2, 1, 1, 0, 2, *rng.integers(0, 3, 43)])
    sheet = None
    for batch, found in parts(image, text, captions, size):
        sheet = sheet or ContactSheet.start(batch, found, ENCODER)
        assert sheet is not None
        sheet.update(batch, found, sheet.text @ found["image"].T)
        assert len(sheet.images) <= QUERIES * (NEAREST + 1)
    assert sheet is not None
    with_text = np.flatnonzero(captions[:size])
    assert len(sheet.own) == min(QUERIES, len(with_text)) and set(sheet.own) <= set(with_text.tolist())
    assert {sheet.own[0], sheet.own[-1]} == {with_text[0], with_text[-1]}  # from all over the batch
    sheet.rank = np.arange(len(sheet.own)) + 0.5
    rows = sheet.rows()
    assert [row["rank"] for row in rows] == sheet.rank.tolist()
    for row in rows:
        order = np.argsort(-image.astype(np.float64) @ text[row["image"], 0].astype(np.float64))
        assert row["nearest"] == order[:NEAREST].tolist() and row["caption"] == f"caption {row['image']}"
    assert set(sheet.images) == {i for row in rows for i in (row["image"], *row["nearest"])}
    assert all((picture == 10 * i).all() for i, picture in sheet.images.items())


def test_no_caption_no_sheet() -> None:
    one = np.ones((3, 1), np.float32)
    ((batch, found),) = parts(one, one[:, None], np.zeros(3, np.int64), 3)
    assert ContactSheet.start(batch, found, ENCODER) is None


def test_draw(tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
    image = unit(rng.normal(size=(3, 4)))
    ((batch, found),) = parts(image, image[:, None], np.ones(3, np.int64), 3)
    sheet = ContactSheet.start(batch, found, ENCODER)
    assert sheet is not None
    sheet.update(batch, found, sheet.text @ found["image"].T)
    sheet.rank = np.ones(3)
    assert [row["nearest"][0] for row in sheet.rows()] == [0, 1, 2]
    assert [len(row["nearest"]) for row in sheet.rows()] == [3] * 3  # there are no more
    sheet.draw(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


@pytest.mark.parametrize("size", [7, 60, 200])
def test_the_most_confident_mistakes(size: int, rng: np.random.Generator, tmp_path: pathlib.Path) -> None:
    """Those of a search among all at once; no number (NaN) is none of them, and an older picture does not stay."""
    label, prediction = rng.integers(0, 3, (2, 200))
    confidence = rng.permutation(200).astype(np.float32)
    confidence[::50] = np.nan
    found = Mistakes()
    for batch, rows in parts(np.zeros((200, 1)), np.zeros((200, 1, 1)), np.ones(200), size):
        at = rows["index"]
        own = {"label": label[at], "prediction": prediction[at], "confidence": confidence[at]}
        found.update(batch, {"row": rows["row"], **own})
        assert len(found.rows) <= MISTAKES
    one = np.flatnonzero((label != prediction) & ~np.isnan(confidence))
    best = one[np.argsort(-confidence[one])][:MISTAKES]
    assert [row.image.mean() / 10 for row in found.rows] == best.tolist()
    assert [(row.label, row.prediction) for row in found.rows] == list(zip(label[best], prediction[best], strict=True))
    found.draw(("a", "b", "$c_"), tmp_path / "mistakes.png")
    assert (tmp_path / "mistakes.png").stat().st_size > 1000
    Mistakes().draw((), tmp_path / "mistakes.png")
    assert not (tmp_path / "mistakes.png").exists()
