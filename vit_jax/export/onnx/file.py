"""ONNX files: a model and its weights, in one file or, beyond what one can hold, in two."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

LIMIT = 2**31 - 2**24
"""Bytes of weights that the file itself may hold: its container counts in int32."""
INLINE = 1024
"""Bytes up to which a weight always is in the file itself, where shapes are inferred from it."""


def write(model: Any, weights: Mapping[str, np.ndarray], about: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes ``model`` with its weights and plain data ``about`` as metadata; too many weights go to ``path.data``."""
    import onnx

    beside = path.with_name(f"{path.name}.data") if sum(a.nbytes for a in weights.values()) > LIMIT else None
    onnx.helper.set_model_props(model, {k: v if isinstance(v, str) else _json(v) for k, v in about.items()})
    with contextlib.nullcontext() if beside is None else beside.open("wb") as data:
        for name, array in weights.items():
            tensor = model.graph.initializer.add()
            tensor.name, tensor.data_type = name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            tensor.dims.extend(array.shape)
            if data is None or array.nbytes <= INLINE:
                tensor.raw_data = array.tobytes()
                continue
            tensor.data_location = onnx.TensorProto.EXTERNAL
            place = {"location": data.name, "offset": data.tell(), "length": array.nbytes}
            for key, value in (place | {"location": pathlib.Path(data.name).name}).items():
                tensor.external_data.add(key=key, value=str(value))
            data.write(np.ascontiguousarray(array).data)
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))


def parts(path: pathlib.Path) -> list[pathlib.Path]:
    """The program's file and, where there is one, that of its weights."""
    return [part for part in (path, path.with_name(f"{path.name}.data")) if part.exists()]


def size(path: pathlib.Path) -> int:
    """Bytes of a program and of its weights."""
    return sum(part.stat().st_size for part in parts(path))


def run(path: pathlib.Path, given: Mapping[str, np.ndarray]) -> np.ndarray:
    """The one output of a program, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(given))[0])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
