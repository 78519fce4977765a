"""``evaluate``: the run's own numbers again, other data, other checkpoints."""

import json
import shutil

import pytest

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
    probe = "--config.evaluators=('knn',)"  # which is fitted to the training data, and has not the metric of best
    assert main(["evaluate", "--workdir", str(run.workdir), *gone, probe]) == 1
    assert "'folder:/no/longer/here' does not exist" in capsys.readouterr().err
    assert main(["evaluate", "--workdir", str(run.workdir), "--json", "-", probe]) == 0
    assert "val/knn/accuracy" in json.loads(capsys.readouterr().out)


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


def test_weights_of_others_on_a_folder(run, tmp_path, capsys):
    """One command from a file to a number: no run, no training data."""
    weights = str(tmp_path / "w.safetensors")
    assert main(["convert", str(run.workdir), weights, "--to", "timm"]) == 0
    argv = ["evaluate", "--checkpoint", weights, "--data", f"folder:{run.images}", "--json", "-"]
    capsys.readouterr()
    assert main([*argv, "--evaluators", "linear_probe", "knn(k=3)", "classify", "--output", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["val/examples"] == found["val/knn/examples"] == 30 and found["checkpoint"] == weights
    assert found["val/linear_probe/accuracy"] > 0.5
    assert json.loads((tmp_path / "out/results.json").read_text())["metrics"]["accuracy"] == found["val/accuracy"]
    own = ["evaluate", "--workdir", str(run.workdir), "--json", "-"]
    assert main([*own, "--data", f"folder:{run.images}", "--output", str(tmp_path / "own")]) == 0
    same = json.loads(capsys.readouterr().out)
    assert same["val/accuracy"] == found["val/accuracy"] and same["val/examples"] == 30


def test_captions_are_retrieved_in_one_command(run, coca, tmp_path, capsys):
    files = [run.images / name / "0.png" for name in ("ant", "bee", "cat")]
    (tmp_path / "p.csv").write_text("".join(["path,caption\n", *(f"{f},the {f.parent.name}\n" for f in files)]))
    assert main(["evaluate", "--checkpoint", str(coca), "--data", f"csv:{tmp_path}/p.csv", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["val/images"] == found["val/captions"] == 3 and found["val/i2t_r5"] == 1


def test_zero_shot_in_one_command(run, coca, capsys):
    """The folder's class names are the classifier."""
    assert main(["evaluate", "--checkpoint", str(coca), "--data", f"folder:{run.images}", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["val/zero_shot/examples"] == 30 and 0 <= found["val/zero_shot/accuracy"] <= 1


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "name the --workdir of a run, or weights: --checkpoint X --data folder:/my/images."),
        (["--checkpoint", "w.npz"], "name the --workdir of a run, or weights"),
        (["--workdir", "w", "--size", "8"], "--evaluators, --size and --output go with --data"),
        (["--workdir", "w", "--checkpoint", "w/checkpoints/1", "--best"], "--best and --checkpoint name two"),
        (["--workdir", "w", "--data", "digits", "--config.seed=1"], "give a place, and no changes"),
    ],
)
def test_what_does_not_go_together(argv, says, capsys):
    assert main(["evaluate", *argv]) == 2
    assert says in capsys.readouterr().err


def test_the_best_checkpoint(run, tmp_path, capsys):
    """By the metric of the configuration, which the newest need not have; every command that reads a run takes it."""
    workdir = shutil.copytree(run.workdir, tmp_path / "run")
    newest = workdir / "checkpoints/3"
    better = shutil.copytree(newest, workdir / "checkpoints/2")
    kept = json.loads((newest / "metrics/metrics").read_text())
    (better / "metrics/metrics").write_text(json.dumps(kept | {"val/accuracy": 1.0}))
    (newest / "metrics/metrics").write_text(json.dumps(kept | {"val/accuracy": 0.5}))
    image, where = str(run.images / "ant/0.png"), ["--workdir", str(workdir), "--best"]
    assert main(["evaluate", *where, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"] == str(better)
    assert main(["predict", *where, image]) == 0
    capsys.readouterr()
    assert main(["convert", str(workdir), str(tmp_path / "w.npz"), "--to", "npz", "--best"]) == 0
    assert str(better) in capsys.readouterr().out
    assert main(["export", *where, "--to", "safetensors", str(tmp_path / "out")]) == 0
    for folder in (newest, better):
        (folder / "metrics/metrics").unlink()
    assert main(["predict", *where, image]) == 1
    assert "was evaluated by 'val/accuracy', so none of them is known as the best" in capsys.readouterr().err
