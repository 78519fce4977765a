"""How each primitive of JAX is said in ONNX: one table, ``name -> row``.

A row is called with the graph and the equation, and returns a tensor or one for each output. Elementwise rows take
what is broadcast as it lies there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax.export.onnx.graph import Graph, Tensor, Unsaid, broadcast
from vit_jax.export.onnx.trace import Equation

Row = Callable[[Graph, Equation], "Tensor | list[Tensor]"]
FILL = jax.lax.GatherScatterMode.FILL_OR_DROP
CLIP = jax.lax.GatherScatterMode.CLIP


def elementwise(op: str, *then: str) -> Row:
    """``op`` of the inputs, and ``then`` one operation after the other."""

    def row(g: Graph, e: Equation) -> Tensor:
        tensors = [g.get(v) for v in e.inputs]
        name = g.one(op, *tensors)
        for more in then:
            name = g.one(more, name)
        return Tensor(name, broadcast(*(t.shape for t in tensors)))

    return row


def _same(g: Graph, e: Equation) -> list[Tensor]:
    return [g.get(v) for v in e.inputs]


def _square(g: Graph, e: Equation) -> Tensor:
    x = g.get(e.inputs[0])
    return Tensor(g.one("Mul", x, x), x.shape)


def _integer_pow(g: Graph, e: Equation) -> Tensor:
    x = g.get(e.inputs[0])
    return Tensor(g.one("Pow", x, g.weight(np.asarray(e.params["y"], e.inputs[0].dtype))), x.shape)


def _select(g: Graph, e: Equation) -> Tensor:
    if len(e.inputs) != 3 or e.inputs[0].dtype != bool:
        raise Unsaid("more than two cases")
    which, no, yes = (g.get(v) for v in e.inputs)
    return Tensor(g.one("Where", which, yes, no), broadcast(which.shape, no.shape, yes.shape))


def _clamp(g: Graph, e: Equation) -> Tensor:
    low, x, high = (g.get(v) for v in e.inputs)
    return Tensor(g.one("Min", g.one("Max", x, low), high), broadcast(low.shape, x.shape, high.shape))


def _round(g: Graph, e: Equation) -> Tensor:
    if e.params["rounding_method"] != jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        raise Unsaid("rounding away from zero")
    x = g.get(e.inputs[0])
    return Tensor(g.one("Round", x), x.shape)


def _log1p(g: Graph, e: Equation) -> Tensor:
    """``log(w) x / (w - 1)`` with ``w = 1 + x``, of all digits (Higham 2002, section 1.14.1); x where w is 1."""
    x, one = g.get(e.inputs[0]), g.weight(np.asarray(1, e.inputs[0].dtype))
    w = g.one("Add", x, one)
    found = g.one("Div", g.one("Mul", g.one("Log", w), x), g.one("Sub", w, one))
    return Tensor(g.one("Where", g.one("Equal", w, one), x, found), x.shape)


def cast(g: Graph, x: Tensor, dtype: Any) -> Tensor:
    """``x`` in another type."""
    from onnx import helper

    return Tensor(g.one("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))), x.shape)


def _convert(g: Graph, e: Equation) -> Tensor:
    x, (source,), target = g.get(e.inputs[0]), e.inputs, e.params["new_dtype"]
    return x if source.dtype == target else cast(g, x, target)


def _broadcast_in_dim(g: Graph, e: Equation) -> Tensor:
    x, dims, rank = g.get(e.inputs[0]), e.params["broadcast_dimensions"], len(e.outputs[0].shape)
    shape = (1,) * (len(dims) - len(x.shape)) + tuple(x.shape)  # of the operand, as it lies there
    placed: list[Any] = [1] * rank
    for dim, size in zip(dims, shape, strict=True):
        placed[dim] = size
    while placed and isinstance(placed[0], int) and placed[0] == 1 and len(placed) > len(x.shape):
        placed.pop(0)
    if tuple(placed) == tuple(x.shape):
        return x
    at = [dim - rank + len(placed) for dim in dims[len(dims) - len(x.shape) :]]
    missing = [i for i in range(len(placed)) if i not in at]
    return Tensor(g.one("Unsqueeze", x, g.axes(missing)), tuple(placed))


def _reshape(g: Graph, e: Equation) -> Tensor:
    return g.reshape(g.full(e.inputs[0]), e.outputs[0].shape)


def _squeeze(g: Graph, e: Equation) -> Tensor:
    return Tensor(g.one("Squeeze", g.full(e.inputs[0]), g.axes(e.params["dimensions"])), e.outputs[0].shape)


def _transpose(g: Graph, e: Equation) -> Tensor:
    return g.transpose(g.full(e.inputs[0]), e.params["permutation"])


def reduction(op: str) -> Row:
    """``op`` over the axes of a ``reduce_*``."""

    def row(g: Graph, e: Equation) -> Tensor:
        return Tensor(g.one(op, g.full(e.inputs[0]), g.axes(e.params["axes"]), keepdims=0), e.outputs[0].shape)

    return row


def _argmax(g: Graph, e: Equation) -> Tensor:
    x, (axis,) = g.full(e.inputs[0]), e.params["axes"]
    x = cast(g, x, np.int32) if e.inputs[0].dtype == bool else x
    return cast(g, Tensor(g.one("ArgMax", x, axis=axis, keepdims=0), e.outputs[0].shape), e.params["index_dtype"])


def _cumsum(g: Graph, e: Equation) -> Tensor:
    axis = g.weight(np.asarray(e.params["axis"], np.int64))
    return Tensor(g.one("CumSum", g.full(e.inputs[0]), axis, reverse=int(e.params["reverse"])), e.outputs[0].shape)


def _iota(g: Graph, e: Equation) -> Tensor:
    dim, shape = e.params["dimension"], e.outputs[0].shape
    if not isinstance(shape[dim], int):
        raise Unsaid("counting over the batch")
    line = np.arange(shape[dim], dtype=e.params["dtype"]).reshape(-1, *(1,) * (len(shape) - dim - 1))
    return Tensor(g.weight(line), line.shape)


def _top_k(g: Graph, e: Equation) -> list[Tensor]:
    values, places = e.outputs
    found = g.node("TopK", g.full(e.inputs[0]), g.axes([e.params["k"]]), outputs=2, axis=e.params["axis"])
    return [Tensor(found[0], values.shape), cast(g, Tensor(found[1], places.shape), places.dtype)]


def _concatenate(g: Graph, e: Equation) -> Tensor:
    return Tensor(g.one("Concat", *map(g.full, e.inputs), axis=e.params["dimension"]), e.outputs[0].shape)


def _stack(g: Graph, e: Equation) -> Tensor:
    axis = e.params["axis"]
    parts = [g.one("Unsqueeze", g.full(v), g.axes([axis])) for v in e.inputs]
    return Tensor(g.one("Concat", *parts, axis=axis), e.outputs[0].shape)


def _split(g: Graph, e: Equation) -> list[Tensor]:
    x, sizes = g.full(e.inputs[0]), e.params["sizes"]
    names = g.node("Split", x, g.axes(sizes), outputs=len(sizes), axis=e.params["axis"])
    return [Tensor(name, v.shape) for name, v in zip(names, e.outputs, strict=True)]


def _pad(g: Graph, e: Equation) -> Tensor:
    x, config = g.full(e.inputs[0]), [tuple(map(int, c)) for c in e.params["padding_config"]]
    if not any(map(any, config)):
        return x
    if any(inner for _, _, inner in config):
        raise Unsaid("holes between elements")
    sides = [low for low, _, _ in config] + [high for _, high, _ in config]
    return Tensor(g.one("Pad", x, g.axes(sides), g.get(e.inputs[1])), e.outputs[0].shape)


def _slice(g: Graph, e: Equation) -> Tensor:
    p, shape = e.params, e.inputs[0].shape
    steps = p["strides"] or (1,) * len(shape)
    return _cut(g, g.full(e.inputs[0]), p["start_indices"], p["limit_indices"], steps, e.outputs[0].shape)


def _cut(g: Graph, x: Tensor, starts: Sequence[Any], stops: Sequence[Any], steps: Sequence[Any], shape: Any) -> Tensor:
    bounds = zip(starts, stops, steps, x.shape, strict=True)
    cut = [i for i, (low, high, step, size) in enumerate(bounds) if (low, high, step) != (0, size, 1)]
    if not cut:
        return x
    parts = [g.axes([values[i] for i in cut]) for values in (starts, stops)]
    return Tensor(g.one("Slice", x, *parts, g.axes(cut), g.axes([steps[i] for i in cut])), shape)


def _rev(g: Graph, e: Equation) -> Tensor:
    axes = e.params["dimensions"]
    ends = [g.axes([value] * len(axes)) for value in (-1, -(2**62))]
    x = g.full(e.inputs[0])
    return Tensor(g.one("Slice", x, *ends, g.axes(axes), g.axes([-1] * len(axes))), x.shape)


def _gather(g: Graph, e: Equation) -> Tensor:
    (data, index), target = e.inputs, e.outputs[0]
    if index.array is not None and index.shape == (len(_axes(e)),):
        return _at(g, e)
    places, inside = _places(g, e)
    batch, (axis,), last = len(e.params["dimension_numbers"].operand_batching_dims), _axes(e), len(index.shape) - 1
    if batch:
        found = g.one("GatherND", g.full(data), cast(g, inside, np.int64), batch_dims=batch)
    else:
        found = g.one("Gather", g.full(data), g.one("Squeeze", inside, g.axes([last])), axis=axis)
    if e.params["mode"] != FILL:
        return Tensor(found, target.shape)
    known, more = g.one("Equal", places, inside), len(data.shape) - axis - 2  # [..., 1]: one for each row that is read
    if more < 0:
        known = g.one("Squeeze", known, g.axes([last]))
    elif more:
        known = g.one("Unsqueeze", known, g.axes(range(last + 1, last + 1 + more)))
    return Tensor(g.one("Where", known, found, g.weight(np.asarray(e.params["fill_value"], data.dtype))), target.shape)


def _axes(e: Equation) -> tuple[int, ...]:
    """The axes that a gather indexes."""
    axes: tuple[int, ...] = e.params["dimension_numbers"].start_index_map
    return axes


def _at(g: Graph, e: Equation) -> Tensor:
    """A place that is known: ``x[:, 0]``."""
    (data, index), numbers, sizes = e.inputs, e.params["dimension_numbers"], e.params["slice_sizes"]
    starts: list[Any] = [0] * len(data.shape)
    for dim, at in zip(_axes(e), np.asarray(index.array), strict=True):
        starts[dim] = int(np.clip(at, 0, data.shape[dim] - sizes[dim]))
    stops = [low + size for low, size in zip(starts, sizes, strict=True)]
    found, gone = _cut(g, g.full(data), starts, stops, [1] * len(starts), tuple(sizes)), numbers.collapsed_slice_dims
    return Tensor(g.one("Squeeze", found, g.axes(gone)), e.outputs[0].shape) if gone else found


def _places(g: Graph, e: Equation) -> tuple[Tensor, Tensor]:
    """Which rows of one axis are read, ``[..., 1]``, as they are asked for and within bounds.

    Raises:
      Unsaid: several axes are indexed, or parts of rows read.
    """
    (data, index), numbers, rank = e.inputs, e.params["dimension_numbers"], len(e.outputs[0].shape)
    batch, axes, last = tuple(range(len(numbers.operand_batching_dims))), _axes(e), len(index.shape) - 1
    said = len(axes) == 1 and numbers.collapsed_slice_dims == axes and (not batch or axes == (len(batch),))
    said &= numbers.operand_batching_dims == batch and numbers.start_indices_batching_dims == batch
    rows = range(axes[0] - len(batch), axes[0] - len(batch) + last) if axes else range(0)
    said &= numbers.offset_dims == tuple(i for i in range(rank) if i not in rows)
    whole = [1 if i in (*batch, *axes) else size for i, size in enumerate(data.shape)]
    if not said or list(e.params["slice_sizes"]) != whole:
        raise Unsaid("this way of indexing")
    places = g.full(index)
    if e.params["mode"] not in (FILL, CLIP):
        return places, places
    low, high = (g.weight(np.asarray(n, index.dtype)) for n in (0, data.shape[axes[0]] - 1))
    return places, Tensor(g.one("Min", g.one("Max", places, low), high), index.shape)


def _dot_general(g: Graph, e: Equation) -> Tensor:
    (contract, batch), (a, b), target = e.params["dimension_numbers"], e.inputs, e.outputs[0].shape
    free_a, free_b = (
        [i for i in range(len(v.shape)) if i not in (*c, *n)] for v, c, n in zip((a, b), contract, batch, strict=True)
    )
    left = g.transpose(g.full(a), [*batch[0], *free_a, *contract[0]])
    right = g.transpose(g.full(b), [*batch[1], *contract[1], *free_b])
    if batch[0] or len(contract[0]) > 1 or len(free_b) != 1:  # else any number of dimensions times a matrix
        together, inner = left.shape[: len(batch[0])], math.prod(a.shape[i] for i in contract[0])
        left = g.reshape(left, (*together, math.prod(a.shape[i] for i in free_a), inner))
        right = g.reshape(right, (*together, inner, math.prod(b.shape[i] for i in free_b)))
    op = "MatMulInteger" if a.dtype == b.dtype == np.int8 else "MatMul"  # sums of bytes are int32
    return g.reshape(Tensor(g.one(op, left, right), (*left.shape[:-1], right.shape[-1])), target)


def _inverse(order: Sequence[int]) -> list[int]:
    return [int(i) for i in np.argsort(order)]


def _conv(g: Graph, e: Equation) -> Tensor:
    p, numbers = e.params, e.params["dimension_numbers"]
    if set(p["lhs_dilation"]) != {1} or p["batch_group_count"] != 1:
        raise Unsaid("a transposed convolution")
    x, kernel = (
        g.transpose(g.full(v), spec) for v, spec in zip(e.inputs, (numbers.lhs_spec, numbers.rhs_spec), strict=True)
    )
    found = g.one(
        "Conv",
        x,
        kernel,
        strides=p["window_strides"],
        dilations=p["rhs_dilation"],
        group=p["feature_group_count"],
        pads=[low for low, _ in p["padding"]] + [high for _, high in p["padding"]],
    )
    shape = tuple(e.outputs[0].shape[i] for i in numbers.out_spec)
    return g.transpose(Tensor(found, shape), _inverse(numbers.out_spec))


def pool(op: str, **attributes: Any) -> Row:
    """``op`` over windows of the middle dimensions of ``[B, ..., C]``."""

    def row(g: Graph, e: Equation) -> Tensor:
        p, rank = e.params, len(e.inputs[0].shape)
        base, dilation = (p.get(f"{name}_dilation", (1,) * rank) for name in ("base", "window"))
        sides = (p["window_dimensions"], p["window_strides"], base, dilation)
        if any(v[0] != 1 or v[-1] != 1 for v in sides) or set(base) != {1} or p["padding"][-1] != (0, 0):
            raise Unsaid("this window")
        order = [0, rank - 1, *range(1, rank - 1)]
        inner = slice(1, rank - 1)
        found = g.one(
            op,
            g.transpose(g.full(e.inputs[0]), order),
            kernel_shape=p["window_dimensions"][inner],
            strides=p["window_strides"][inner],
            dilations=dilation[inner],
            pads=[low for low, _ in p["padding"][inner]] + [high for _, high in p["padding"][inner]],
            **attributes,
        )
        return g.transpose(Tensor(found, tuple(e.outputs[0].shape[i] for i in order)), _inverse(order))

    return row


def _sum_pool(g: Graph, e: Equation) -> Tensor:
    """The mean over a window, where what is beyond the edge counts as zeros, times its size."""
    mean = pool("AveragePool", count_include_pad=1)(g, e)
    assert isinstance(mean, Tensor)
    size = np.asarray(math.prod(e.params["window_dimensions"]), e.inputs[0].dtype)
    return Tensor(g.one("Mul", mean, g.weight(size)), mean.shape)


def _softmax(g: Graph, e: Equation) -> Tensor:
    return Tensor(g.one("Softmax", g.full(e.inputs[0]), axis=-1), e.outputs[0].shape)


def _layer_norm(g: Graph, e: Equation) -> Tensor:
    x, scale, bias = (g.full(v) for v in e.inputs)
    return Tensor(g.one("LayerNormalization", x, scale, bias, axis=-1, epsilon=e.params["epsilon"]), x.shape)


ELEMENTWISE: dict[str, tuple[str, ...]] = {
    "abs": ("Abs",), "add": ("Add",), "add_any": ("Add",), "and": ("And",), "ceil": ("Ceil",), "cos": ("Cos",),
    "div": ("Div",), "eq": ("Equal",), "erf": ("Erf",), "exp": ("Exp",), "floor": ("Floor",), "ge": ("GreaterOrEqual",),
    "gelu": ("Gelu",), "gt": ("Greater",), "le": ("LessOrEqual",), "log": ("Log",), "logistic": ("Sigmoid",),
    "lt": ("Less",), "max": ("Max",), "min": ("Min",), "mul": ("Mul",), "ne": ("Equal", "Not"), "neg": ("Neg",),
    "not": ("Not",), "or": ("Or",), "pow": ("Pow",), "rsqrt": ("Sqrt", "Reciprocal"), "sign": ("Sign",),
    "sin": ("Sin",), "sqrt": ("Sqrt",), "sub": ("Sub",), "tan": ("Tan",), "tanh": ("Tanh",), "xor": ("Xor",),
}  # fmt: skip
"""Primitives that are one operation of ONNX, or one after the other."""

ROWS: dict[str, Row] = {
    **{name: elementwise(*ops) for name, ops in ELEMENTWISE.items()},
    **{f"reduce_{name}": reduction(f"Reduce{name.capitalize()}") for name in ("sum", "max", "min", "prod")},
    **dict.fromkeys(("copy", "copy_p", "optimization_barrier", "sharding_constraint", "stop_gradient"), _same),
    "argmax": _argmax,
    "broadcast_in_dim": _broadcast_in_dim,
    "clamp": _clamp,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "convert_element_type": _convert,
    "cumsum": _cumsum,
    "dot_general": _dot_general,
    "gather": _gather,
    "integer_pow": _integer_pow,
    "iota": _iota,
    "layer_norm": _layer_norm,
    "log1p": _log1p,
    "pad": _pad,
    "reduce_window_max": pool("MaxPool"),
    "reduce_window_sum": _sum_pool,
    "reshape": _reshape,
    "rev": _rev,
    "round": _round,
    "select_n": _select,
    "slice": _slice,
    "softmax": _softmax,
    "split": _split,
    "square": _square,
    "squeeze": _squeeze,
    "stack": _stack,
    "top_k": _top_k,
    "transpose": _transpose,
}
"""By the name of the primitive or of the idiom."""
