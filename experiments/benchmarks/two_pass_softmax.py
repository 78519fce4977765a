"""The two-pass softmax (Dukhan and Ablavatski 2020, arXiv:2001.04438) against jax.nn.softmax, A B A B in one run.

    python experiments/benchmarks/two_pass_softmax.py --rounds 15 --json -

Softmax reads a row three times: for its largest number, which is taken off so that nothing overflows, for the sum, for
the result. Here exp(x) is a pair (m, n), m * 2^n with n = round(x / ln 2) and m = exp(x - n ln 2) in [0.7, 1.42], that
never overflows (Cody-Waite; a polynomial of degree 5). The first pass adds pairs,

    (m1, n1) + (m2, n2) = (m1 2^(n1 - n) + m2 2^(n2 - n), n),    n = max(n1, n2),

and the second writes m 2^(n - N) / M. A chip's lanes each have a sum of their own, and these are added at the end. The
paper's gain is of rows that no cache holds, written with vector instructions by hand; this is XLA's program.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.bench.timing import alternate
from vit_jax.cli import output

SHAPES = {"a row of 2^24": (1, 1 << 24), "attention of ViT-B/16, 8 images": (8 * 12 * 197, 197)}
LN2 = (float.fromhex("0x1.62e400p-1"), float.fromhex("0x1.7f7d1cp-20"))
"""ln 2 as a sum; n times the first is exact."""
EXP = tuple(map(float.fromhex, ("0x1.fffff6p-1", "0x1.fffdc6p-2", "0x1.555a80p-3", "0x1.573a1ap-5", "0x1.0f9f9cp-7")))
"""exp(t) = 1 + EXP[0] t + EXP[1] t^2 ... for |t| <= ln 2 / 2, of XNNPACK's ``f32-raddextexp``."""
LANES = 2048
"""Sums side by side."""
LEAST = -127.0
"""2 to this power, and below, is 0."""


def parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """exp(x) as ``m * 2^n``, both float32 like ``x``."""
    n = jnp.round(x * (1 / math.log(2)))
    t = (x - n * LN2[0]) - n * LN2[1]
    m = jnp.full_like(t, EXP[-1])
    for c in EXP[-2::-1]:
        m = m * t + c
    return m * t + 1, n


def power(n: jax.Array) -> jax.Array:
    """``2^n`` of whole ``n <= 0``, by its bits."""
    return jax.lax.bitcast_convert_type((jnp.maximum(n, LEAST).astype(jnp.int32) + 127) << 23, jnp.float32)


def add(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The sum of two pairs."""
    n = jnp.maximum(a[1], b[1])
    return a[0] * power(a[1] - n) + b[0] * power(b[1] - n), n


def two_pass(x: jax.Array, lanes: int = LANES) -> jax.Array:
    """Softmax over the last axis of float32 ``[rows, n]``."""
    n = x.shape[1]
    lanes = min(lanes, n)
    whole = n // lanes * lanes

    def more(i: Any, total: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return add(total, parts(jax.lax.dynamic_slice_in_dim(x, i * lanes, lanes, axis=1)))

    m, e = jax.lax.fori_loop(1, whole // lanes, more, parts(x[:, :lanes]))
    if whole < n:
        rest = parts(x[:, whole:])
        m, e = jnp.concatenate([m, rest[0]], axis=1), jnp.concatenate([e, rest[1]], axis=1)
    top = jnp.max(e, axis=1, keepdims=True)
    total = jnp.sum(m * power(e - top), axis=1, keepdims=True)
    x = jax.lax.optimization_barrier(x)  # else XLA keeps what the first pass found, and reads more
    m, e = parts(x)
    return m * power(e - top) * (1 / total)


def measure(what: str, shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    x = 4 * jax.random.normal(jax.random.key(0), shape)
    runs = {"two passes": jax.jit(two_pass), "jax.nn.softmax": jax.jit(lambda x: jax.nn.softmax(x, axis=-1))}
    off = jnp.max(jnp.abs(runs["two passes"](x) / runs["jax.nn.softmax"](x) - 1))
    times = alternate({name: lambda run=run: run(x) for name, run in runs.items()}, rounds)
    return {
        "what": what, "relative difference": float(off), "seconds": times["two passes"].median,
        **times["two passes"].compared("times faster", times["jax.nn.softmax"]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="pairs of measurements (default 15)")
    parser.add_argument("--json", metavar="FILE", help="write the result there, - for the terminal")
    args = parser.parse_args()
    rows = [measure(what, shape, args.rounds) for what, shape in SHAPES.items()]
    if args.json != "-":
        for row in rows:
            print(f"{row['what']:34s} {row['times faster (median)']:.2f} times jax.nn.softmax's speed")
    output.write(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
