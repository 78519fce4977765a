"""Tensors that lie smaller than what they stand for."""

import jax
import numpy as np
import pytest

from vit_jax.export.onnx.graph import Graph, Tensor, Unsaid, broadcast
from vit_jax.export.onnx.trace import Value

(BATCH,) = jax.export.symbolic_shape("batch")


def test_shapes_broadcast_as_they_lie():
    assert broadcast((4,), (BATCH, 3, 1), (1, 1)) == (BATCH, 3, 4)
    assert broadcast((), ()) == ()


def test_a_weight_stands_for_more_until_it_is_read():
    graph = Graph(BATCH, "x")
    value = Value((BATCH, 3, 2), np.dtype("float32"))
    graph.set(value, Tensor(graph.weight(np.ones(2, np.float32)), (2,)))
    assert graph.get(value).shape == (2,) and graph.nodes == []
    assert graph.full(value).shape == (BATCH, 3, 2)
    assert [n.op_type for n in graph.nodes] == ["Shape", "Concat", "Expand"]


def test_small_constants_are_kept_once():
    graph = Graph(BATCH, "x")
    assert graph.axes([0, 1]) == graph.axes((0, 1)) != graph.axes([1, 0])
    assert graph.weight(np.zeros(2, np.float32)) != graph.weight(np.zeros(2, np.int32))
    assert len(graph.weights) == 4


def test_weights_are_transposed_beforehand():
    graph = Graph(BATCH, "x")
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    turned = graph.transpose(Tensor(graph.weight(kernel, "kernel"), (2, 3)), (1, 0))
    np.testing.assert_array_equal(graph.weights[turned.name], kernel.T)
    assert graph.nodes == [] and graph.transpose(turned, (0, 1)) is turned


def test_one_dimension_may_depend_on_the_batch():
    graph = Graph(BATCH, "x")
    whole = Tensor("x", (BATCH, 6))
    assert graph.reshape(whole, (2 * BATCH, 3)).shape == (2 * BATCH, 3)
    with pytest.raises(Unsaid, match="two dimensions that depend on the batch"):
        graph.reshape(whole, (BATCH, BATCH))
    value = Value((BATCH + 1, 2), np.dtype("float32"))
    graph.set(value, Tensor("y", (2,)))
    with pytest.raises(Unsaid, match=r"a dimension batch \+ 1 is no multiple of the batch"):
        graph.full(value)
