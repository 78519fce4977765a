"""The recurrence of a selective state space model (Gu and Dao 2023, Mamba, arXiv:2312.00752, algorithm 2).

For every channel e a state ``h`` of n numbers, zero at first, goes through the tokens:
``h_t = exp(delta_t a) * h_{t-1} + delta_t x_t b_t`` and ``y_t = c_t . h_t + d x_t``, with b and c of all channels.
What makes ``delta`` positive and what ``y`` is multiplied by are elementwise, and left to XLA.
"""

from __future__ import annotations

import jax

from vit_jax.kernels.dispatch import Implementation, choose
from vit_jax.kernels.selective_scan import mosaic_tpu, sequential, xla
from vit_jax.types import UserError

IMPLEMENTATIONS = {
    "mosaic_tpu": mosaic_tpu.IMPLEMENTATION,
    "sequential": Implementation(sequential.run, platform="cpu"),
    "xla": Implementation(xla.run),
}
"""All keep the states of one chunk of tokens; the first never writes them to HBM."""


def selective_scan(
    x: jax.Array,
    delta: jax.Array,
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    d: jax.Array,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """The outputs ``y`` of a state space model whose step size and whose maps in and out depend on the token.

    Args:
      x: ``[B, N, E]``, float32 or bfloat16.
      delta: step sizes ``[B, N, E]``, positive; float32 where ``x`` is bfloat16, too, unless three digits are enough.
      a: rates ``[E, n]``, negative where the state is to be forgotten.
      b: how tokens enter the state, ``[B, N, n]``.
      c: how the state is read, ``[B, N, n]``.
      d: share of a token itself, ``[E]``.
      implementation: a name in :data:`IMPLEMENTATIONS`; by default the first that fits.

    Returns:
      ``[B, N, E]`` in the type of ``x``, computed in float32, as are the gradients of all arguments.

    Raises:
      UserError: the shapes do not fit together, or the named implementation cannot run.
    """
    batch, tokens, channels, size = *x.shape, a.shape[-1]
    both = (batch, tokens)
    wanted = {"delta": x.shape, "a": (channels, size), "b": (*both, size), "c": (*both, size), "d": (channels,)}
    for (name, shape), found in zip(wanted.items(), (delta, a, b, c, d), strict=True):
        if found.shape != shape:
            raise UserError(f"{name} has shape {found.shape}; x {x.shape} and a state of {size} need {shape}.")
    run = choose("selective scan", IMPLEMENTATIONS, implementation, x, delta, a, b, c, d)
    y: jax.Array = run(x, delta, a, b, c, d)
    return y
