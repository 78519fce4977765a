"""``bench``: ratios within one run."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import pytest

from vit_jax import models
from vit_jax.cli import main


@pytest.fixture
def small(monkeypatch):
    tiny = functools.partial(models.ViT, patch=4, width=16, depth=1, heads=2, mlp_dim=32)
    monkeypatch.setattr(models, "create", lambda name, **kw: tiny(num_classes=3, **kw))
    return ["--model", "tiny", "--size", "8", "--batch", "2", "--rounds", "3"]


@pytest.mark.parametrize("kind", ["forward", "train"])
def test_models_are_compared(small, kind, capsys):
    with jax.numpy_dtype_promotion("standard"):  # flax's own layers promote
        assert main(["bench", kind, *small, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "tiny bfloat16, 2 images of 8 px"
    low, median, high = (found[f"times faster ({k})"] for k in ("10th percentile", "median", "90th percentile"))
    assert 0 < low <= median <= high
    assert found["vit_jax images/s"] > 0 and 0 < found["share of one large product's speed"] < 1


@pytest.mark.parametrize("kind", ["forward", "train"])
def test_linear_maps_are_compared_with_dense_ones(small, kind, capsys):
    with jax.numpy_dtype_promotion("standard"):  # optax's AdamW promotes
        assert main(["bench", kind, *small, "--linear", "low_rank(2)", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    low, median, high = (found[f"times faster ({k})"] for k in ("10th percentile", "median", "90th percentile"))
    assert 0 < low <= median <= high
    assert found["low_rank(2) images/s"] > 0 and found["dense images/s"] > 0
    assert 0.3 < found["share of the dense model's parameters"] < 0.9


def test_input(capsys, tmp_path):
    assert main(["bench", "input", "--data", "fake:64x16x4", "--batch", "8", "--canvas", "16", "--rounds", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["data", "fake:64x16x4"] and float(lines[1].split()[-1]) > 0


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_loss(name, capsys):
    size = ["--batch", "300", "--dim", "8", "--chunk", "16", "--rounds", "2"]
    assert main(["bench", "loss", "--loss", name, *size, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == f"{name}, 300 pairs of width 8, chunks of 16"
    low, median, high = (
        found[f"chunked takes times as long ({k})"] for k in ("10th percentile", "median", "90th percentile")
    )
    assert 0 < low <= median <= high
    assert found["times less memory"] == found["dense temporary MB"] / found["chunked temporary MB"] > 3


def test_loss_alone(capsys):
    assert main(["bench", "loss", "--batch", "20", "--dim", "4", "--rounds", "1", "--alone"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["loss", "chunked", "chunked"] and float(lines[1].split()[-1]) > 0
    assert main(["bench", "loss", "--loss", "sigmoyd"]) == 2
    assert "unknown loss 'sigmoyd'; did you mean 'sigmoid'" in capsys.readouterr().err


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


def test_a_wrong_kernel_is_not_timed(capsys, monkeypatch):
    from vit_jax.kernels import cases

    make = cases.Monarch.__call__

    def wrong(self, *size):
        case = make(self, *size)
        return dataclasses.replace(case, dense=lambda *p: case.dense(*p).at[0, 0].add(1.0))

    monkeypatch.setattr(cases.Monarch, "__call__", wrong)
    assert main(["bench", "kernels", "--inputs", "32", "--dtype", "float32", "--rows", "3", "--rounds", "1"]) == 1
    assert "'xla' is wrong by" in capsys.readouterr().err
    assert main(["bench", "kernels", "--op", "monarc"]) == 2
    assert main(["bench", "kernels", "--rows", "a,b"]) == 2


@dataclasses.dataclass(frozen=True)
class Fake:
    """``x @ (w * (1 + index) * s)`` with an error in one of its results."""

    wrong: str

    def __call__(self, rows, inputs, outputs, dtype):
        from vit_jax.kernels.case import Case
        from vit_jax.kernels.dispatch import Implementation

        keys = jax.random.split(jax.random.key(0), 3)
        x = jax.random.normal(keys[0], (rows, inputs), dtype)
        parameters = jax.random.normal(keys[1], (inputs, outputs)), jnp.arange(outputs), 1 + jnp.arange(8.0)
        dense = lambda w, i, s: w * (1 + i).astype(jnp.float32)[None] * s[None]  # noqa: E731
        product = jax.custom_vjp(lambda x, *p: self.off("y", x @ dense(*p).astype(x.dtype)))
        product.defvjp(lambda x, *p: (product(x, *p), (x, p)), functools.partial(self.backward, dense))
        table = {"ours": Implementation(product)}
        return Case(lambda name, *args: table[name].run(*args), x, parameters, dense, table, flops=1.0, bytes=1.0)

    def backward(self, dense, saved, g):
        x, (w, i, s) = saved
        wide = x.astype(jnp.float32), g.astype(jnp.float32)
        dw, ds = jax.vjp(lambda w, s: wide[0] @ dense(w, i, s), w, s)[1](wide[1])
        dx = (wide[1] @ dense(w, i, s).T).astype(x.dtype)
        return self.off("x", dx), self.off("w", dw), None, self.off("s", ds)

    def off(self, what, value):
        return value.at[(0,) * value.ndim].add(0.25 * jnp.max(jnp.abs(value))) if what == self.wrong else value


WRONG = [
    ("y", "'ours' is wrong by 0.2"),
    ("x", "'ours' is wrong: its gradient of x is off by 0.2"),
    ("w", "'ours' is wrong: its gradient of parameter 1 is off by 0.2"),
    ("s", "'ours' is wrong: its gradient of parameter 3 is off by 0.2"),
    ("none", ""),
]


@pytest.mark.parametrize(
    ("wrong", "said", "dtype"),
    [
        *((*case, "float32") for case in WRONG),
        *(pytest.param(*case, "bfloat16", marks=[] if case[0] == "none" else pytest.mark.slow) for case in WRONG),
    ],
)
def test_a_wrong_gradient_is_not_timed(capsys, monkeypatch, wrong, said, dtype):
    from vit_jax.kernels import cases

    monkeypatch.setitem(cases.CASES, "fake", Fake)
    sizes = ["--inputs", "6", "--outputs", "8", "--rows", "5", "--rounds", "1", "--dtype", dtype]
    run = ["bench", "kernels", "--op", f"fake({wrong!r})", *sizes]
    assert main([*run, "--backward"]) == (1 if said else 0)
    assert said in capsys.readouterr().err
    assert main(run) == (1 if wrong == "y" else 0)  # gradients that are not timed are not compared


def test_the_help_names_every_operation(capsys):
    from vit_jax.kernels.cases import CASES

    with pytest.raises(SystemExit):
        main(["bench", "kernels", "--help"])
    text = capsys.readouterr().out
    assert all(op in text for op in CASES)
