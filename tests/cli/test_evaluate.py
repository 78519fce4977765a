"""``evaluate``: the run's own numbers again, other data, other checkpoints."""

import json
import shutil

from vit_jax.cli import main


def metrics(path):
    found = json.loads(path.read_text())
    return found.pop("checkpoint"), {k.removeprefix("val/"): v for k, v in found.items()}


def test_the_numbers_are_those_of_the_run(run, tmp_path, capsys):
    assert main(["evaluate", "--workdir", str(run.workdir), "--json", str(tmp_path / "x.json")]) == 0
    checkpoint, found = metrics(tmp_path / "x.json")
    assert checkpoint == str(run.workdir / "checkpoints" / "3")
    trained = json.loads((run.workdir / "results.json").read_text())["metrics"]
    assert found == trained
    again = json.loads((run.workdir / "evaluation" / "results.json").read_text())
    assert again["metrics"] == trained and again["checkpoint"] == checkpoint
    assert (run.workdir / "evaluation" / "confusion.png").exists()
    out = capsys.readouterr().out
    assert "val/accuracy" in out and checkpoint in out


def test_other_data_and_json_on_the_terminal(run, capsys):
    argv = ["evaluate", "--workdir", str(run.workdir), "--json", "-", f"--config.data.val=folder:{run.images}"]
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["val/examples"] == 30


def test_data_of_other_classes_is_refused(run, capsys):
    assert main(["evaluate", "--workdir", str(run.workdir), "--config.data.val=digits"]) == 1
    assert "unknown in training" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there(run, capsys):
    argv = ["evaluate", "--workdir", str(run.workdir), "--checkpoint", str(run.workdir / "checkpoints" / "9")]
    assert main(argv) == 1
    assert "no such folder; give a workdir or WORKDIR/checkpoints/STEP" in capsys.readouterr().err


def test_a_checkpoint_of_another_model(run, capsys):
    assert main(["evaluate", "--workdir", str(run.workdir), "--config.model.width=32"]) == 1
    assert "has the shape" in capsys.readouterr().err.splitlines()[-1]


def test_data_without_some_classes(run, tmp_path, capsys):
    """A test set with one of the classes."""
    shutil.copytree(run.images / "bee", tmp_path / "some/bee")
    argv = ["evaluate", "--workdir", str(run.workdir), "--json", "-", f"--config.data.val=folder:{tmp_path}/some"]
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["val/examples"] == 10


def test_the_training_data_is_not_needed(run, tmp_path, capsys):
    images = shutil.copytree(run.images, tmp_path / "images")
    gone = ["--config.data.path=folder:/no/longer/here", f"--config.data.val=folder:{images}"]
    assert main(["evaluate", "--workdir", str(run.workdir), "--json", "-", *gone]) == 0
    elsewhere = json.loads(capsys.readouterr().out)
    assert main(["evaluate", "--workdir", str(run.workdir), "--json", "-", gone[1]]) == 0
    assert json.loads(capsys.readouterr().out) == elsewhere and elsewhere["val/examples"] == 30
    probe = "--config.evaluators=('classify', 'knn')"  # which is fitted to the training data
    assert main(["evaluate", "--workdir", str(run.workdir), *gone, probe]) == 1
    assert "'folder:/no/longer/here' does not exist" in capsys.readouterr().err


def test_images_of_another_size(run, capsys, caplog):
    """Positions are resized as they are where a run starts from another one."""
    argv = [
        "evaluate",
        "--workdir",
        str(run.workdir),
        "--json",
        "-",
        "--config.augment.size=16",
        "--config.data.canvas=16",
    ]
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["val/examples"] == 8
    assert "was trained with images of 8 px and is evaluated with 16 px: " in caplog.text and "position" in caplog.text
    assert main([*argv, "--config.model.width=32"]) == 1
    assert "has the shape" in capsys.readouterr().err.splitlines()[-1]
