"""FLOPs of a model against arithmetic, and the speed of a device."""

import math

import flax.linen as nn
import jax
import pytest

from vit_jax import models
from vit_jax.models import cost
from vit_jax.sharding import MeshConfig, make_mesh


def shape(size, batch=1):
    return (jax.ShapeDtypeStruct((batch, size, size, 3), "float32"),)


def vit(**fields):
    return models.create(
        "vit", **{"patch": 4, "width": 64, "depth": 3, "heads": 2, "mlp_dim": 1024, "pool": "gap", **fields}
    )


def test_a_vit_is_two_per_weight_and_token():
    """An MLP-heavy ViT of 16 tokens: 2 x weights x tokens, plus attention 4 N^2 D and the elementwise rest."""
    n, d, f, layers, classes = 16, 64, 1024, 3, 10
    weights = 4 * 4 * 3 * d + layers * (4 * d * d + 2 * d * f)
    closed = 2 * n * weights + 2 * d * classes + layers * 4 * n * n * d
    assert cost.flops(vit(num_classes=classes), shape(16)) == pytest.approx(closed, rel=0.06)


def test_they_grow_with_the_batch():
    one, four = (cost.flops(vit(num_classes=10), shape(16, b)) for b in (1, 4))
    assert four == pytest.approx(4 * one, rel=0.01)


def test_scan_and_remat_do_not_matter():
    plain = cost.flops(vit(), shape(16))
    assert cost.flops(vit(scan=True), shape(16)) == pytest.approx(plain, rel=1e-4)  # the loop counts its turns
    assert cost.flops(vit(scan=True, remat="full"), shape(16)) == pytest.approx(plain, rel=1e-4)
    assert cost.flops(vit(depth=6), shape(16)) > 1.9 * plain


class Powers(nn.Module):
    """Products of ``[n, n]`` in a loop that is in a loop, behind what programs are wrapped in."""

    outer: int
    inner: int

    def __call__(self, x):
        product = jax.jit(lambda x: x @ x)
        turn = jax.checkpoint(lambda x, _: (product(x), None))
        again = jax.jit(lambda x, _: (jax.lax.scan(turn, x, length=self.inner)[0] @ x, None))
        return jax.lax.scan(again, x, length=self.outer)[0]


@pytest.mark.parametrize(("outer", "inner"), [(1, 1), (7, 1), (1, 5), (3, 4)])
def test_all_turns_of_loops_in_loops_are_counted(outer, inner):
    n = 16
    closed = 2 * n**3 * outer * (inner + 1)
    counters = 2 * outer * (inner + 2)
    found = cost.flops(Powers(outer, inner), (jax.ShapeDtypeStruct((n, n), "float32"),))
    assert closed <= found <= closed + counters


def test_a_selective_scan_is_six_per_token_channel_and_number_of_a_state():
    """Its two products and sum, the exponent, what is read: and the projections to b and c, all twice."""
    width, tokens, few, many = 32, 64, 2, 18
    inputs = (jax.ShapeDtypeStruct((1, 4 * (tokens - 1), 4, 3), "float32"),)
    one, two = (cost.flops(models.create("vim", patch=4, width=width, depth=1, state=n), inputs) for n in (few, many))
    channels = 2 * width
    assert two - one == pytest.approx(2 * tokens * channels * (many - few) * (6 + 4), rel=0.01)


class Device:
    def __init__(self, kind):
        self.device_kind = kind


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5p slice", 459e12),
        ("TPU v5", 459e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("TPU v4", 275e12),
    ],
)
def test_published_peaks(kind, peak):
    assert cost.peak(Device(kind), "bfloat16") == peak


def test_a_cpu_is_measured():
    assert 1e8 < cost.peak(jax.devices()[0], "float32") < 1e15
    with jax.set_mesh(make_mesh(MeshConfig())):  # one device is measured, wherever the caller computes
        assert 1e8 < cost.peak(jax.devices()[3], "bfloat16") < 1e15


def test_they_are_the_same_for_a_gpu_whose_kernels_hide_their_products(monkeypatch):
    model = vit(dtype="bfloat16", patch=2)
    here = cost.flops(model, shape(32))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert cost.flops(model, shape(32)) == here


def test_without_a_cpu_nothing_is_counted_and_nothing_ends(monkeypatch):
    def none(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", none)
    assert math.isnan(cost.flops(vit(), shape(16)))
