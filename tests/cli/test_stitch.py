"""``vit_jax stitch``: from runs of ViTs to a network that trains."""

import pytest

import vit_jax as vj
from vit_jax.cli import main


@pytest.fixture(scope="module")
def anchors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("anchors")
    for name, width in (("small", 8), ("wide", 16)):
        fields = {"patch": 4, "width": width, "depth": 2, "heads": 2, "mlp_dim": 16, "num_classes": 10}
        vj.convert(vj.create("vit", size=8, **fields), folder / name, to="vit_jax")
    return folder


def test_mistakes(anchors, tmp_path, capsys):
    command = ["stitch", str(anchors / "small"), "--data", "digits", "--output", str(tmp_path / "net")]
    assert main(command) == 1
    assert "two or three anchors, not 1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_is_made_and_trained(anchors, tmp_path, capsys):
    net, run = str(tmp_path / "net"), str(tmp_path / "run")
    made = ["stitch", str(anchors / "wide"), str(anchors / "small"), "--data", "digits", "--images", "20"]
    assert main([*made, "--output", net]) == 0
    assert "6 forms of" in capsys.readouterr().out
    assert vj.load(net).model.first.width == 8
    keys = {"data.path": "digits", "init": net, "objective": "drawn(classify)", "duration": "4 steps", "batch_size": 16}
    keys |= {"evaluators": "('classify', 'forms')", "plots": False}
    recipe = ["train", "--config", "finetune:init", "--workdir", run]
    assert main([*recipe, *(f"--config.{k}={v}" for k, v in keys.items())]) == 0
    assert "val/stitch_5/accuracy" in capsys.readouterr().out
    assert main(["evaluate", "--workdir", run, "--config.model.stitch=2", "--config.evaluators=classify"]) == 0
