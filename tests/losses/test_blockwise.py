"""Dense = chunked = ring: values and every gradient, in both precisions, for odd sizes and masks; and what it saves."""

import functools
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vit_jax import losses, sharding
from vit_jax.types import UserError

LOSSES = sorted(losses.CONTRASTIVE)
DENSE = losses.Dense()


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


def make(n, e=6, seed=0):
    rng = np.random.default_rng(seed)
    image, text = rng.normal(size=(2, n, e))
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    mask = rng.random(n) < 0.8
    weights = rng.random(n)  # a different cotangent for every example
    return image, text, np.array(6.0), np.array(-1.5), mask, weights


@functools.cache
def compiled(name, form, mesh=None):
    """(image, text, scale, bias, mask, weights) -> losses [B] and the gradient of their weighted sum."""

    def both(image, text, scale, bias, mask, weights):
        loss = lambda *a: losses.CONTRASTIVE[name]()(*a, mask, form)  # noqa: E731
        values, back = jax.vjp(loss, image, text, scale, bias)
        return values, *back(weights)

    return jax.jit(both)


def run(name, form, args, dtype):
    args = [a if a.dtype == bool else jnp.asarray(a, dtype) for a in args]
    return [np.asarray(x) for x in compiled(name, form)(*args)]


def compare(got, want, tolerance):
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        scale = max(np.abs(b).max(), np.abs(want[1]).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


@functools.cache
def dense(name, n, dtype):
    """The reference, on one device."""
    with jax.enable_x64(dtype == "float64"):
        return run(name, DENSE, make(n), dtype)


@pytest.mark.first(2)
@pytest.mark.parametrize(("n", "size"), [(13, 4), (1, 3), slow(13, 13), slow(16, 100)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_chunks(name, n, size):
    with jax.enable_x64(True):
        compare(run(name, losses.Chunked(size), make(n), "float64"), dense(name, n, "float64"), 1e-12)


@pytest.mark.parametrize("name", ["softmax", slow("cloob"), slow("sigmoid")])
def test_chunks_in_float32(name):
    compare(run(name, losses.Chunked(5), make(24), "float32"), dense(name, 24, "float32"), 1e-6)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((name, (2, 4, 1)) for name in LOSSES),
        ("softmax", (1, 2, 4)),
        *(slow("softmax", shape) for shape in ((8, 1, 1), (1, 1, 8))),
        *(slow(name, shape) for name in ("cloob", "sigmoid") for shape in ((8, 1, 1), (1, 2, 4), (1, 1, 8))),
    ],
    ids=str,
)
def test_ring(name, shape):
    """24 rows: 3 a device in chunks of 2, then 12 and 24 on few."""
    mesh = sharding.make_mesh(sharding.MeshConfig(*shape))
    with jax.enable_x64(True), jax.set_mesh(mesh):
        rows = jax.sharding.NamedSharding(mesh, P(sharding.BATCH))
        args = [jax.device_put(a, rows) if a.ndim else a for a in make(24)]
        got = compiled(name, losses.Ring(2), mesh)(*args)
        compare([np.asarray(x) for x in got], dense(name, 24, "float64"), 1e-12)
        assert got[1].sharding.is_equivalent_to(rows, 2)


@pytest.mark.parametrize("name", ["softmax", slow("cloob"), slow("sigmoid")])
def test_ring_in_float32(name):
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(2, 4, 1))):
        compare(run(name, losses.Ring(2), make(24), "float32"), dense(name, 24, "float32"), 1e-6)


def test_a_ring_of_one_device_is_chunked():
    compare(run("softmax", losses.Ring(5), make(13), "float32"), dense("softmax", 13, "float32"), 1e-6)


def test_only_what_the_gradient_is_taken_of_is_computed():
    image, text, scale, bias, mask, _ = make(7)
    args = [jnp.asarray(a, jnp.float32) for a in (image, text, scale, bias)]
    loss = lambda s: losses.Sigmoid()(*args[:2], s, args[3], mask, losses.Chunked(3)).sum()  # noqa: E731
    whole = lambda s: losses.Sigmoid()(*args[:2], s, args[3], mask).sum()  # noqa: E731
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(args[2]), jax.jit(jax.grad(whole))(args[2]), rtol=1e-5)


def memory(name, form, n, mesh=None):
    """Bytes of temporary arrays of loss and gradient on each device."""
    spec = None if mesh is None else jax.sharding.NamedSharding(mesh, P(sharding.BATCH))
    args = [
        jax.ShapeDtypeStruct(a.shape, a.dtype if a.dtype == bool else "float32", sharding=spec if a.ndim else None)
        for a in make(n)
    ]
    return compiled(name, form, mesh).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", ["softmax", slow("cloob"), slow("sigmoid")])
def test_memory_grows_with_the_batch_not_its_square(name):
    few, many = (memory(name, losses.Chunked(16), n) for n in (1024, 4096))
    assert many < 4.5 * few
    assert memory(name, DENSE, 4096) > 50 * many


def test_memory_of_a_ring_is_that_of_its_part():
    mesh = sharding.make_mesh(sharding.MeshConfig(4, 2, 1))
    with jax.set_mesh(mesh):
        ring = memory("softmax", losses.Ring(16), 4096, mesh)
    assert ring < 1.5 * memory("softmax", losses.Chunked(16), 4096) / 8


def test_a_ring_needs_equal_parts():
    with (
        jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(8, 1, 1))),
        pytest.raises(UserError, match="a ring of 8 devices cannot share 13 pairs; make the batch a multiple"),
    ):
        run("softmax", losses.Ring(2), make(13), "float32")


def test_size_out_of_range():
    with pytest.raises(UserError, match="size=0 is not allowed"):
        losses.Ring(0)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_the_whole_process_stays_small(name):
    """Batch 16,384, width 512: a twentieth of what the dense form needs, which is 3.2 GB for softmax."""
    code = f"""
        import resource, jax, jax.numpy as jnp
        from vit_jax import losses
        def grad(n, form):
            loss = lambda *a: losses.CONTRASTIVE[{name!r}]()(*a, jnp.ones(n, bool), form).mean()
            return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))
        def peak(n):
            x = jnp.full((n, 512), 512 ** -0.5)
            jax.block_until_ready(grad(n, losses.Chunked())(x, x, jnp.float32(10), jnp.float32(0)))
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        grown = -peak(512) + peak(16384)
        x, s = jax.ShapeDtypeStruct((16384, 512), "float32"), jax.ShapeDtypeStruct((), "float32")
        dense = grad(16384, losses.Dense()).lower(x, x, s, s).compile().memory_analysis().temp_size_in_bytes / 1e6
        print(grown, dense)
    """
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment, check=True
    )
    inputs_and_gradients = 3 * 16384 * 512 * 4 / 1e6
    grown, whole = map(float, out.stdout.split())
    assert grown - inputs_and_gradients < whole / 20
