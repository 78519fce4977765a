"""Value and gradients of the Pallas kernels for GPUs against float64, for ``gpu.py``."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

Record = dict[str, Any]
Cases = Iterator[tuple[str, Callable[[], Record]]]
"""Name of the case, and the function that measures it."""


def contracts(tiny: bool) -> Cases:
    """Value and gradients of the Pallas kernels against float64, five times the same bits; refusals are said."""
    monarch = [  # (K, T * L, P, L, S), rows, parts, blocked
        ((4, 64, 16, 4, 32), 5, 1, False), ((2, 24, 32, 1, 40), 200, 2, True), ((2, 24, 40, 3, 33), 67, 1, False),
        ((4, 192, 192, 4, 768), 1576, 1, True), ((4, 192, 768, 4, 192), 1576, 4, False),
        ((4, 96, 96, 4, 384), 8, 1, True), ((4, 320, 320, 4, 250), 197, 1, False), ((8, 96, 96, 8, 96), 1013, 1, False),
        ((4, 192, 192, 4, 768), 12608, 1, True), ((4, 192, 768, 4, 192), 12608, 4, False),
        ((4, 256, 256, 4, 1024), 4099, 1, True), ((2, 384, 384, 2, 384), 394, 1, False),
    ]  # fmt: skip
    for factors, rows, parts, blocked in monarch[:3] if tiny else monarch:
        name = f"monarch {factors}, {rows} rows, {parts} parts, {'blocked' if blocked else 'natural'}"
        yield name, functools.partial(_monarch_contract, factors, rows, parts, blocked)
    packed = [
        (5, 256, 128, "bfloat16"), (8, 704, 64, "int8"), (69, 1024, 64, "float32"), (1, 1280, 64, "bfloat16"),
        (8, 768, 3072, "bfloat16"), (16, 3072, 768, "int8"), (64, 4096, 4096, "bfloat16"), (3, 4096, 11008, "int8"),
        (394, 384, 1536, "float32"), (200, 1280, 5120, "bfloat16"),
    ]  # fmt: skip
    for rows, inputs, outputs, storage in packed[:4] if tiny else packed:
        name = f"sparse24 {inputs} x {outputs}, {rows} rows, {storage}"
        yield name, functools.partial(_sparse24_contract, rows, inputs, outputs, storage)


def _monarch_contract(factors: tuple[int, ...], rows: int, parts: int, blocked: bool) -> Record:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vit_jax.kernels.monarch import monarch, reference

    K, q, p, L, S = factors
    rng = np.random.default_rng(rows)
    shapes = ((rows, K * p), (K, q, p), (L, S, K * q // L), (L * S,), (rows, L * S))
    x, first, second, bias, g = (
        np.asarray(jnp.asarray(rng.standard_normal(s), jnp.bfloat16), np.float32) for s in shapes
    )
    blocks = L if blocked else 1

    def both(x: Any, first: Any, second: Any, bias: Any, g: Any) -> Any:
        f = functools.partial(monarch, input_parts=parts, blocked=blocked, implementation=kernel_here("mosaic_gpu"))
        y, pull = jax.vjp(f, x, first, second, bias)
        return y, *pull(g)

    weight = reference.dense(first, second)
    dw, y = x.astype(np.float64).T @ g, x @ weight + bias
    first64, second64 = first.astype(np.float64), second.astype(np.float64)
    by_output = np.reshape(dw, (K, p, S, L))  # output s * l + i
    inner = np.reshape(first64, (K, q // L, L, p))  # its value (k, c, i) goes to block i as input k * (q / l) + c
    outer = np.reshape(second64, (L, S, K, q // L))
    d1 = np.einsum("kpsi,iskc->kcip", by_output, outer, optimize=True).reshape(first.shape)
    d2 = np.einsum("kpsi,kcip->iskc", by_output, inner, optimize=True).reshape(second.shape)
    want = (
        reference.to_parts(y, blocks), reference.to_parts(g @ weight.T, parts), d1, d2, g.sum(0, dtype=np.float64)
    )  # fmt: skip
    inputs = (
        jnp.asarray(reference.to_parts(x, parts), jnp.bfloat16), first, second, bias,
        jnp.asarray(reference.to_parts(g, blocks), jnp.bfloat16),
    )  # fmt: skip
    return _held(jax.jit(both), inputs, want)


def _sparse24_contract(rows: int, inputs: int, outputs: int, storage: str) -> Record:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vit_jax.kernels.sparse24 import sparse24, unpack
    from vit_jax.kernels.sparse24.packed import compress, quantise

    rng = np.random.default_rng(rows)
    kernel = rng.standard_normal((inputs, outputs)).astype(np.float32) / inputs**0.5
    values, index, scale = quantise(*compress(kernel)) if storage == "int8" else (*compress(kernel, storage), None)
    x, g = (jnp.asarray(rng.standard_normal((rows, n)), jnp.bfloat16) for n in (inputs, outputs))
    bias = rng.standard_normal(outputs).astype(np.float32)
    low = np.asarray(unpack(values.astype(jnp.bfloat16), index), np.float64)
    low = low if scale is None else low * np.asarray(scale, np.float64)

    def both(x: Any, bias: Any, g: Any) -> Any:
        f = lambda x, b: sparse24(  # noqa: E731
            x, values, index, b, scale=scale, implementation=kernel_here("mosaic_gpu")
        )
        y, pull = jax.vjp(f, x, bias)
        return y, *pull(g)

    x64, g64 = np.asarray(x, np.float64), np.asarray(g, np.float64)
    return _held(jax.jit(both), (x, bias, g), (x64 @ low + bias, g64 @ low.T, g64.sum(0)))


def _held(run: Callable[..., Any], inputs: tuple[Any, ...], want: tuple[Any, ...]) -> Record:
    """Largest errors as shares of the largest value, whether five runs gave the same bits, and what that means."""
    import numpy as np

    start = time.perf_counter()
    first = [np.asarray(a, np.float64) for a in run(*inputs)]
    seconds = time.perf_counter() - start
    errors = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(first, want, strict=True)]
    same = all(
        np.array_equal(a, np.asarray(b, np.float64)) for _ in range(4) for a, b in zip(first, run(*inputs), strict=True)
    )
    passed = same and all(e <= 2e-2 for e in errors)
    return {"passed": passed, "errors": errors, "the same bits five times": same, "first call seconds": seconds}


def kernel_here(name: str) -> str:
    """The implementation to be tried: off a GPU the one that XLA compiles, so that the script itself can be."""
    from vit_jax import sharding

    return name if sharding.platform() == "gpu" else "xla"
