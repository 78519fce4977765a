"""``predict``: class names, captions or ranked texts of images, on the terminal and as JSON."""

import csv
import json
import os
import shutil

import pyarrow.parquet
import pytest

from vit_jax.cli import main


def test_predictions(run, tmp_path, capsys):
    paths = [str(run.images / "ant" / "0.png"), str(run.images / "bee")]
    assert main(["predict", "--workdir", str(run.workdir), "--json", str(tmp_path / "x.json"), *paths]) == 0
    rows = json.loads((tmp_path / "x.json").read_text())
    assert [r["path"] for r in rows] == [paths[0], *(f"{paths[1]}/{i}.png" for i in range(10))]
    for row in rows:
        assert {p["class"] for p in row["predictions"]} == {"ant", "bee", "cat"}
        assert abs(sum(p["probability"] for p in row["predictions"]) - 1) < 1e-5
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    best = rows[0]["predictions"][0]
    assert lines[0].startswith(f"{paths[0]}: {best['class']} {best['probability']:.1%}  ")


def test_an_unreadable_file_fails_and_the_others_go_on(run, tmp_path, capsys):
    (tmp_path / "torn.png").write_bytes((run.images / "ant" / "1.png").read_bytes()[:60])
    checkpoint = str(run.workdir / "checkpoints" / "3")
    paths = [str(tmp_path / "torn.png"), str(run.images / "ant" / "0.png")]
    assert main(["predict", "--checkpoint", checkpoint, "--top", "1", "--json", "-", *paths]) == 1
    bad, good = json.loads(capsys.readouterr().out)
    assert "torn.png is unreadable or truncated" in bad["error"]
    assert len(good["predictions"]) == 1


def test_texts_and_captions(run, coca, tmp_path, capsys):
    image = str(run.images / "ant" / "0.png")
    argv = ["predict", "--workdir", str(coca), "--json", str(tmp_path / "x.json"), image]
    assert main([*argv, "--text", "a cat", "a dog", "a cat that is cut"]) == 0
    (row,) = json.loads((tmp_path / "x.json").read_text())
    assert {p["text"] for p in row["predictions"]} == {"a cat", "a dog", "a cat that is cut"}
    assert abs(sum(p["probability"] for p in row["predictions"]) - 1) < 1e-6
    best = row["predictions"][0]
    assert capsys.readouterr().out.startswith(f"{image}: {best['text']} {best['probability']:.1%}  ")
    assert main([*argv, "--captions", "--decoder", "beam(2)"]) == 0
    (row,) = json.loads((tmp_path / "x.json").read_text())
    assert set(row) == {"path", "caption", "log_p"} and row["log_p"] < 0
    assert capsys.readouterr().out == f"{image}: {row['caption']}\n"


@pytest.mark.parametrize(
    ("which", "argv", "status", "text"),
    [
        ("coca", [], 1, "an image-text model has no classes of its own; name them: --text 'a cat' 'a dog'."),
        ("run", ["--captions"], 1, "a classifier writes no captions; leave out --captions, or take a CoCa"),
        ("run", ["--text", "a cat"], 1, "a classifier knows its own classes only; leave out --text"),
        ("coca", ["--decoder", "beam(2)"], 2, "--decoder beam(2) says how captions are written; add --captions."),
        ("coca", ["--captions", "--decoder", "bean"], 2, "'bean'; did you mean 'beam'"),
    ],
)
def test_the_wrong_question_is_one_sentence(run, coca, capsys, which, argv, status, text):
    workdir = {"coca": coca, "run": run.workdir}[which]
    assert main(["predict", "--workdir", str(workdir), str(run.images / "ant" / "0.png"), *argv]) == status
    out, err = capsys.readouterr()
    assert text in err and err.count("\n") == 1 and out == ""


def test_texts_or_captions(capsys):
    with pytest.raises(SystemExit) as e:
        main(["predict", "--workdir", "w", "x.png", "--captions", "--text", "a cat"])
    assert e.value.code == 2 and "not allowed with argument" in capsys.readouterr().err


def test_pipes_devices_and_limits(run, tmp_path, capsys):
    """Named or found in a folder: nothing waits, nothing is read without end, and a limit has a key."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    shutil.copy(run.images / "ant/0.png", tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"Mac OS X")
    (tmp_path / "album.png").mkdir()
    argv = ["predict", "--workdir", str(run.workdir), "--json", "-"]
    assert main([*argv, str(tmp_path)]) == 0
    assert [row["path"] for row in json.loads(capsys.readouterr().out)] == [str(tmp_path / "a.png")]
    assert main([*argv, str(tmp_path / "pipe.png"), "/dev/zero", str(tmp_path / "a.png")]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert ["no regular file" in row.get("error", "") for row in rows] == [True, True, False]
    assert main([*argv, str(tmp_path / "a.png"), "--max_pixels", "63"]) == 1
    assert "8 x 8 pixels, more than 63" in capsys.readouterr().out
    assert main([*argv, str(tmp_path / "a.png"), "--max_pixels", "64"]) == 0


def test_a_table_with_labels(run, tmp_path, capsys):
    """One row an image, its label where the source has them; what fits no row is empty."""
    argv = ["predict", "--workdir", str(run.workdir), "--top", "2"]
    assert main([*argv, f"folder:{run.images}", "--table", str(tmp_path / "t.csv")]) == 0
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]] == ["path", "label", "class_1", "probability_1", "class_2", "probability_2"]
    assert [row["path"] for row in rows] == sorted(str(p) for p in run.images.rglob("*.png"))
    assert {row["label"] for row in rows} == {"ant", "bee", "cat"} and len(rows) == 30
    assert all(f"/{row['label']}/" in row["path"] for row in rows)
    right = sum(row["class_1"] == row["label"] for row in rows)
    said = f"30 rows in {tmp_path / 't.csv'}; {right} of 30 name their label first\n"
    assert capsys.readouterr().out == said  # a table is not printed, too
    (tmp_path / "torn.png").write_bytes(b"no image")
    paths = [str(tmp_path / "torn.png"), str(run.images / "ant/0.png")]
    assert main([*argv, *paths, "--table", str(tmp_path / "t.parquet")]) == 1
    unreadable, counted = capsys.readouterr().out.splitlines()
    assert unreadable.startswith(f"{paths[0]}: ") and counted == f"2 rows in {tmp_path / 't.parquet'}"
    torn, whole = pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert torn["class_1"] is None and "torn.png" in torn["error"] and whole["error"] is None
    assert [*whole] == ["path", "class_1", "probability_1", "class_2", "probability_2", "error"]
    assert whole["class_1"] == rows[0]["class_1"]
    assert whole["probability_1"] == pytest.approx(float(rows[0]["probability_1"]), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [("t.txt", 2, "is neither .csv nor .parquet"), ("gone/t.csv", 1, "cannot be written: there is no folder")],
)
def test_a_table_that_cannot_be(run, tmp_path, capsys, name, status, says):
    argv = ["predict", "--workdir", "/no/run", str(run.images), "--table", str(tmp_path / name)]
    assert main(argv) == status
    assert says in capsys.readouterr().err
