"""What big_vision and the original compute, in float64, on their own names and shapes; and how tensors are compared."""

import numpy as np


def same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert a[name].tobytes() == b[name].tobytes(), name


def read_all(tensors):
    return {name: tensor.read() for name, tensor in tensors.items()}


def norm(x, w):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w["scale"] + w["bias"]


def dense(x, w):
    return x @ w["kernel"] + w["bias"]


def mlp(x, w):
    y = dense(x, w["Dense_0"])
    return dense(0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3))), w["Dense_1"])


def attention(x, context, w):
    q = np.einsum("bnd,dke->bnke", x, w["query"]["kernel"]) + w["query"]["bias"]
    k, v = (np.einsum("bnd,dke->bnke", context, w[n]["kernel"]) + w[n]["bias"] for n in ("key", "value"))
    logits = np.einsum("bnke,bmke->bknm", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = np.einsum("bknm,bmke->bnke", weights / weights.sum(-1, keepdims=True), v)
    return np.einsum("bnke,ked->bnd", mixed, w["out"]["kernel"]) + w["out"]["bias"]
