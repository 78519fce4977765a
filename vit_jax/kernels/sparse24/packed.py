"""2:4 sparsity: which two of four weights stay, and the storage that holds only those.

A group is four consecutive inputs of one output. Stored are, per group, the two values that stay and their places in
the group, 2 bits each: 36 bits where four bfloat16 take 64 (Mishra et al. 2021, arXiv:2104.08378). Groups whose
numbers differ by half the groups share a byte, so that eight whole planes of the kernel come out of a block by
comparing and selecting, without a gather.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.kernels.int8 import rounding
from vit_jax.types import Array, UserError


@jax.jit
def mask24(kernel: Array) -> jax.Array:
    """The two largest magnitudes of every four consecutive inputs.

    Of equal magnitudes the earlier stays, so exactly two do. NaN counts as largest: a kernel that diverged shows it
    instead of being pruned back to health.

    Args:
      kernel: ``[in, out]``.

    Returns:
      bool ``[in, out]``.

    Raises:
      UserError: ``in`` is not a multiple of 4.
    """
    size = jnp.abs(_groups(jnp.asarray(kernel)))
    size = jnp.where(jnp.isnan(size), jnp.inf, size)
    mine, other = size[:, :, None], size[:, None]
    place = jnp.arange(4)
    earlier = jnp.reshape(place[None, :] < place[:, None], (1, 4, 4, 1))
    larger = jnp.sum((other > mine) | ((other == mine) & earlier), axis=2)
    return jnp.reshape(larger < 2, kernel.shape)


def _groups(kernel: jax.Array) -> jax.Array:
    if kernel.ndim != 2 or kernel.shape[0] % 4:
        raise UserError(
            f"a kernel of shape {kernel.shape} has no groups of 4 along its input; 2:4 needs [in, out] with `in` a "
            "multiple of 4, leave this map dense."
        )
    return jnp.reshape(kernel, (-1, 4, kernel.shape[1]))


def pack(kernel: Array, dtype: Any = None) -> tuple[jax.Array, jax.Array]:
    """A kernel that is 2:4 already -> its packed form, from which :func:`unpack` restores every bit.

    Args:
      kernel: ``[in, out]``, known values (not under ``jit``), at most two other than zero in every four.
      dtype: type of the stored values; default that of ``kernel``.

    Returns:
      ``values [in/2, out]``: the first kept of every group, then the second of every group.
      ``index`` uint8 ``[ceil(in/8), out]``: in byte r bits 0-3 belong to group r, bits 4-7 to group r + ceil(in/8); of
      these four bits the lower two are the place of the first value, the upper two of the second, which is later.

    Raises:
      UserError: ``in`` is not a multiple of 4, or groups hold more than two weights.
    """
    kernel = jnp.asarray(kernel)
    full = int(jnp.sum(jnp.sum(_groups(kernel) != 0, 1) > 2))
    if full:
        raise UserError(
            f"{full} of the {kernel.size // 4} groups of 4 hold more than 2 weights; prune the kernel before it is "
            "packed."
        )
    return compress(kernel, dtype)


@functools.partial(jax.jit, static_argnames="dtype")
def compress(kernel: Array, dtype: Any = None) -> tuple[jax.Array, jax.Array]:
    """:func:`pack` of any kernel, pruned by :func:`mask24`; runs under ``jit`` too."""
    kernel = jnp.asarray(kernel)
    groups, keep = _groups(kernel), _groups(mask24(kernel))
    first = jnp.argmax(keep, 1).astype(jnp.uint8)
    second = (3 - jnp.argmax(keep[:, ::-1], 1)).astype(jnp.uint8)
    values = jnp.concatenate([_at(groups, first), _at(groups, second)])
    code = first | second << 2
    half = -(-code.shape[0] // 2)
    high = jnp.pad(code[half:], ((0, 2 * half - code.shape[0]), (0, 0)))
    return values.astype(dtype or kernel.dtype), code[:half] | high << 4


def pack_int8(kernel: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Packed form with int8 values and one scale for each output: 20 bits where four bfloat16 take 64.

    Symmetric, so zero stays zero: ``scale = max |w| / 127`` over what the mask leaves, ``values = round(w / scale)``.

    Args:
      kernel: as for :func:`pack`.

    Returns:
      ``values`` int8 and ``index`` as from :func:`pack`, ``scale`` float32 ``[out]``, 1 where all weights are zero.

    Raises:
      UserError: as :func:`pack`.
    """
    return quantise(*pack(kernel, jnp.float32))


@jax.jit
def quantise(values: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """float32 packed values -> ``(values int8, index, scale float32 [out])``."""
    steps, scale = rounding.quantise(values, 0)
    return steps, index, scale[0]


@jax.jit
def unpack(values: Array, index: Array, scale: Array | None = None) -> jax.Array:
    """The dense ``[in, out]`` of a packed kernel, in the type of ``values``; float32 if there is a ``scale [out]``."""
    values, (first, second) = jnp.asarray(values), codes(index, values.shape[0] // 2)
    half = values.shape[0] // 2
    one, two = values[:half], values[half:]
    planes = [jnp.where(first == j, one, jnp.where(second == j, two, jnp.zeros_like(two))) for j in range(4)]
    kernel = jnp.reshape(jnp.stack(planes, 1), (4 * half, values.shape[1]))
    return kernel if scale is None else kernel.astype(jnp.float32) * jnp.asarray(scale)[None]


@jax.jit
def select(kernel: jax.Array, index: jax.Array) -> jax.Array:
    """What a dense ``[in, out]`` holds at the places of the packed values, ``[in/2, out]``."""
    groups = _groups(kernel)
    return jnp.concatenate([_at(groups, place) for place in codes(index, groups.shape[0])])


def codes(index: Array, groups: int) -> tuple[jax.Array, jax.Array]:
    """Places 0-3 of the first and of the second value of every group, uint8 ``[groups, out]`` each."""
    index = jnp.asarray(index)
    code = jnp.concatenate([index & 15, index >> 4])[:groups]
    return code & 3, code >> 2


def _at(groups: jax.Array, place: jax.Array) -> jax.Array:
    """``[G, 4, out]``, places ``[G, out]`` -> ``[G, out]``."""
    return jnp.take_along_axis(groups, place[:, None].astype(jnp.int32), 1)[:, 0]
