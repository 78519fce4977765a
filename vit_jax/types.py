"""Array aliases, the letter legend and the errors a user may see.

Letters in shape comments and docstrings, the same in the whole package:

    B batch    H W image height, width    C channels or classes    P patch side
    N tokens   D model width              F hidden width of an MLP  K heads   E width of a head
    L layers   M micro-batch              G groups
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray
PRNGKey = jax.Array
Params = Any
"""A pytree of float32 arrays: nested dictionaries, named as in the module tree."""
Batch = Mapping[str, Array]
"""``image``, ``size``, ``label``, ``mask``, ``index``, ``text``, ``captions``: see ``vit_jax.data.loader``."""


class Patches(NamedTuple):
    """Images of unlike shapes as one batch: the patches of each row by row, filled up to as many as the batch has.

    Attributes:
      pixels: ``[B, N, P * P * C]``; of a patch its rows, of a pixel its channels.
      at: int32 ``[B, N, 2]``, row and column of a patch in the grid of its image; 0 where there is none.
      real: bool ``[B, N]``, False for what fills up.
    """

    pixels: Any
    at: Any
    real: Any


OutputActivation = Literal["softmax", "sigmoid"]
"""How logits become probabilities: one distribution over all classes (or texts), or a yes or no for each."""


class UserError(ValueError):
    """A mistake of the user's; its message is one sentence that names the remedy.

    Attributes:
      status: exit status of a command that ends so.
    """

    status = 1


class UsageError(UserError):
    """A wrong key, type or argument: found before anything ran."""

    status = 2


class Stopped(UserError):
    """A run that ended before its end, with all that it needs to go on: the same command does (EX_TEMPFAIL)."""

    status = 75


class Stuck(Stopped):
    """Threads wait for what may never come, a read for one: Python would wait for them, so a command leaves at once."""
