"""Which blocks of inputs every block of outputs reads: balanced patterns that are functions of sizes alone.

All are int32 ``[out_blocks, per]``, ascending in every row. A checkpoint stores none of them, so they never change.

Rectangular grids are stretched to ``g = min(in_blocks, out_blocks)`` cells, as the published masks are: output block j
belongs to cell ``j g // out_blocks``, cell c has the input blocks from ``c in_blocks // g`` on. The cell of an output
block is read first, so with ``per >= in_blocks / out_blocks`` every input is read.
"""

from __future__ import annotations

import functools

import numpy as np

from vit_jax.types import UserError


def count(density: float, in_blocks: int) -> int:
    """How many of ``in_blocks`` an output block reads: the nearest whole number, at least one."""
    return min(in_blocks, max(1, round(density * in_blocks)))


@functools.cache
def butterfly(in_blocks: int, out_blocks: int, per: int) -> np.ndarray:
    """Flat block butterfly (Pixelated Butterfly, Chen et al. 2021, arXiv:2112.00029): local and strided blocks.

    The butterfly factor of stride s joins cells that differ in one digit; the union of the identity and the first f
    factors of 2^k cells lets cell c read c, c ^ 1, c ^ 2, ... c ^ 2^(f-1): f + 1 cells. Two generalisations: any number
    of cells has digits, whose bases are its prime factors, smallest first, and a digit is changed by adding to it; and
    when all factors are used up, cells follow that differ in two digits, three, and so on, up to all cells.

    Args:
      in_blocks: blocks of inputs.
      out_blocks: blocks of outputs.
      per: input blocks that an output block reads.
    """
    _check(in_blocks, out_blocks, per)
    cells = min(in_blocks, out_blocks)
    bases = np.asarray(_primes(cells), int)
    strides = np.cumprod([1, *bases[:-1]])[: len(bases)]
    digits = np.arange(cells)[:, None] // strides % bases
    order = sorted(range(cells), key=lambda shift: (np.count_nonzero(digits[shift]), shift))
    partners = np.sum((digits[:, None] + digits[order]) % bases * strides, 2)  # [cells, cells], nearest first
    inputs = [np.concatenate([_inputs(c, in_blocks, cells) for c in row])[:per] for row in partners]
    return _frozen(np.sort(inputs, 1)[_cells(in_blocks, out_blocks)])


@functools.cache
def random(in_blocks: int, out_blocks: int, per: int, seed: int) -> np.ndarray:
    """The own cell of every output block, the rest drawn without replacement, the same on every machine.

    Arguments as of :func:`butterfly`; ``seed`` is 0 or more.
    """
    _check(in_blocks, out_blocks, per)
    # The raw stream of a bit generator is fixed for ever, what NumPy makes of it is not.
    keys = np.random.Philox(key=seed).random_raw(out_blocks * in_blocks).reshape(out_blocks, in_blocks)
    for j, cell in enumerate(_cells(in_blocks, out_blocks)):
        keys[j, _inputs(cell, in_blocks, min(in_blocks, out_blocks))] = 0
    return _frozen(np.sort(np.argsort(keys, 1, kind="stable")[:, :per], 1))


def _cells(in_blocks: int, out_blocks: int) -> np.ndarray:
    return np.arange(out_blocks) * min(in_blocks, out_blocks) // out_blocks


def _inputs(cell: int, in_blocks: int, cells: int) -> np.ndarray:
    return np.arange(cell * in_blocks // cells, (cell + 1) * in_blocks // cells)


def _primes(n: int) -> list[int]:
    found, p = [], 2
    while n > 1:
        while n % p == 0:
            found.append(p)
            n //= p
        p += 1
    return found


def _frozen(index: np.ndarray) -> np.ndarray:
    index = index.astype(np.int32)
    index.flags.writeable = False
    return index


def _check(in_blocks: int, out_blocks: int, per: int) -> None:
    if min(in_blocks, out_blocks) < 1 or not 1 <= per <= in_blocks:
        raise UserError(
            f"{out_blocks} output blocks cannot read {per} of {in_blocks} input blocks each; give 1 to {in_blocks}."
        )
