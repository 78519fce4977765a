"""How large the pieces are that a TPU kernel works on: as pinned by a caller, else by the kernel's own rule."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from vit_jax import config

KERNELS = ("layer_norm", "attention", "monarch", "monarch_mlp", "block_diagonal", "block_sparse", "sparse24")
"""Whose pieces are rows of a tile; of attention they are heads of a program, of sparse24 outputs of a block."""
_PINNED = jax.make_user_context(())  # in the key of jit: what was traced under another pin is traced anew


@contextlib.contextmanager
def pinned(**sizes: int) -> Iterator[None]:
    """Kernels that are traced inside are cut as is said here, whether they fit into VMEM or not.

    Args:
      sizes: one of :data:`KERNELS` -> the size of its pieces; the others keep theirs.

    Raises:
      UserError: there is no such kernel.
    """
    known = {name: name for name in KERNELS}
    chosen = {config.lookup(known, name, "kernel with tiles"): size for name, size in sizes.items()}
    with _PINNED(tuple({**dict(_PINNED.value), **chosen}.items())):
        yield


def of(kernel: str) -> int | None:
    """What is pinned for a kernel here, or None."""
    return dict(_PINNED.value).get(kernel)
