"""``embed``: files that other programs read back, whole or not at all."""

import json
import os
import pathlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from vit_jax.cli import main
from vit_jax.predict import load


def embed(capsys, *argv):
    status = main(["embed", *map(str, argv)])
    return status, *capsys.readouterr()


@pytest.mark.thorough
def test_images_and_texts_as_npy(run, coca, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("one\n\n  two words \n", encoding="utf-8")
    argv = ("--workdir", coca, run.images / "ant" / "0.png", run.images / "bee", "--output", tmp_path / "x.npy")
    status, out, err = embed(capsys, *argv, "--text", "a cat", tmp_path / "texts.txt", "über")
    assert (status, out) == (0, f"{tmp_path / 'x.npy'}: float32[15, 16], 11 images and 4 texts, 0 images left out\n")
    got, rows = np.load(tmp_path / "x.npy"), json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    files = [str(run.images / "ant" / "0.png"), *(str(run.images / "bee" / f"{i}.png") for i in range(10))]
    texts = ["a cat", "one", "two words", "über"]
    assert rows == [*({"path": f} for f in files), *({"text": t} for t in texts)]
    assert got.dtype == np.float32 and got.shape == (15, 16)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, rtol=1e-5)
    model = load(coca)
    images = model.embed(np.stack([model.image(f) for f in files]))
    np.testing.assert_allclose(got, np.concatenate([images, model.embed_texts(texts)]), atol=1e-5)
    assert sorted(os.listdir(tmp_path)) == ["texts.txt", "x.json", "x.npy"]
    before = (tmp_path / "x.npy").read_bytes()
    for name in ("x.npy", "x.json"):
        status, out, err = embed(capsys, *argv)
        assert (status, out) == (1, "") and f"{name}' exists already; name a new file." in err
        (tmp_path / "x.npy").unlink(missing_ok=True)
    assert len(before) > 15 * 16 * 4


def test_parquet(run, coca, tmp_path, capsys):
    argv = ("--workdir", coca, "--text", "a cat", "a dog", "--output")
    assert embed(capsys, *argv, tmp_path / "texts.parquet")[0] == 0
    assert embed(capsys, run.images / "ant", *argv, tmp_path / "both.parquet")[0] == 0
    texts, both = (pyarrow.parquet.read_table(tmp_path / f"{name}.parquet") for name in ("texts", "both"))
    assert texts.column_names == ["text", "embedding"] and both.column_names == ["path", "text", "embedding"]
    assert texts.schema.field("embedding").type == pyarrow.list_(pyarrow.float32(), 16)
    assert both["path"].to_pylist() == [*(str(run.images / "ant" / f"{i}.png") for i in range(10)), None, None]
    assert both["text"].to_pylist() == [None] * 10 + ["a cat", "a dog"]
    vectors = np.array(both["embedding"].to_pylist(), np.float32)
    np.testing.assert_allclose(vectors[10:], np.array(texts["embedding"].to_pylist()), atol=1e-6)
    np.testing.assert_allclose(vectors[10:], load(coca).embed_texts(["a cat", "a dog"]), atol=1e-6)


def test_images_and_captions_of_a_source(run, coca, tmp_path, capsys):
    """Images first, then what is written about them; a model of images alone leaves captions out."""
    files = [run.images / "ant" / "0.png", run.images / "bee" / "1.png"]
    lines = [f"{files[0]},an ant", f"{files[1]},a bee", f"{files[1]},another bee"]
    (tmp_path / "pairs.csv").write_text("\n".join(["path,caption", *lines]) + "\n")
    source = f"csv:{tmp_path}/pairs.csv"
    assert embed(capsys, "--workdir", coca, source, "--output", tmp_path / "x.parquet")[0] == 0
    table = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    paths, texts = table["path"].to_pylist(), table["text"].to_pylist()
    assert [pathlib.Path(p).name for p in paths] == ["0.png", "1.png", "0.png", "1.png", "1.png"]
    assert texts == [None, None, "an ant", "a bee", "another bee"]
    model, vectors = load(coca), np.array(table["embedding"].to_pylist(), np.float32)
    np.testing.assert_allclose(vectors[2:], model.embed_texts(texts[2:]), atol=1e-5)
    np.testing.assert_allclose(vectors[:2], model.embed(np.stack([model.image(f) for f in files])), atol=1e-5)
    status, out, _ = embed(capsys, "--workdir", run.workdir, source, "--output", tmp_path / "y.npy")
    assert status == 0 and "2 images and 0 texts" in out
    assert {tuple(row) for row in json.loads((tmp_path / "y.json").read_text())} == {("path",)}


def test_a_classifier_gives_pooled_features_and_torn_images_are_named(run, tmp_path, capsys):
    (tmp_path / "torn.png").write_bytes(b"no image")
    good = run.images / "cat" / "3.png"
    argv = ("--workdir", run.workdir, tmp_path / "torn.png", good, "--output")
    status, out, err = embed(capsys, *argv, tmp_path / "x.npy")
    assert status == 1 and out.endswith("float32[1, 16], 1 images and 0 texts, 1 images left out\n")
    assert "torn.png is unreadable" in err and err.count("\n") == 1
    model = load(run.workdir)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), model.embed(model.image(good)[None]), atol=1e-5)
    assert json.loads((tmp_path / "x.json").read_text()) == [{"path": str(good)}]
    argv = ("--workdir", run.workdir, tmp_path / "torn.png", "--output", tmp_path / "y.npy")
    status, out, err = embed(capsys, *argv)
    assert (status, out) == (1, "") and "none of the 1 images could be read, and nothing was written" in err
    assert not list(tmp_path.glob("y*"))


@pytest.mark.parametrize(
    ("argv", "status", "text"),
    [
        (["--output", "{tmp}/x.csv", "a.png"], 2, "unknown kind of output file '.csv'; allowed: .npy, .parquet."),
        (["--output", "{tmp}/no/x.npy", "a.png"], 1, "there is no folder '{tmp}/no'"),
        (["--output", "{tmp}/x.npy"], 2, "there is nothing to embed; name images"),
        (["--output", "{tmp}/x.npy", "/no/a.png"], 1, "no such file or folder: '/no/a.png'"),
        (
            ["--output", "{tmp}/x.npy", "--text", "/no/a.txt"],
            1,
            "'/no/a.txt' cannot be read (No such file or directory)",
        ),
        (["--output", "{tmp}/x.npy", "--text", "{tmp}/empty.txt"], 1, "empty.txt' holds no text; write one a line."),
        (
            ["--output", "{tmp}/x.npy", "--text", "a cat"],
            1,
            "a model of images alone embeds no texts; leave out --text",
        ),
    ],
)
def test_mistakes_are_one_sentence(run, tmp_path, capsys, argv, status, text):
    (tmp_path / "empty.txt").write_text("\n \n")
    argv = [word.replace("{tmp}", str(tmp_path)) for word in argv]
    found, out, err = embed(capsys, "--workdir", run.workdir, *argv)
    assert (found, out) == (status, "") and err.count("\n") == 1
    assert text.replace("{tmp}", str(tmp_path)) in err and os.listdir(tmp_path) == ["empty.txt"]
