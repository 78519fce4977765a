"""The forms that never hold all pairs: in chunks on one device, and in a ring over the devices that share the batch.

One pair of functions does both. Every device keeps its rows, cut into chunks; the columns, with what is summed for
them, travel from device to device and are home again after a full turn (a ring of one device: no communication). The
gradients are written by hand, because they recompute each block instead of keeping it: automatic differentiation of
the same loops would save all of them, or at least every column that passed by.

The price is one product in four: forward 1, backward 1 again and 2. The matrix never leaves the cache, which on most
machines is worth more than that.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_jax import sharding
from vit_jax.checks import Checked, Count
from vit_jax.losses import pairs
from vit_jax.losses.pairs import LOGSUMEXP, NEVER, Reduction, Side
from vit_jax.types import Array, UserError


class Plan(NamedTuple):
    """Rows of a chunk, and the mesh whose batch axes form the ring, or None."""

    size: int
    mesh: Any = None

    @property
    def devices(self) -> int:
        return 1 if self.mesh is None else self.mesh.shape["replica"] * self.mesh.shape["fsdp"]


@dataclasses.dataclass(frozen=True)
class Chunked(Checked):
    """One device, ``size`` rows of the matrix at a time: memory O(B * size). The batch need not be a multiple.

    Attributes:
      size: rows of the matrix that are in memory at a time.
    """

    size: Count = 256

    def plan(self, batch: int) -> Plan:
        """How a batch of this size is gone through."""
        return Plan(self.size)

    def reduce(
        self, what: Reduction, a: jax.Array, c: jax.Array, scale: Array, bias: Array | None, mask: Array
    ) -> tuple[jax.Array, ...]:
        return _reduce(what, self.plan(a.shape[0]), a, c, jnp.asarray(scale), bias, jnp.asarray(mask))

    def hopfield_retrieve(self, beta: float, query: jax.Array, memory: jax.Array, mask: Array) -> jax.Array:
        return _hopfield_retrieve(beta, self.plan(query.shape[0]), query, memory, jnp.asarray(mask))


@dataclasses.dataclass(frozen=True)
class Ring(Chunked):
    """All devices that share the batch, each with its own rows, chunked: memory O(B / devices * size)."""

    def plan(self, batch: int) -> Plan:
        mesh = jax.sharding.get_abstract_mesh()
        plan = Plan(self.size, None if mesh.empty or mesh.size == 1 else mesh)
        if batch % plan.devices:
            raise UserError(
                f"a ring of {plan.devices} devices cannot share {batch} pairs; make the batch a multiple, "
                "or take form='dense'."
            )
        return plan


# The machinery: places, chunks and the ring


def _sharded(plan: Plan, f: Callable[..., Any], split: tuple[bool, ...]) -> Callable[..., Any]:
    """``f`` of the local rows, run on every device of the ring; see :func:`vit_jax.sharding.over_batch`."""
    return f if plan.mesh is None else sharding.over_batch(f, plan.mesh, split)


def _start(plan: Plan, n: int) -> jax.Array | int:
    return 0 if plan.mesh is None else jax.lax.axis_index(sharding.BATCH) * n


def _turn(plan: Plan, meet: Callable[[Any, Any], tuple[Any, Any]], here: Any, there: Any) -> tuple[Any, Any]:
    """``here`` meets every device's ``there``, which comes home with what it gathered on the way."""
    if plan.devices == 1:
        return meet(here, there)
    ring = [(i, (i + 1) % plan.devices) for i in range(plan.devices)]

    def step(carry: Any, _: None) -> tuple[Any, None]:
        here, there = meet(*carry)
        return (here, jax.tree.map(lambda x: jax.lax.ppermute(x, sharding.BATCH, ring), there)), None

    return jax.lax.scan(step, (here, there), None, length=plan.devices)[0]


