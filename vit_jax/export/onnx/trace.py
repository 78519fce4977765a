"""A JAX function as a flat list of equations, what follows from the parameters alone computed beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from vit_jax import trees
from vit_jax.types import Params

CALLS = {
    "jit": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
"""Primitives that only call a program, by the parameter that holds it."""
ONNX = jax.sharding.AbstractMesh(
    (1,), ("all",), abstract_device=jax.sharding.AbstractDevice("onnx", num_cores=None, platform="onnx")
)
"""What a program is traced for: a runtime's own operations are fast, what only XLA on a CPU needs is not in the way."""


@dataclasses.dataclass(eq=False)
class Value:
    """What an equation takes or gives.

    Attributes:
      shape: with symbolic dimensions where the batch is.
      dtype: of its elements.
      name: of a parameter or an input, else empty.
      array: its content where it is known, else None.
    """

    shape: tuple[Any, ...]
    dtype: Any
    name: str = ""
    array: Any = None


@dataclasses.dataclass(frozen=True)
class Equation:
    """One primitive applied.

    Attributes:
      name: of the primitive.
      primitive: JAX's.
      params: its static parameters.
      inputs: what it takes.
      outputs: what it gives.
      place: the module it belongs to, ``"encoder/block_0/mlp"`` for instance.
    """

    name: str
    primitive: Any
    params: Mapping[str, Any]
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    place: str


@dataclasses.dataclass(frozen=True)
class Traced:
    """A function of one array.

    Attributes:
      equations: those that depend on the input, in order; all other values have their ``array``.
      input: its argument.
      output: its result.
      batch: the symbol of the input's first dimension.
    """

    equations: Sequence[Equation]
    input: Value
    output: Value
    batch: Any


def trace(run: Callable[[Params, jax.Array], jax.Array], params: Params, shape: Sequence[int], dtype: Any) -> Traced:
    """``run(params, x)`` for ``x [batch, *shape]`` of any batch size."""
    (batch,) = jax.export.symbolic_shape("batch")
    with jax.sharding.use_abstract_mesh(ONNX):
        closed = jax.make_jaxpr(run)(params, jax.ShapeDtypeStruct((batch, *shape), dtype))
    leaves = [Value(np.shape(x), np.asarray(x).dtype, name, x) for name, x in trees.flat(params).items()]
    x = Value((batch, *shape), np.dtype(dtype))
    equations: list[Equation] = []
    (output,) = _walk(closed, [*leaves, x], "", equations)
    return Traced(_folded(used(equations, output), output), x, output, batch)


def _walk(program: ClosedJaxpr | Jaxpr, args: Sequence[Value], place: str, found: list[Equation]) -> list[Value]:
    """Appends the equations of ``program``, calls inlined, and returns its results."""
    consts = [_constant(c, jax.typeof(c).dtype) for c in program.consts] if isinstance(program, ClosedJaxpr) else []
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Value:
        return _constant(atom.val, _value(atom).dtype) if isinstance(atom, Literal) else values[atom]

    for e in jaxpr.eqns:
        inputs = [read(atom) for atom in e.invars]
        here = "/".join(filter(None, (place, str(e.source_info.name_stack))))
        if e.primitive.name in CALLS:
            outputs = _walk(e.params[CALLS[e.primitive.name]], inputs, here, found)
        else:
            outputs = [_value(v) for v in e.outvars]
            found.append(Equation(e.primitive.name, e.primitive, e.params, inputs, outputs, here))
        values.update(zip(e.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _value(var: Any) -> Value:
    return Value(var.aval.shape, var.aval.dtype)


def _constant(x: Any, dtype: Any) -> Value:
    return Value(np.shape(x), dtype, array=x if isinstance(x, jax.Array) else np.asarray(x, dtype))


def used(equations: Sequence[Equation], output: Value) -> list[Equation]:
    """Those that the output depends on."""
    needed, kept = {output}, []
    for e in reversed(equations):
        if not needed.isdisjoint(e.outputs):
            needed.update(e.inputs)
            kept.append(e)
    return kept[::-1]


def _folded(equations: Sequence[Equation], output: Value) -> list[Equation]:
    """Those that depend on the input; what the others compute is computed here, in one program."""
    known: dict[Value, None] = {}
    ours, rest = [], []
    for e in equations:
        static = all(isinstance(d, int) for v in e.outputs for d in v.shape) and e.name != "dim_as_value"  # the batch
        if static and all(v.array is not None or v in known for v in e.inputs):
            ours.append(e)
            known.update(dict.fromkeys(e.outputs))
        else:
            rest.append(e)
    leaves = list(dict.fromkeys(v for e in ours for v in e.inputs if v.array is not None))
    wanted = list(dict.fromkeys(v for e in rest for v in e.inputs if v in known)) + [output] * (output in known)

    def run(arrays: list[Any]) -> list[Any]:
        env = dict(zip(leaves, arrays, strict=True))
        for e in ours:
            found = e.primitive.bind(*(env[v] for v in e.inputs), **e.params)
            env.update(zip(e.outputs, found if e.primitive.multiple_results else [found], strict=True))
        return [env[v] for v in wanted]

    for value, array in zip(wanted, jax.jit(run)([v.array for v in leaves]), strict=True):
        value.array = array
    return rest
