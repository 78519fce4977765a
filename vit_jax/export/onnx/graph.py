"""An ONNX graph while it is built: nodes, weights, and arrays that are broadcast only where somebody must see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.export.onnx.trace import Value
from vit_jax.types import UserError

Shape = tuple[Any, ...]


class Unsaid(UserError):
    """What ONNX, or this translation, has no words for."""


class Tensor(NamedTuple):
    """An array in the graph.

    Attributes:
      name: in the graph.
      shape: as it lies there; it stands for any shape that this one broadcasts to.
    """

    name: str
    shape: Shape


class Graph:
    """Collects what a model consists of.

    Attributes:
      nodes: in order.
      weights: by name.
      place: module that nodes are named after.
    """

    def __init__(self, batch: Any, source: str):
        """``batch`` is the symbol of the batch dimension, ``source`` the name of an input that has it first."""
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}
        self.place = ""
        self._batch, self._source = batch, source
        self._tensors: dict[Value, Tensor] = {}
        self._constants: dict[Any, str] = {}
        self._count = 0

    def node(self, op: str, *inputs: Tensor | str, outputs: int = 1, **attributes: Any) -> list[str]:
        """Appends a node of ``op``; the names of its outputs."""
        from onnx import helper

        names = [f"{op}_{self._count + i}" for i in range(outputs)]
        self._count += outputs
        given = [x.name if isinstance(x, Tensor) else x for x in inputs]
        self.nodes.append(helper.make_node(op, given, names, name=f"{self.place}/{names[0]}".lstrip("/"), **attributes))
        return names

    def one(self, op: str, *inputs: Tensor | str, **attributes: Any) -> str:
        """Appends a node of ``op`` with one output; its name."""
        return self.node(op, *inputs, **attributes)[0]

    def weight(self, array: Any, name: str = "") -> str:
        """The name of a constant; small ones are kept once."""
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 1024 and not name else None
        if key is not None and key in self._constants:
            return self._constants[key]
        name = name or f"constant_{len(self.weights)}"
        self.weights[name] = array
        if key is not None:
            self._constants[key] = name
        return name

    def axes(self, values: Sequence[int]) -> str:
        """The name of an int64 vector."""
        return self.weight(np.array(values, np.int64))

    def set(self, value: Value, tensor: Tensor) -> None:
        """``tensor`` is ``value`` from now on."""
        self._tensors[value] = tensor

    def get(self, value: Value) -> Tensor:
        """``value`` as it lies in the graph, which may be less than its shape."""
        if value not in self._tensors:
            array = np.asarray(value.array)
            self._tensors[value] = Tensor(self.weight(array, value.name), array.shape)
        return self._tensors[value]

    def full(self, value: Value) -> Tensor:
        """``value`` in its whole shape."""
        tensor = self.get(value)
        if tensor.shape == value.shape:
            return tensor
        return Tensor(self.one("Expand", tensor, self._sizes(value.shape)), value.shape)

    def reshape(self, tensor: Tensor, shape: Shape) -> Tensor:
        """``tensor``, which is whole, in another shape; one dimension at most may depend on the batch.

        Raises:
          Unsaid: two do.
        """
        if tensor.shape == shape:
            return tensor
        sizes = [d if isinstance(d, int) else -1 for d in shape]
        if sizes.count(-1) > 1:
            raise Unsaid(f"an array of shape {shape} has two dimensions that depend on the batch")
        return Tensor(self.one("Reshape", tensor, self.axes(sizes)), shape)

    def transpose(self, tensor: Tensor, order: Sequence[int]) -> Tensor:
        """``tensor``, which is whole, with its dimensions in another order; weights are written in that order."""
        if list(order) == list(range(len(order))):
            return tensor
        shape = tuple(tensor.shape[i] for i in order)
        if tensor.name in self.weights:
            name = f"{tensor.name}.{''.join(map(str, order))}"
            return Tensor(self.weight(self.weights[tensor.name].transpose(order), name), shape)
        return Tensor(self.one("Transpose", tensor, perm=list(order)), shape)

    def _sizes(self, shape: Shape) -> str:
        """The name of ``shape`` as an int64 vector."""
        if all(isinstance(d, int) for d in shape):
            return self.axes(shape)
        if "batch" not in self._constants:
            self._constants["batch"] = self.one("Shape", self._source, start=0, end=1)
        return self.one("Concat", *(self._size(d) for d in shape), axis=0)

    def _size(self, size: Any) -> str:
        batch = self._constants["batch"]
        if isinstance(size, int):
            return self.axes([size])
        times = size // self._batch
        if not isinstance(times, int) or times * self._batch != size:
            raise Unsaid(f"a dimension {size} is no multiple of the batch")
        return batch if times == 1 else self.one("Mul", batch, self.axes([times]))


def broadcast(*shapes: Shape) -> Shape:
    """The shape that elementwise operations give; dimensions of 1 stand for any."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    return tuple(
        next((d for d in dims if not (isinstance(d, int) and d == 1)), 1) for dims in zip(*padded, strict=True)
    )
