"""Hierarchical prompting (TransHP, Wang et al. 2023, arXiv:2304.06385): a block that is told of coarse classes."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.layers.block import Block
from vit_jax.layers.hooks import Tokens
from vit_jax.layers.linear import logical
from vit_jax.types import UserError

LEVELS = "levels"
"""Collection that gets the coarse ``logits`` float32 ``[B, C]`` of each such block."""


class Prompted(Block):
    """A block whose tokens see a learned token for each of C coarse classes, ``prompts [C, D]`` (section 3.2).

    What becomes of those tokens in it, o, is left out afterwards and tells the coarse class: ``<o_c, prototypes_c>``.
    No label is needed for it: attention to the prompt of an image's own class grows by training.

    Attributes:
      prompts: C.
    """

    prompts: int = 1

    @nn.compact
    def __call__(self, x: jax.Array | Tokens, **options: Any) -> Any:
        """As :class:`Block`; prompts come before all tokens and have no positions.

        Raises:
          UserError: tokens were merged.
        """
        if isinstance(x, Tokens):
            raise UserError("prompts are for tokens that each stand for one; set reduce=None.")
        batch, _, width = x.shape
        init = logical(nn.initializers.normal(0.02), (None, "embed"))
        prompts, prototypes = (self.param(name, init, (self.prompts, width)) for name in ("prompts", "prototypes"))
        shape = (batch, self.prompts, width)
        tokens = jnp.concatenate([jnp.broadcast_to(prompts.astype(x.dtype), shape), x], axis=1)
        y = super().__call__(tokens, **options)
        if self.is_mutable_collection(LEVELS) and not self.is_initializing():
            logits = jnp.einsum("bcd,cd->bc", y[:, : self.prompts].astype(jnp.float32), prototypes)
            self.put_variable(LEVELS, "logits", logits)
        return y[:, self.prompts :]
