"""Product with a dense kernel in int8, one float32 scale for each output: ``[..., in] -> [..., out]``.

``y = (x @ values) * scale + bias``, either with x as it is, so that only the weights are rounded, or with every row of
x rounded to int8 as it comes (LLM.int8, Dettmers et al. 2022, arXiv:2208.07339, section 2; no outliers are held back).
Then integers are multiplied and summed in int32, exactly, and the sum is scaled twice.

The integers are symmetric, -127 to 127, and a scale is the largest magnitude over 127: the convention of packed 2:4
weights, of ONNX Runtime and, up to half a step, of Qwix (which takes 127.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import jax

from vit_jax.kernels.dispatch import Implementation, choose
from vit_jax.kernels.int8 import vnni, xla
from vit_jax.types import UserError

Activations = Literal["float", "dynamic"]

IMPLEMENTATIONS: Mapping[str, Mapping[str, Implementation]] = {
    "float": {"xla": Implementation(xla.weight_only)},
    "dynamic": {"vnni": vnni.IMPLEMENTATION, "xla": Implementation(xla.dynamic, xla.unsupported_reason)},
}
"""By what becomes of x: ``xla`` multiplies bytes with a sign, ``vnni`` bytes without one by those with one."""


def int8(
    x: jax.Array,
    values: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None = None,
    *,
    activations: Activations = "float",
    implementation: str | None = None,
) -> jax.Array:
    """``(x @ values) * scale + bias``, rounded once.

    A row of x that holds NaN or an infinity becomes NaN throughout where rows are rounded.

    Args:
      x: ``[..., in]``; its type is the compute type.
      values: int8 ``[in, out]``, from :func:`vit_jax.kernels.int8.rounding.quantise`.
      scale: float32 ``[out]``.
      bias: ``[out]``, or None.
      activations: "float": ``values`` are cast to the type of x, without loss, and sums are float32; "dynamic": every
        row of x is rounded to int8 with a scale of its own, and sums are int32.
      implementation: a name in :data:`IMPLEMENTATIONS`; None: the first that fits.

    Returns:
      ``[..., out]`` in the type of ``x``. Differentiable in x, scale and bias, as if x had not been rounded.

    Raises:
      UserError: the shapes do not belong together, or no implementation runs them.
    """
    size, out = x.shape[-1], values.shape[-1]
    if values.shape != (size, out) or values.dtype != "int8" or scale.shape != (out,):
        raise UserError(
            f"x with {size} inputs, {values.dtype} values {values.shape} and scale {scale.shape} do not belong "
            f"together; give int8 values [{size}, out] and scale [out]."
        )
    run = choose("int8 product", IMPLEMENTATIONS[activations], implementation, x, values, scale, bias)
    y: jax.Array = run(x, values, scale, bias)
    return y
