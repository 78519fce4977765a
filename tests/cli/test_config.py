"""``config``: the table of keys, and the whole configuration that ``--config`` takes."""

import json

import jax
import numpy as np
import pytest

import vit_jax as vj
from vit_jax import config, configfile, metrics
from vit_jax.cli import main
from vit_jax.train.config import TrainConfig


def test_the_table(capsys):
    assert main(["config", "digits", "--config.optim.lr=0.5", "--config.model.activation=topk(24)"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line[1:].split()[0]: line for line in lines}
    assert len(rows) == len(lines) > 80
    assert rows["optim.lr"].split(maxsplit=3) == ["*optim.lr", "0.5", "number", "peak learning rate."]
    assert rows["model.activation"].split()[:2] == ["*model.activation", "topk(24)"]
    assert rows["accumulate"].startswith(" accumulate ") and "integer from 1 to 1,048,576" in rows["accumulate"]
    assert "affine(rotate=15.0" in rows["augment.train"] and "adamw|sgd|adafactor|lion" in rows["optim.optimizer"]


def test_the_recipes(capsys):
    assert main(["config"]) == 0
    found = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in found] == configfile.recipes()
    assert dict(found)["finetune"].startswith("Any model on your own images")


WHOLE = [name for name in configfile.recipes() if name != "finetune_clip"]  # whose values are those of weights


@pytest.mark.first(4)
@pytest.mark.parametrize("name", [*WHOLE, "digits:sam", "clip:clip_vit_b32", "imagenet:mixer_b16,sam"])
def test_the_whole_configuration_is_the_same(name, tmp_path, capsys):
    """Written, read and parsed it is equal, whatever a default will be."""
    file = tmp_path / "whole.json"
    assert main(["config", name, "--json", str(file)]) == 0
    raw = config.load(name)
    raw["data"] = {"path": "", **raw["data"]}
    parsed = config.parse(TrainConfig, raw)
    assert config.parse(TrainConfig, config.load(str(file))) == parsed
    assert main(["config", str(file), "--json", "-"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.rindex("\n{") :] if "\n{" in out else out) == json.loads(file.read_text())


@pytest.mark.thorough
def test_it_trains_identically(run, tmp_path):
    """Bit for bit, and the workdir of the one is resumed with the other."""
    file, again = tmp_path / "whole.json", tmp_path / "again"
    assert main(["config", str(run.config), "--json", str(file)]) == 0
    assert main(["train", "--config", str(file), "--workdir", str(again)]) == 0
    first, second = (vj.load(folder).params for folder in (run.workdir, again))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    rows = [metrics.read(folder) for folder in (run.workdir, again)]
    losses = [[row["train/loss"] for row in log if "train/loss" in row] for log in rows]
    assert losses[0] == losses[1] != []
    assert main(["train", "--config", str(run.config), "--workdir", str(again)]) == 0
    assert main(["train", "--config", str(again), "--workdir", str(tmp_path / "third"), "--dry_run"]) == 0


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["digit"], "no recipe 'digit'; did you mean 'digits'"),
        (["digits", "--config.optim.lrr=1"], "unknown key 'config.optim.lrr'"),
        (["digits", "--config.data=3"], "config.data=3 is of type int, expected the fields of DataConfig"),
        (["finetune:vit_b61"], "unknown config.model 'vit_b61'; did you mean"),
    ],
)
def test_mistakes(argv, says, capsys):
    assert main(["config", *argv]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
