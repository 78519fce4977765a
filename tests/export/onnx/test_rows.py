"""Each row in ONNX Runtime against JAX, on batches of one and of three."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vit_jax.export.onnx import file
from vit_jax.export.onnx.rows import ROWS
from vit_jax.export.onnx.translate import translate
from vit_jax.types import UserError

LINE, GRID, IMAGE = (6,), (4, 6), (8, 8, 3)
KERNEL = np.random.default_rng(2).normal(size=(3, 3, 3, 4)).astype(np.float32)
MATRIX = np.random.default_rng(3).normal(size=(4, 6)).astype(np.float32)
FUNCTIONS = {
    "elementwise": (LINE, lambda x: jnp.tanh(x) / (2 + jnp.abs(x)) - jnp.exp(-x * x) * jnp.maximum(x, 0.1) ** 0.5),
    "comparisons": (LINE, lambda x: jnp.where((x > 0) & (x <= 1) | ~(x != x), jnp.sign(x), lax.rsqrt(1 + x * x))),
    "powers": (LINE, lambda x: x**3 + jnp.round(8 * x) + lax.clamp(-0.5, x, 0.5) + jnp.square(x)),
    "log1p": (LINE, lambda x: jnp.log1p(jnp.exp(9 * x)) + sum(jnp.log1p(x * small) / small for small in (1e-4, 1e-9))),
    "casts": (LINE, lambda x: (x * 9).astype(jnp.int32).astype(jnp.float32) + jax.nn.sigmoid(x)),
    "broadcasts": (
        GRID,
        lambda x: x + jnp.broadcast_to(x.sum(2, keepdims=True), x.shape) * x[:, :1] + x.max(1)[:, None],
    ),
    "broadcast constant": (LINE, lambda x: jnp.concatenate([jnp.broadcast_to(MATRIX[:1, :2], (x.shape[0], 2)), x], 1)),
    "means": (GRID, lambda x: jnp.mean(x, (1, 2)) - jnp.min(x, (1, 2)) * jnp.prod(x, (1, 2))),
    "softmax": (GRID, lambda x: jax.nn.softmax(x, axis=-1) + jax.nn.log_softmax(x, axis=1)),
    "argmax": (GRID, lambda x: jnp.argmax(x > 0.3, axis=2).astype(jnp.float32) + jnp.argmax(x, axis=1).sum()),
    "cumsum": (GRID, lambda x: jnp.cumsum(x, axis=1) + jax.lax.cumsum(x, axis=2, reverse=True)),
    "top k": (GRID, lambda x: lax.top_k(x, 2)[0] * lax.top_k(x, 2)[1]),
    "shapes": (GRID, lambda x: jnp.squeeze(jnp.swapaxes(x, 1, 2).reshape(-1, 3, 2, 4)[:, :, :1], 2)),
    "cuts": (GRID, lambda x: jnp.concatenate([x[:, 1:3], x[:, ::2], lax.rev(x[:, -1:], (2,)), *jnp.split(x, 2, 1)], 1)),
    "stack": (GRID, lambda x: jnp.stack([x, 2 * x], axis=2)[:, 1]),
    "pad": (GRID, lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 2)), constant_values=3.0)),
    "iota": (GRID, lambda x: x + lax.broadcasted_iota(jnp.float32, x.shape, 1)),
    "matrix": (GRID, lambda x: x @ MATRIX.T + MATRIX @ jnp.swapaxes(x, 1, 2)),
    "batched products": (GRID, lambda x: jnp.einsum("bij,bkj->bik", x, x) @ x),
    "several axes": (
        GRID,
        lambda x: jnp.einsum("bij,ij->b", x, MATRIX)[:, None] * jnp.einsum("bij,kj->bki", x, MATRIX)[..., 0],
    ),
    "shared axis": (GRID, lambda x: jnp.einsum("kj,bij->kbi", MATRIX, x).swapaxes(0, 1)),
    "rows": (GRID, lambda x: jnp.take_along_axis(x, jnp.argmax(x[..., 0], 1)[:, None, None], axis=1)),
    "table": (LINE, lambda x: jnp.take(MATRIX, (x * 4).astype(jnp.int32), axis=0, mode="fill", fill_value=np.nan)),
    "columns": (
        GRID,
        lambda x: x[..., ::2] + jnp.take(x, np.array([[1, 9, -9]]), 2, mode="fill", fill_value=2.0)[:, :, 0],
    ),
    "table, clipped": (LINE, lambda x: jnp.take(MATRIX, (x * 4).astype(jnp.int32), axis=0, mode="clip")),
    "convolution": (IMAGE, lambda x: jax.nn.relu(_conv(x, (2, 1), ((0, 1), (1, 1))))),
    "max pool": (
        IMAGE,
        lambda x: lax.reduce_window(x, -np.inf, lax.max, (1, 3, 2, 1), (1, 2, 1, 1), ((0, 0), (1, 0), (0, 0), (0, 0))),
    ),
    "sum pool": (
        IMAGE,
        lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 3, 2, 1), (1, 2, 1, 1), ((0, 0), (1, 0), (0, 1), (0, 0))),
    ),
}


def _conv(x, strides, padding):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, KERNEL, strides, padding, dimension_numbers=numbers, rhs_dilation=(1, 2))


def computed(run, shape, folder, batch, seed=0):
    """ONNX Runtime's and JAX's."""
    path = folder / "model.onnx"
    file.write(*translate(lambda _, x: run(x), {}, ("x", shape, np.float32), "y"), {}, path)
    x = np.random.default_rng(seed).uniform(-1, 1.5, (batch, *shape)).astype(np.float32)
    return file.run(path, {"x": x}), np.asarray(jax.jit(run)(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_computes_the_same(tmp_path, name):
    shape, run = FUNCTIONS[name]
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        theirs, ours = computed(run, shape, tmp_path, 3)
    np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-6)
    assert theirs.dtype == ours.dtype and np.nanstd(ours) > 0


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (lambda x: jnp.sort(x), r"^ONNX export knows no 'sort', which the model computes; .*--to stablehlo\.$"),
        (lambda x: lax.round(x), "cannot say rounding away from zero"),
        (lambda x: x.at[:, 0].set(1.0), "knows no 'scatter'"),
        (lambda x: lax.scan(lambda c, _: (c * 2, None), x, None, 3)[0], "knows no 'scan'"),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1))), r"cannot say holes between elements \('pad'\)"),
        (lambda x: x + jnp.float32(x.shape[0]), "knows no 'dim_as_value'"),
        (lambda x: jnp.asarray(MATRIX)[jnp.argmax(x, 1), jnp.argmax(x, 1)], r"this way of indexing \('gather'\)"),
        (lambda x: x + lax.broadcasted_iota(jnp.float32, x.shape, 0), r"cannot say counting over the batch \('iota'\)"),
    ],
)
def test_what_has_no_row_is_a_sentence(run, why):
    with pytest.raises(UserError, match=why):
        translate(lambda _, x: run(x), {}, ("x", (6,), np.float32), "y")


def test_the_table_is_sorted_by_name():
    names = list(ROWS)[list(ROWS).index("argmax") :]
    assert names == sorted(names)
