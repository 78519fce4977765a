"""``vit_jax push``, as far as a dry run."""

from vit_jax.cli import main


def test_a_dry_run(run, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # nothing is asked of it
    assert main(["push", str(run.workdir), "hf://me/x", "--best", "--dry_run", "--license", "mit"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("README.md  0.00 MiB\nconfig.json") and "license: mit" in out and "note: timm" in out
    assert out.endswith("nothing was uploaded\n") and str(run.workdir.parent) not in out and "folder:images" in out


def test_the_card_alone(run, capsys, tmp_path):
    command = ["push", str(run.workdir), "hf://me/x", "--to", "vit_jax", "--dataset", "me/data"]
    assert main([*command, "--card_only", str(tmp_path / "card")]) == 0
    text = (tmp_path / "card" / "README.md").read_text()
    assert "library_name: vit_jax" in text and "- me/data" in text
    assert str(tmp_path / "card" / "README.md") in capsys.readouterr().out


def test_mistakes(run, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main(["push", str(run.workdir), "hf://me/x"]) == 1
    assert "hf auth login" in capsys.readouterr().err
    assert main(["push", str(run.workdir), "me/x", "--dry_run"]) == 2
    assert "'me/x' is no repository of the hub; write hf://ORG/NAME." in capsys.readouterr().err
