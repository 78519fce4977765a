"""From a JAX function to an ONNX model: traced for any batch size, primitive by primitive.

Opset 20 with IR 9: ONNX Runtime from 1.17 on, its builds for browsers and TensorRT 10 read it; 20 is the first with
``Gelu``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax.export.onnx.graph import Graph, Tensor, Unsaid
from vit_jax.export.onnx.idioms import spoken
from vit_jax.export.onnx.rows import ROWS
from vit_jax.export.onnx.trace import Equation, trace, used
from vit_jax.types import Params, UserError

OPSET = 20
IR = 9


def translate(
    run: Callable[[Params, jax.Array], jax.Array],
    params: Params,
    given: tuple[str, Sequence[int], Any],
    result: str,
) -> tuple[Any, dict[str, np.ndarray]]:
    """``run(params, x)`` as an ONNX model without its weights, and these by name.

    Args:
      run: pure; float32 inside.
      params: become weights under their paths.
      given: name, shape without the batch, and type of x.
      result: name of the output.

    Raises:
      UserError: a primitive of JAX has no row in :data:`ROWS`, or is used in a way that its row cannot say.
    """
    from onnx import helper

    name, shape, dtype = given
    traced = trace(run, params, shape, dtype)
    graph = Graph(traced.batch, name)
    graph.set(traced.input, Tensor(name, traced.input.shape))
    for equation in used(spoken(traced.equations), traced.output):
        found = _row(graph, equation)
        for value, tensor in zip(equation.outputs, found if isinstance(found, list) else [found], strict=True):
            graph.set(value, tensor)
    graph.nodes.append(helper.make_node("Identity", [graph.full(traced.output).name], [result]))
    ends = [
        helper.make_tensor_value_info(
            end, helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype)), ["batch", *value.shape[1:]]
        )
        for end, value in ((name, traced.input), (result, traced.output))
    ]
    made = helper.make_graph(graph.nodes, "vit_jax", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", OPSET)]
    read = {name for node in graph.nodes for name in node.input}
    weights = {name: array for name, array in graph.weights.items() if name in read}
    return helper.make_model(made, opset_imports=opsets, ir_version=IR, producer_name="vit_jax"), weights


def _row(graph: Graph, equation: Equation) -> Tensor | list[Tensor]:
    name = equation.name
    graph.place = equation.place
    where = f" in {equation.place}" if equation.place else ""
    if name not in ROWS:
        raise UserError(
            f"ONNX export knows no {name!r}, which the model computes{where}; export it with --to stablehlo."
        )
    try:
        return ROWS[name](graph, equation)
    except Unsaid as e:
        raise UserError(f"ONNX export cannot say {e} ({name!r}{where}); export the model with --to stablehlo.") from e
