"""What ONNX has a word for and JAX says in several primitives: runtimes are faster at softmax, layer norm and GELU."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from vit_jax.export.onnx.trace import Equation, Value

Made = Mapping[Value, Equation]
"""By what each value is made."""
CARRIERS = ("broadcast_in_dim", "stop_gradient")


def spoken(equations: Sequence[Equation]) -> list[Equation]:
    """``equations`` with a ``"softmax"``, ``"layer_norm"`` or ``"gelu"`` in place of the last one of each idiom."""
    made = {v: e for e in equations for v in e.outputs}
    return [next(filter(None, (idiom(e, made) for idiom in (_softmax, _layer_norm, _gelu))), e) for e in equations]


def _softmax(e: Equation, made: Made) -> Equation | None:
    """``exp(x - max x) / sum`` over the last axis."""
    if e.name != "div":
        return None
    exponential, total = e.inputs
    (shifted,) = _inputs("exp", exponential, made, 1)
    x, largest = _inputs("sub", shifted, made)
    peak, added = _by("reduce_max", _at_least(largest, made), made), _by("reduce_sum", total, made)
    if x is None or peak is None or added is None or peak.inputs[0] is not x or added.inputs[0] is not exponential:
        return None
    return dataclasses.replace(e, name="softmax", params={}, inputs=[x]) if _last(peak) and _last(added) else None


def _at_least(value: Value | None, made: Made) -> Value | None:
    """x of ``max(-inf, x)``, else the value itself."""
    bound = _by("max", value, made)
    return value if bound is None or _number(bound.inputs[0], made) != -np.inf else bound.inputs[1]


def _layer_norm(e: Equation, made: Made) -> Equation | None:
    """``(x - mean) * rsqrt(mean of its square + epsilon) * scale + bias`` over the last axis."""
    if e.name != "add":
        return None
    scaled, shift = e.inputs
    normed, factor = _inputs("mul", scaled, made)
    centred, inverse = _inputs("mul", normed, made)
    x, mean = _inputs("sub", centred, made)
    (shifted,) = _inputs("rsqrt", inverse, made, 1)
    variance, epsilon = _inputs("add", shifted, made)
    (squared,) = _inputs("square", _mean(variance, made), made, 1)
    scale, bias = (_vector(v, e.outputs[0], made) for v in (factor, shift))
    small = _number(epsilon, made)
    if x is None or squared is not centred or _mean(mean, made) is not x or small is None or not (scale and bias):
        return None
    return dataclasses.replace(e, name="layer_norm", params={"epsilon": small}, inputs=[x, scale, bias])


def _gelu(e: Equation, made: Made) -> Equation | None:
    """``0.5 x (1 + erf(x / sqrt 2))``."""
    if e.name != "mul":
        return None
    half, one_more = e.inputs
    left, right = (_inputs(name, v, made) for name, v in (("mul", half), ("add", one_more)))
    (inner,) = _inputs("erf", right[1], made, 1)
    x, root = _inputs("mul", inner, made)
    numbers = [_number(v, made) or np.nan for v in (left[0], right[0], root)]
    if x is None or left[1] is not x or not np.allclose(numbers, (0.5, 1, math.sqrt(0.5)), 1e-6):
        return None
    return dataclasses.replace(e, name="gelu", params={}, inputs=[x])


def _by(name: str, value: Value | None, made: Made) -> Equation | None:
    """The equation ``name`` that makes ``value``, which may have been broadcast since."""
    found = made.get(value) if value is not None else None
    while found is not None and found.name in CARRIERS:
        found = made.get(found.inputs[0])
    return found if found is not None and found.name == name else None


def _inputs(name: str, value: Value | None, made: Made, count: int = 2) -> Sequence[Value | None]:
    """What the equation ``name`` that makes ``value`` takes, or as many None."""
    found = _by(name, value, made)
    return [None] * count if found is None else found.inputs


def _last(e: Equation) -> bool:
    """Whether a reduction is over the last axis."""
    return tuple(e.params["axes"]) == (len(e.inputs[0].shape) - 1,)


def _mean(value: Value | None, made: Made) -> Value | None:
    """x of its mean over the last axis."""
    total, count = _inputs("div", value, made)
    found = _by("reduce_sum", total, made)
    whole = found is not None and _last(found) and _number(count, made) == found.inputs[0].shape[-1]
    return found.inputs[0] if found is not None and whole else None


def _source(value: Value | None, made: Made) -> Value | None:
    """What is broadcast to ``value``."""
    while value is not None and value in made and made[value].name in CARRIERS:
        value = made[value].inputs[0]
    return value


def _number(value: Value | None, made: Made) -> float | None:
    """The one number that is broadcast to ``value``."""
    found = _source(value, made)
    known = found is not None and found.array is not None and math.prod(found.shape) == 1
    return float(np.asarray(found.array).reshape(())) if found is not None and known else None


def _vector(value: Value | None, whole: Value, made: Made) -> Value | None:
    """The constant ``[D]`` that is broadcast to ``value`` along the last axis of ``whole``."""
    found = _source(value, made)
    return found if found is not None and found.array is not None and found.shape == whole.shape[-1:] else None
