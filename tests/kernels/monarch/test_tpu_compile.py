"""The real TPU compiler takes the kernels; it needs the package ``libtpu``, and no TPU."""

import functools

import jax
import pytest

from vit_jax import sharding
from vit_jax.kernels.monarch import monarch


@pytest.fixture(params=["v5e:2x2", "v6e:2x2"])
def chips(tpu_chips, request):
    return tpu_chips(request.param)


def compiled(mesh, rows, n, m, parts, dtype):
    width = min(n, m) // 4
    specs = [((rows, n), dtype), ((4, width, n // 4), "float32"), ((4, m // 4, width), "float32"), ((m,), "float32")]
    split, whole = sharding.data_sharding(mesh), jax.sharding.NamedSharding(mesh, jax.P())
    places = (split, whole, whole, whole, split)
    args = [jax.ShapeDtypeStruct(*s, sharding=p) for s, p in zip([*specs, ((rows, m), dtype)], places, strict=True)]

    def both(*args):
        f = functools.partial(monarch, input_parts=parts, blocked=parts == 1, implementation="mosaic_tpu")
        y, pull = jax.vjp(f, *args[:-1])
        return y, pull(args[-1])

    with jax.set_mesh(mesh):
        return jax.jit(both).lower(*args).compile().as_text()


@pytest.mark.parametrize(
    ("rows", "n", "m", "parts", "dtype"),
    [
        (1576, 768, 3072, 1, "float32"),
        (1576, 768, 3072, 1, "bfloat16"),
        (200, 3072, 768, 4, "bfloat16"),
        (197, 192, 1000, 1, "float32"),
        (1, 768, 768, 1, "bfloat16"),
    ],
)
def test_one_chip(chips, rows, n, m, parts, dtype):
    text = compiled(sharding.make_mesh(sharding.MeshConfig(), chips[:1]), rows, n, m, parts, dtype)
    assert text.count("tpu_custom_call") >= 2
    assert "monarch_forward" in text and "monarch_backward" in text


def test_each_chip_takes_its_rows(chips):
    text = compiled(sharding.make_mesh(sharding.MeshConfig(2, 2), chips), 1576, 768, 3072, 1, "bfloat16")
    assert "bf16[394,3072]" in text and "monarch_backward" in text
    assert "all-reduce" in text and "bf16[1576" not in text