def _cut(plan: Plan, tree: Any) -> Any:
    """``[n, ...] -> [chunks, rows, ...]``, the last chunk filled up with zeros (False: rows that do not count)."""

    def one(x: jax.Array) -> jax.Array:
        chunks = -(-x.shape[0] // plan.size)
        rows = -(-x.shape[0] // chunks)
        x = jnp.pad(x, [(0, chunks * rows - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
        return jnp.reshape(x, (chunks, rows, *x.shape[1:]))

    return jax.tree.map(one, tree)


def _join(x: jax.Array, n: int) -> jax.Array:
    return jnp.reshape(x, (-1, *x.shape[2:]))[:n]


# reduce


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _reduce(what: Reduction, plan: Plan, a: Any, c: Any, scale: Any, bias: Any, mask: Any) -> Any:
    return _reduce_fwd(what, plan, a, c, scale, bias, mask)[0]


def _reduce_fwd(what: Reduction, plan: Plan, a: Any, c: Any, scale: Any, bias: Any, mask: Any) -> Any:
    rule = what.rule

    def local(a: Any, c: Any, scale: Any, bias: Any, mask: Any) -> Any:
        n = a.shape[0]
        empty = jnp.full(n, rule.empty, a.dtype)
        start = _start(plan, n)

        here = _cut(plan, Side.of(a, mask, start))

        def meet(rows: Any, there: Any) -> Any:
            side, columns = there

            def chunk(columns: Any, at: Any) -> Any:
                own, rows = at
                z = pairs.logits(what, own, side, scale, bias)
                columns = rule.merge(columns, rule.reduce(z, 0)) if what.columns else None
                return columns, rule.merge(rows, rule.reduce(z, 1))

            columns, rows = jax.lax.scan(chunk, columns, (here, rows))
            return rows, (side, columns)

        there = (Side.of(c, mask, start), empty if what.columns else None)
        rows, (_, columns) = _turn(plan, meet, _cut(plan, empty), there)
        return (_join(rows, n), *([columns] if what.columns else [])), ()

    found, _ = _sharded(plan, local, (True, True, False, False, True))(a, c, scale, bias, mask)
    return found, (a, c, scale, bias, mask, found)


def _reduce_bwd(what: Reduction, plan: Plan, saved: Any, g: Any) -> Any:
    derivative = what.rule.derivative
    assert derivative is not None, "this rule has no gradient"

    def local(a: Any, c: Any, scale: Any, bias: Any, mask: Any, found: Any, g: Any) -> Any:
        n = a.shape[0]
        start = _start(plan, n)
        rows, columns = (*found, None)[:2]
        g_rows, g_columns = (*g, None)[:2]

        here = _cut(plan, (Side.of(a, mask, start), rows, g_rows))

        def meet(sums: Any, there: Any) -> Any:
            side, columns, g_columns, dc = there

            def chunk(dc: Any, at: Any) -> Any:
                (own, rows, g_rows), (da, dbias) = at
                z = pairs.logits(what, own, side, scale, bias)
                w = g_rows[:, None] * derivative(z, rows[:, None])
                if what.columns:
                    w += g_columns[None, :] * derivative(z, columns[None, :])
                if bias is not None:
                    dbias += jnp.sum(w, 1)
                return dc + w.T @ own.x, (da + w @ side.x, dbias)

            dc, sums = jax.lax.scan(chunk, dc, (here, sums))
            return sums, (side, columns, g_columns, dc)

        there = (Side.of(c, mask, start), columns, g_columns, jnp.zeros_like(c))
        (da, dbias), (*_, dc) = _turn(plan, meet, _cut(plan, (jnp.zeros_like(a), jnp.zeros(n, a.dtype))), there)
        dscale = jnp.sum(jnp.sum(here[0].x * da, -1))  # sum of w * a.c, before the factor ``scale`` of da
        sums = (dscale, None if bias is None else jnp.sum(dbias))
        return (scale * _join(da, n), scale * dc), sums

    split = (True, True, False, False, True, True, True)
    (da, dc), (dscale, dbias) = _sharded(plan, local, split)(*saved, g)
    return da, dc, dscale, dbias, None


_reduce.defvjp(_reduce_fwd, _reduce_bwd)


# hopfield_retrieve


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _hopfield_retrieve(beta: float, plan: Plan, query: Any, memory: Any, mask: Any) -> Any:
    return _hopfield_retrieve_fwd(beta, plan, query, memory, mask)[0]


def _scores(beta: float, query: jax.Array, memory: Side) -> jax.Array:
    everyone = Side.of(query, jnp.ones(query.shape[0], bool))
    return pairs.logits(Reduction(LOGSUMEXP), everyone, memory, beta, None)


def _hopfield_retrieve_fwd(beta: float, plan: Plan, query: Any, memory: Any, mask: Any) -> Any:
    def local(query: Any, memory: Any, mask: Any) -> Any:
        n = query.shape[0]

        chunks = _cut(plan, query)

        def meet(here: Any, there: Any) -> Any:
            def chunk(_: None, at: Any) -> Any:
                q, (total, found) = at
                z = _scores(beta, q, there)
                new = jnp.logaddexp(total, jax.nn.logsumexp(z, 1))
                found = jnp.exp(total - new)[:, None] * found + jnp.exp(z - new[:, None]) @ there.x
                return None, (new, found)

            return jax.lax.scan(chunk, None, (chunks, here))[1], there

        here = _cut(plan, (jnp.full(n, NEVER, query.dtype), jnp.zeros_like(query)))
        (total, found), _ = _turn(plan, meet, here, Side.of(memory, mask))
        return (_join(total, n), _join(found, n)), ()

    (total, found), _ = _sharded(plan, local, (True, True, True))(query, memory, mask)
    return found, (query, memory, mask, total, found)


def _hopfield_retrieve_bwd(beta: float, plan: Plan, saved: Any, g: Any) -> Any:
    def local(query: Any, memory: Any, mask: Any, total: Any, found: Any, g: Any) -> Any:
        n = query.shape[0]

        here = _cut(plan, (query, total, jnp.sum(g * found, -1), g))

        def meet(dq: Any, there: Any) -> Any:
            side, dmemory = there

            def chunk(dmemory: Any, at: Any) -> Any:
                (q, total, inner, g), dq = at
                p = jnp.exp(_scores(beta, q, side) - total[:, None])
                dz = beta * p * (g @ side.x.T - inner[:, None])
                return dmemory + dz.T @ q + p.T @ g, dq + dz @ side.x

            dmemory, dq = jax.lax.scan(chunk, dmemory, (here, dq))
            return dq, (side, dmemory)

        there = (Side.of(memory, mask), jnp.zeros_like(memory))
        dq, (_, dmemory) = _turn(plan, meet, _cut(plan, jnp.zeros_like(query)), there)
        return (_join(dq, n), dmemory), ()

    (dq, dmemory), _ = _sharded(plan, local, (True,) * 6)(*saved, g)
    return dq, dmemory, None


_hopfield_retrieve.defvjp(_hopfield_retrieve_fwd, _hopfield_retrieve_bwd)
