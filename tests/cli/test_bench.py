"""``bench``: what is printed and written; the measurements are tested in ``tests/bench``."""

import dataclasses
import json

import jax
import pytest

from tests.bench.here import Here
from vit_jax import models
from vit_jax.bench import compile, memory, sides, tpu
from vit_jax.bench.kernels import CASES
from vit_jax.bench.tpu import Estimate
from vit_jax.cli import main
from vit_jax.cli.bench import table
from vit_jax.config import Variant
from vit_jax.plan.account import Entry

SIZES = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "num_classes": 3}


def test_models(monkeypatch, capsys):
    monkeypatch.setitem(models.NAMES, "tiny", Variant(models.ViT, SIZES))
    monkeypatch.setattr(sides, "Side", Here)
    run = ["bench", "forward", "--model", "tiny", "--size", "8", "--batch", "2", "--rounds", "1"]
    with jax.numpy_dtype_promotion("standard"):  # flax's own layers promote
        assert main([*run, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [
        "processor", "threads", "model",
        "vit_jax images/s", "plain flax bfloat16 images/s", "plain flax float32 images/s",
        "vit_jax core seconds/step", "plain flax bfloat16 core seconds/step", "plain flax float32 core seconds/step",
        "times faster (median)", "times faster (10th percentile)",
        "times faster (90th percentile)", "share of one large product's speed",
    ]  # fmt: skip
    assert main([*run, "--linear", "low_rank(2)"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == f"{'model':34s} tiny bfloat16, 2 images of 8 px" and lines[3].startswith("low_rank(2) images/s ")
    assert lines[-1].startswith("share of the dense model's parameters ")
    run[3] = "tiny(reduce=merge(2))"
    assert main([*run, "--against", "bare", "--json", "-"]) == 0
    assert list(json.loads(capsys.readouterr().out))[3:5] == ["tiny(reduce=merge(2)) images/s", "tiny images/s"]
    run[3] = "tiny"
    assert main([*run, "--against", "bare"]) == 2
    assert "leaves out fields, and tiny names none" in capsys.readouterr().err
    assert main([*run, "--linear", "low_rnak(2)"]) == 2
    assert "--linear" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "said"), [
    (["vit_r50_b16"], "--against flax compares ViTs, and 'vit_r50_b16' is none, or no plain one; take vit_b16"),
    (["mixer_b16", "--linear", "monarch(4)"], "--linear compares ViTs, and 'mixer_b16' is none; take vit_b16"),
    (["m2_vit_ti16", "--against", "timm"], "models that timm has, and 'm2_vit_ti16' is none; take vit_b16 or mixer"),
])  # fmt: skip
def test_what_there_is_no_rival_of(capsys, model, said):
    assert main(["bench", "train", "--model", *model]) == 1
    assert f"bench train {said}" in capsys.readouterr().err.replace("--against timm compares ", "")


def test_tables_of_layers_and_of_what_is_kept(monkeypatch, capsys, tmp_path):
    row = {"blocks": "scan", "layers": 12, "all s": 1 / 3}
    monkeypatch.setattr(compile, "compare", lambda *sizes, layers, rounds: [row | {"layers": n} for n in layers])
    assert main(["bench", "compile", "--layers", "12,48"]) == 0
    assert capsys.readouterr().out == "blocks  layers   all s\nscan        12  0.3333\nscan        48  0.3333\n"
    assert main(["bench", "compile", "--layers", "12;48"]) == 2
    assert "--layers '12;48': '12;48' is no whole number" in capsys.readouterr().err
    monkeypatch.setattr(
        memory, "compare", lambda *sizes, scan, rounds, saved: [{"MB": rounds, "scan": scan, "as": saved}]
    )
    for words, saved in (([], ["float"]), (["--saved", "float", "int8"], ["float", "int8"])):
        assert main(["bench", "memory", "--rounds", "0", "--scan", *words, "--json", str(tmp_path / "m.json")]) == 0
        assert json.loads((tmp_path / "m.json").read_text()) == [{"MB": 0, "scan": True, "as": saved}]
    for kind in ("compile", "memory"):
        monkeypatch.undo()
        assert main(["bench", kind, "--model", "clip_vit_b32"]) == 1
        assert f"bench {kind} takes models of images, and 'clip_vit_b32' is none" in capsys.readouterr().err


def test_breakdown(monkeypatch, capsys):
    monkeypatch.setitem(models.NAMES, "tiny", Variant(models.ViT, SIZES))
    run = ["bench", "forward", "--model", "tiny", "--size", "8", "--batch", "2", "--rounds", "2", "--breakdown"]
    assert main(run) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["kind", "ms"] and rows[-1].startswith("the whole step")
    with pytest.raises(SystemExit):
        main([*run, "--against", "timm"])


def test_input(capsys):
    assert main(["bench", "input", "--data", "fake:64x16x4", "--batch", "8", "--canvas", "16", "--rounds", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["data", "fake:64x16x4"] and lines[1].split()[0] == "processor"
    assert lines[3].startswith("loader images/s ") and float(lines[3].split()[-1]) > 0


def test_loss_alone(capsys):
    assert main(["bench", "loss", "--batch", "20", "--dim", "4", "--rounds", "1", "--alone"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["loss", "chunked", "chunked"] and float(lines[1].split()[-1]) > 0
    assert main(["bench", "loss", "--loss", "sigmoyd"]) == 2
    assert "unknown loss 'sigmoyd'; did you mean 'sigmoid'" in capsys.readouterr().err


@pytest.mark.first(1)
@pytest.mark.parametrize("backward", [[], ["--backward"]])
def test_kernels(capsys, tmp_path, backward):
    sizes = ["--inputs", "32", "--outputs", "64", "--rows", "3,8", "--rounds", "2"]
    plot = str(tmp_path / "x.png")
    assert main(["bench", "kernels", *sizes, *backward, "--json", str(tmp_path / "x.json"), "--plot", plot]) == 0
    rows = json.loads((tmp_path / "x.json").read_text())
    assert [(r["rows"], r["implementation"]) for r in rows] == [(n, k) for n in (3, 8) for k in ("xla", "dense")]
    assert rows[0]["GFLOP"] == pytest.approx((3 if backward else 1) * 2 * 3 * (4 * 8 * 8 + 4 * 16 * 8) / 1e9)
    assert all(r["error"] < 2e-2 and r["seconds"] > 0 for r in rows)
    assert len(capsys.readouterr().out.splitlines()) == 5 and (tmp_path / "x.png").stat().st_size > 5000


def test_wrong_kernels(capsys):
    assert main(["bench", "kernels", "--op", "monarc"]) == 2
    assert main(["bench", "kernels", "--rows", "a,b"]) == 2
    assert "--rows 'a,b': 'a' is no whole number" in capsys.readouterr().err


def test_the_help_names_every_operation(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "kernels", "--help"])
    text = capsys.readouterr().out
    assert all(op in text for op in CASES)


def test_a_line_a_row():
    keys = ("median", "10th percentile", "90th percentile")
    row = {f"times dense ({k})": v for k, v in zip(keys, (2.0, 1.5, 2.5), strict=True)}
    row |= {"rows": 197, "implementation": "xla", "seconds": 0.001, "dense seconds": 0.002, "GFLOP/s": 150, "GB/s": 3.0}
    head, line = table([row]).splitlines()
    assert head.split()[:3] == ["rows", "runs", "as"]
    assert line.split() == ["197", "xla", "1.000", "150", "3.0", "2.000", "2.00", "(1.50", "to", "2.50)"]


def test_tpu(monkeypatch, capsys, tmp_path):
    ours = Estimate("tiny", 1500, 100, 10, 1e-6, 0.4, 3, (Entry("mlp", "copy", 9, 0.0, 0, 0, 1),), (), ("Assumed.",))
    asked = []

    def compare(*what, **options):
        asked.append((*what[:2], what[-1], options))
        return [ours, dataclasses.replace(ours, name="tiny plain", cycles=3000)]

    monkeypatch.setattr(tpu, "compare", compare)
    run = ["bench", "tpu", "--model", "vit_ti16", "--chip", "v6e", "--train", "--against", "plain"]
    assert main([*run, "--plot", str(tmp_path / "a.png"), "--json", str(tmp_path / "a.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "Estimate of the TPU's compiler, no measurement: loss and gradient, 64 images of 224 px, bfloat16, one v6e chip"
    )
    assert (
        lines[-2:] == ["Assumed.", "tiny plain takes 2.00 times the cycles of tiny."] and (tmp_path / "a.png").exists()
    )
    assert asked == [("train", "vit_ti16", "v6e", {"batch": 64, "size": 224, "linear": None, "against": "plain"})]
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["times the cycles"] == 2.0 and [one["cycles"] for one in found["models"]] == [1500, 3000]
    assert main(["bench", "tpu", "--against", "dense"]) == 2
    assert "--linear, which is not given" in capsys.readouterr().err
