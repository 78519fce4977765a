"""Arguments that several commands have."""

import argparse

import numpy as np
import pytest

from vit_jax.cli import main, options, parse
from vit_jax.predict import load


def test_weights_are_of_a_run_or_a_checkpoint_and_a_value_has_the_type_of_its_default(capsys):
    parser = argparse.ArgumentParser()
    options.weights(parser)
    options.value(parser, "top", 5, "classes to name", metavar="K")
    options.value(parser, "loss", "softmax", "which")
    options.json(parser, "predictions")
    args = parser.parse_args(["--checkpoint", "x", "--top", "3", "--json", "-", "--loss", "sigmoid"])
    assert (args.workdir, args.checkpoint, args.top, args.json, args.loss) == (None, "x", 3, "-", "sigmoid")
    for wrong in ([], ["--workdir", "a", "--checkpoint", "b"], ["--workdir", "a", "--top", "x"]):
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)
    capsys.readouterr()
    text = " ".join(parser.format_help().split())
    assert "--top K classes to name (default 5)" in text and "write the predictions there" in text


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--top", "0"], "argument --top: 0 is not allowed; give a number from 1 to 20"),
        (["--top=-1"], "argument --top: -1 is not allowed"),
        (["--top", "21"], "argument --top: 21 is not allowed"),
        (["--top", "9" * 5000], "is no whole number; give a number from 1 to 20"),
        (["--top", "1e3"], "argument --top: '1e3' is no whole number"),
        (["--top", "nan"], "argument --top: 'nan' is no whole number"),
        (["--top", ""], "argument --top: '' is no whole number"),
        (["--workdir", ""], "argument --workdir: is empty; is a variable of the shell not set?"),
        (["--checkpoint", " "], "argument --checkpoint: is empty"),
        (["--workdir", "a", "--json", ""], "argument --json: is empty"),
        (["--workdir", "a\0b"], "argument --workdir: 'a\\x00b' holds a NUL character"),
        (["--workdir", "a/" + "é" * 128], "holds a name of more than 255 bytes"),
        (["--loss", ""], "argument --loss: is empty"),
    ],
)
def test_what_no_argument_may_be(capsys, argv, says):
    parser = argparse.ArgumentParser()
    options.weights(parser)
    options.value(parser, "top", 5, "classes to name", 20)
    options.value(parser, "loss", "softmax", "which")
    options.json(parser, "predictions")
    with pytest.raises(SystemExit) as e:
        parser.parse_args(argv)
    assert e.value.code == 2 and says in capsys.readouterr().err


def test_paths_and_addresses_may_be_long():
    for text in ("é" * 127, "/".join(["a" * 200] * 9), "https://x.y/a?token=" + "a" * 400, "-", ".", "a b", "\udcff"):
        assert options.path(text) == text
    assert options.number(0, 3)("0") == 0 and options.number(0, 3)(" 3 ") == 3


def test_what_the_model_is(run, tmp_path, capsys):
    """Of weights whose shapes do not say: other heads compute otherwise."""
    assert main(["convert", str(run.workdir), str(tmp_path / "w.safetensors"), "--to", "timm"]) == 0
    found = []
    for i, heads in enumerate((2, 4)):
        argv = ["embed", "--checkpoint", str(tmp_path / "w.safetensors"), "--model", f"vit(heads={heads})"]
        assert main([*argv, str(run.images / "ant/0.png"), "--output", str(tmp_path / f"{i}.npy")]) == 0
        found.append(np.load(tmp_path / f"{i}.npy"))
    assert not np.allclose(*found, atol=1e-5)
    np.testing.assert_allclose(
        found[0], load(run.workdir).embed(load(run.workdir).image(run.images / "ant/0.png")[None]), atol=1e-5
    )
    capsys.readouterr()
    where = ["--checkpoint", str(tmp_path / "w.safetensors"), "--model", "vit_b61"]
    for command in (["predict", "a.png"], ["evaluate", "--data", "digits"]):
        assert main([command[0], *where, *command[1:]]) == 2 and "did you mean 'vit_b16'" in capsys.readouterr().err
    for other in (["--workdir", str(run.workdir)], ["--workdir", str(run.workdir), "--data", "digits"]):
        assert (
            main(["evaluate", *other, "--model", "vit_b16"]) == 2 and "knows its own model" in capsys.readouterr().err
        )


@pytest.mark.parametrize("command", ["predict", "embed", "evaluate"])
def test_a_finished_run_may_compute_otherwise(command):
    argv = [command, "--workdir", "x", "--config.model.reduce=merge(13)", "--imports", "mine.py"]
    more = {"predict": ["a.png"], "embed": ["--output", "x.npy"]}
    found = options.changes(parse(argv + more.get(command, [])))
    assert found == {"model.reduce": "merge(13)", "imports": ("mine.py",)}
