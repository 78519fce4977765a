"""Rotary positions against complex numbers in float64; shifts, both layouts, and what cannot turn."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import config, models
from vit_jax.layers.attention import MultiHeadAttention, attention_weights
from vit_jax.layers.rotary import Rope, RopeMixed, RotarySpec
from vit_jax.types import UsageError, UserError

DINO, EVA = Rope(100.0), Rope(10_000.0, "interleaved", 16)


def centres(n):
    return [2 * (i + 0.5) / n - 1 for i in range(n)]


def reference(x, rope, height, width):
    """Both projects' formulas: one complex number for each pair of channels, the row's before the column's."""
    size = x.shape[-1]
    y, r = np.asarray(x, np.complex128), np.arange(size // 4)
    rates = rope.base ** (-2 * r / (size / 2))
    for p in range(height * width):
        row, column = divmod(p, width)
        if rope.grid == "unit":
            places = [2 * np.pi * centres(height)[row], 2 * np.pi * centres(width)[column]]
        else:
            places = [row / height * rope.grid, column / width * rope.grid]
        if rope.axes == "xy":
            places.reverse()
        angle = np.concatenate([place * rates for place in places])
        t = p + x.shape[1] - height * width
        a, b = (
            (slice(0, size // 2), slice(size // 2, size))
            if rope.layout == "half"
            else (slice(0, None, 2), slice(1, None, 2))
        )
        turned = (np.asarray(x, np.float64)[:, t, :, a] + 1j * np.asarray(x, np.float64)[:, t, :, b]) * np.exp(
            1j * angle
        )
        y[:, t, :, a], y[:, t, :, b] = turned.real, turned.imag
    return y.real


@pytest.mark.parametrize("rope", [DINO, EVA, Rope(100.0, "interleaved", 5, "xy")])
def test_equals_complex_numbers_in_float64(rng, rope):
    q, k = (jnp.asarray(rng.standard_normal((2, 2 + 3 * 4, 3, 8)), jnp.float32) for _ in range(2))
    got = jax.jit(rope.rotate)(q, k, rope.coordinates(3, 4))
    for x, y in zip((q, k), got, strict=True):
        np.testing.assert_allclose(y, reference(x, rope, 3, 4), atol=1e-5)
        np.testing.assert_array_equal(y[:, :2], x[:, :2])  # class token and register
        np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("rope", [DINO, EVA])
def test_logits_depend_on_differences_in_one_grid(rng, rope):
    """One query and one key, put on every place of a 4x4 grid."""
    q, k = (jnp.broadcast_to(jnp.asarray(rng.standard_normal((1, 1, 1, 8)), jnp.float32), (1, 16, 1, 8)) for _ in "qk")
    q, k = jax.jit(rope.rotate)(q, k, rope.coordinates(4, 4))
    logits = np.einsum("bnke,bmke->nm", q, k).reshape(4, 4, 4, 4)
    found = {}
    for i, j, m, n in np.ndindex(4, 4, 4, 4):
        found.setdefault((m - i, n - j), []).append(logits[i, j, m, n])
    assert len(found) == 49 and all(np.ptp(v) < 1e-5 for v in found.values())
    assert np.std([v[0] for v in found.values()]) > 0.1


def test_layouts_are_one_another_with_channels_in_another_order(rng):
    order = np.arange(8).reshape(2, 4).T.reshape(-1)  # of "half": 0 4 1 5 2 6 3 7
    q, k = (jnp.asarray(rng.standard_normal((1, 6, 2, 8)), jnp.float32) for _ in range(2))
    at = DINO.coordinates(2, 3)
    half = attention_weights(*jax.jit(DINO.rotate)(q, k, at))
    other = Rope(100.0, "interleaved")
    both = jax.jit(other.rotate)(q[..., order], k[..., order], at)
    np.testing.assert_allclose(attention_weights(*both), half, atol=1e-6)


def test_without_frequency_nothing_turns(rng):
    q = jnp.asarray(rng.standard_normal((1, 6, 2, 8)), jnp.bfloat16)
    got = Rope(100.0).rotate(q, q, np.zeros((6, 2), np.float32))[0]
    assert got.dtype == q.dtype
    np.testing.assert_array_equal(got, q)


@pytest.mark.parametrize("axes", ["xy", "yx"])
def test_mixed_equals_complex_numbers_in_float64(rng, axes):
    """Equation 14 of the paper: every head and pair has a rate along either axis."""
    height, width, heads, size = 3, 4, 3, 8
    q, k = (jnp.asarray(rng.standard_normal((2, 2 + height * width, heads, size)), jnp.float32) for _ in "qk")
    rates, mixed = rng.standard_normal((2, heads, size // 2)).astype(np.float32), RopeMixed(10.0, axes)
    at = mixed.coordinates(height, width)
    got = jax.jit(mixed(name="x").apply)({"params": {"frequencies": rates}}, q, k, at)
    for x, found in zip((q, k), got, strict=True):
        want = np.array(x, np.float64)
        for p in range(height * width):
            row, column = divmod(p, width)
            first, second = (column, row) if axes == "xy" else (row, column)
            angle = first * rates[0].astype(np.float64) + second * rates[1].astype(np.float64)
            turned = (want[:, p + 2, :, 0::2] + 1j * want[:, p + 2, :, 1::2]) * np.exp(1j * angle)
            want[:, p + 2] = np.stack([turned.real, turned.imag], -1).reshape(2, heads, size)
        np.testing.assert_allclose(found, want, atol=1e-5)
        np.testing.assert_array_equal(found[:, :2], x[:, :2])


def test_mixed_starts_along_two_axes_at_right_angles_and_learns(rng):
    """In a direction of its own in every head, the rates those of the axial kind; the gradient reaches them all."""
    q = jnp.asarray(rng.standard_normal((1, 5, 3, 8)), jnp.float32)
    mixed = RopeMixed(10.0)
    layer, at = mixed(name="x"), mixed.coordinates(2, 2)
    params = jax.jit(layer.init)(jax.random.key(0), q, q, at)["params"]
    x, y = np.asarray(nn.unbox(params)["frequencies"], np.float64)
    np.testing.assert_allclose(np.hypot(x, y), np.tile(10.0 ** -(np.arange(2) / 2), (3, 2)), rtol=1e-5)
    np.testing.assert_allclose(x[:, :2] * x[:, 2:] + y[:, :2] * y[:, 2:], 0, atol=1e-6)
    directions = np.arctan2(y, x)[:, 0]
    assert np.ptp(directions) > 0.1

    def loss(f):
        a, b = layer.apply({"params": {"frequencies": f}}, q, q[:, ::-1], at)
        return jnp.sum(attention_weights(a, b)[:, :, 1:, 1:] ** 2)

    slopes = np.asarray(jax.jit(jax.grad(loss))(nn.unbox(params)["frequencies"]))
    assert np.isfinite(slopes).all() and (slopes != 0).all()


def test_mixed_in_a_model(rng):
    """Every block has rates of its own, scanned or not; they are not decayed, and a larger image needs no others."""
    fields = {"patch": 4, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 8, "num_classes": 0, "positions": "none"}
    model = models.create("vit", **fields, rotary="rope_mixed")
    image = jnp.asarray(rng.standard_normal((1, 8, 12, 3)), jnp.float32)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), image[:, :, :8])["params"])
    a, b = (params["encoder"][f"block_{i}"]["attention"]["rotary"]["frequencies"] for i in range(2))
    assert a.shape == (2, 2, 4) and np.abs(a - b).max() > 1e-3
    role = model.roles(params)["encoder"]["block_0"]["attention"]["rotary"]["frequencies"]
    assert (role.kind, role.part, role.above) == ("token", "block", 2)
    run = jax.jit(lambda m, x: m.apply({"params": params}, x), static_argnums=0)
    plain = run(model, image)
    np.testing.assert_allclose(run(model.clone(scan=True), image), plain, atol=1e-6)
    assert np.abs(plain - run(model, image[:, :, ::-1])).max() > 1e-4


def test_of_a_configuration_and_what_is_refused():
    hint = RotarySpec
    assert config.parse(hint, "rope(10000, interleaved, 16)", "x") == EVA
    assert config.parse(hint, {"name": "rope"}, "x") == DINO
    assert config.unparse(hint, EVA) == {
        "name": "rope",
        "base": 10_000.0,
        "layout": "interleaved",
        "grid": 16,
        "axes": "yx",
    }
    assert config.parse(hint, "rope_mixed(7, yx)", "x") == RopeMixed(7.0, "yx")
    for text in ("rope(0)", "rope_mixed(-1)", "rope(layout=quarter)", "rope(grid=0)", "ropes"):
        with pytest.raises(UsageError, match=r"x"):
            config.parse(hint, text, "x")
    layer = MultiHeadAttention(2, rotary=DINO)
    with pytest.raises(UserError, match="6 channels of a head are no pairs for 2 axes of rope"):
        layer.init(jax.random.key(0), jnp.zeros((1, 4, 12)), at=jnp.zeros((4, 2)))


def test_a_vit_of_another_size_keeps_its_parameters(rng):
    """Nothing is interpolated: with positions that turn there are no parameters of a grid."""
    fields = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 8, "num_classes": 0, "positions": "none"}
    model = models.create("vit", **fields, rotary=DINO)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    assert "position" not in params
    image = jnp.asarray(rng.standard_normal((1, 8, 12, 3)), jnp.float32)
    run = jax.jit(lambda m, x: m.apply({"params": params}, x), static_argnums=0)
    plain, mirrored = run(model, image), run(model, image[:, :, ::-1])
    assert np.abs(plain - mirrored).max() > 1e-4
