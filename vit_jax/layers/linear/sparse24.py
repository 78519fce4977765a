"""Linear maps with 2:4 sparse weights: trained dense behind a mask (SR-STE or ASP), quantised on top, stored packed.

Three ways to a 2:4 model, all of them values:

* ``Sparse24()`` (SR-STE, Zhou et al. 2021, arXiv:2102.04010, section 3): the mask follows the weights at every step.
* ``Sparse24(mask="frozen")`` (ASP, Mishra et al. 2021, arXiv:2104.08378): ``from_dense`` prunes once, zeros stay zeros.
* ``Sparse24(mask="frozen", bits=8)``: as the second stage of GPUSQ-ViT (Yu et al. 2023, arXiv:2305.10727), with
  distillation as an objective.

``Packed24().from_dense(*Sparse24(...).to_dense(params))`` is then what runs.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.checks import Checked, Range
from vit_jax.kernels.sparse24 import mask24, sparse24, unpack
from vit_jax.kernels.sparse24.packed import compress, quantise
from vit_jax.layers.linear.base import LinearLayer, LinearSpec, logical, matmul
from vit_jax.types import Array, Params, UserError

BITS = Range(2, 8, hint=", or none to train without quantisation")
Mask = Literal["dynamic", "frozen"]
Storage = Literal["bfloat16", "float32", "int8"]


def prune(kernel: Array) -> jax.Array:
    """``[in, out]`` with zeros where :func:`mask24` says no."""
    return jnp.where(mask24(kernel), kernel, jnp.zeros_like(kernel))


def mask_distance(before: Array, after: Array) -> jax.Array:
    """Positions in which two masks differ (SAD, arXiv:2102.04010, section 3.2), int32 ``[]``."""
    return jnp.sum(jnp.asarray(before) != jnp.asarray(after), dtype=jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def masked(kernel: jax.Array, lam: float, mask: Mask) -> jax.Array:
    """:func:`prune` with a gradient of its own.

    * dynamic: ``g + lam (1 - M) W``. Pruned weights feel the loss as if they were there, and are pulled to zero; with
      ``lam=0`` the plain straight-through estimator.
    * frozen: g for the weights that are kept and not zero. A weight that is zero has a zero gradient, so optimizers
      that treat every weight by itself leave it there: moments and decay of zero are zero.
    """
    return prune(kernel)


def _masked_bwd(lam: float, mask: Mask, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    kept = mask24(kernel)
    if mask == "frozen":
        return (jnp.where(kept & (kernel != 0), g, jnp.zeros_like(g)),)
    return (g + lam * jnp.where(kept, jnp.zeros_like(kernel), kernel),)


masked.defvjp(lambda kernel, lam, mask: (prune(kernel), kernel), _masked_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def fake_quant(w: jax.Array, bits: int, axis: int | tuple[int, ...], scale: jax.Array | None = None) -> jax.Array:
    """``w`` rounded to the ``2^bits - 1`` levels of symmetric integers: ``clip(round(w / s), -t, t) s``.

    Here ``t = 2^(bits-1) - 1``. Zero is a level, so sparsity survives. Straight-through: the gradient of what was not
    clipped passes unchanged, the rest is zero; the scale has none.

    Args:
      w: any shape.
      bits: 2 to 8.
      axis: what shares a scale; of a kernel ``[in, out]`` 0: one scale for each output.
      scale: s, of a shape that broadcasts against ``w``; None: ``max |w| / t``, which clips nothing (1 where all is 0).

    Returns:
      As ``w``.

    Raises:
      UserError: ``bits`` is out of range.
    """
    return _fake_quant_fwd(w, bits, axis, scale)[0]


def _fake_quant_fwd(w: jax.Array, bits: int, axis: Any, scale: Any) -> tuple[jax.Array, jax.Array]:
    BITS.check("bits", bits)
    top = 2 ** (bits - 1) - 1
    wide = w.astype(jnp.float32)
    if scale is None:
        peak = jnp.max(jnp.abs(wide), axis, keepdims=True)
        scale = jnp.where(peak > 0, peak / top, 1.0)
    steps = jnp.round(wide / scale)
    return (jnp.clip(steps, -top, top) * scale).astype(w.dtype), jnp.abs(steps) <= top


def _fake_quant_bwd(bits: int, axis: Any, inside: jax.Array, g: jax.Array) -> tuple[jax.Array, None]:
    return jnp.where(inside, g, jnp.zeros_like(g)), None


fake_quant.defvjp(_fake_quant_fwd, _fake_quant_bwd)


@dataclasses.dataclass(frozen=True)
class Sparse24(Checked, LinearSpec):
    """Dense float32 parameters of which every product sees two of four consecutive inputs.

    The mask is found in the weights themselves at every step, so there is no state beside them, and permuting the
    inputs before ``from_dense`` (:mod:`vit_jax.layers.linear.permutation24`) is free.

    Attributes:
      lam: strength with which pruned weights are pulled to 0 (``mask="dynamic"`` only). It is part of the gradient:
        Adam rescales it.
      mask: "dynamic": follows the weights; "frozen": what is zero stays zero, prune with ``from_dense`` or from the
        start of training. Not for optimizers that mix weights, as Shampoo and Muon do.
      bits: 2 to 8 rounds the kept weights to so many bits, one scale for each output; None does not round.
    """

    lam: Annotated[float, Range(0, 1e3, hint="; 2e-4 is usual, 0 plain straight-through")] = 2e-4
    mask: Mask = "dynamic"
    bits: Annotated[int, BITS] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask not in ("dynamic", "frozen"):
            raise UserError(f"mask={self.mask!r} is not allowed; give 'dynamic' or 'frozen'.")

    def __call__(self, features: int, **kwargs: Any) -> Sparse24Linear:
        return Sparse24Linear(features, spec=self, **kwargs)

    def effective(self, kernel: jax.Array) -> jax.Array:
        """The parameter ``[in, out]`` -> the kernel of the product, differentiable as the fields say."""
        kernel = masked(kernel, self.lam, self.mask)
        return kernel if self.bits is None else fake_quant(kernel, self.bits, 0)

    def to_dense(self, params: Params) -> tuple[jax.Array, jax.Array | None]:
        """What the product sees: pruned, and rounded if ``bits`` says so."""
        return self.effective(jnp.asarray(params["kernel"])), params.get("bias")

    def from_dense(self, kernel: jax.Array, bias: jax.Array | None) -> Params:
        """By magnitude. A frozen kernel is pruned here; a dynamic one keeps what its mask hides, which may return."""
        mask24(kernel)  # refuses what has no groups
        kept = prune(kernel) if self.mask == "frozen" else kernel
        return {"kernel": kept} if bias is None else {"kernel": kept, "bias": bias}


class Sparse24Linear(LinearLayer):
    """``[..., in] -> [..., features]`` with parameters ``kernel [in, features]``, dense, and ``bias [features]``.

    Attributes:
      spec: the map's mask and quantisation.
    """

    spec: Sparse24 = Sparse24()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        frozen = self.spec.mask == "frozen"
        init = (lambda *args: prune(self.kernel_init(*args))) if frozen else self.kernel_init
        kernel = self.param("kernel", logical(init, self.axes), (x.shape[-1], self.features))
        return matmul(x.astype(self.dtype), self.spec.effective(kernel), self.make_bias())


@dataclasses.dataclass(frozen=True)
class Packed24(LinearSpec):
    """Only the kept weights and their places, for inference: integers among the parameters are not trained.

    Attributes:
      storage: type of the weights; "int8" with a float32 scale for each output.
      implementation: name in ``vit_jax.kernels.sparse24.IMPLEMENTATIONS``; None: the first that runs.
    """

    storage: Storage = "bfloat16"
    implementation: str | None = None

    def __call__(self, features: int, **kwargs: Any) -> Packed24Linear:
        return Packed24Linear(features, spec=self, **kwargs)

    def pack(self, kernel: jax.Array) -> Params:
        """``[in, out]``, pruned by magnitude where it has to be -> the parameters without the bias."""
        if self.storage != "int8":
            values, index = compress(kernel, self.storage)
            return {"kernel_values": values, "kernel_index": index}
        values, index, scale = quantise(*compress(kernel, jnp.float32))
        return {"kernel_values": values, "kernel_index": index, "kernel_scale": scale}

    def to_dense(self, params: Params) -> tuple[jax.Array, jax.Array | None]:
        """The float32 kernel and the bias."""
        kernel = unpack(params["kernel_values"], params["kernel_index"], params.get("kernel_scale"))
        return kernel.astype(jnp.float32), params.get("bias")

    def from_dense(self, kernel: jax.Array, bias: jax.Array | None) -> Params:
        """Pruned by magnitude where it has to be; exact if it is 2:4 and its weights fit the storage."""
        params = self.pack(kernel)
        return params if bias is None else {**params, "bias": bias}


class Packed24Linear(LinearLayer):
    """``[..., in] -> [..., features]`` with parameters as :class:`Packed24` stores them.

    ``kernel_values [in/2, features]`` in the storage type, ``kernel_index`` uint8 ``[ceil(in/8), features]``, with int8
    ``kernel_scale [features]``, and ``bias [features]``.

    Attributes:
      spec: the map's storage and implementation; the stored weights are expanded into the compute type.
    """

    spec: Packed24 = Packed24()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # One key for all parts: they are parts of one kernel.
        key = self.make_rng("params") if self.is_initializing() else jax.random.key(0)

        def part(name: str) -> jax.Array:
            def init(_: jax.Array) -> jax.Array:
                return self.spec.pack(self.kernel_init(key, (x.shape[-1], self.features)))[name]

            ndim = 1 if name == "kernel_scale" else 2
            return self.param(name, logical(init, (None,) * ndim))

        values, index = part("kernel_values"), part("kernel_index")
        scale = part("kernel_scale") if self.spec.storage == "int8" else None
        run = functools.partial(sparse24, implementation=self.spec.implementation)
        return run(x.astype(self.dtype), values, index, self.make_bias(), scale=scale)
