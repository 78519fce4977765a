"""``predict``: class names of images, on the terminal and as JSON."""

import json

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
