"""The definition in float64."""

from __future__ import annotations

import numpy as np

Given = np.ndarray | None
"""What may be left out."""


def attention(
    qkv: np.ndarray, heads: int, *, causal: bool = False, key_bias: Given = None, turns: Given = None
) -> np.ndarray:
    """``softmax(q k^T / sqrt(E)) v`` per head: ``[B, N, heads * 3 * E] -> [B, N, heads * E]`` (Vaswani et al. 2017).

    ``key_bias [B, N]`` is added to the logits of each key; queries and keys of a token are multiplied with the matrix
    ``turns [N, E, E]`` before.
    """
    q, k, v = _parts(qkv, heads, turns)
    return np.einsum("bknm,bmke->bnke", _weights(q, k, causal, key_bias), v).reshape(*qkv.shape[:2], -1)


def gradient(
    qkv: np.ndarray, g: np.ndarray, heads: int, *, causal: bool = False, key_bias: Given = None, turns: Given = None
) -> np.ndarray:
    """The gradient of ``sum(g * attention(qkv))``."""
    q, k, v = _parts(qkv, heads, turns)
    g = np.asarray(g, np.float64).reshape(v.shape)
    p = _weights(q, k, causal, key_bias)
    dp = np.einsum("bnke,bmke->bknm", g, v)
    dlogits = p * (dp - np.sum(p * dp, axis=-1, keepdims=True)) / np.sqrt(q.shape[-1])
    dq, dk = np.einsum("bknm,bmke->bnke", dlogits, k), np.einsum("bknm,bnke->bmke", dlogits, q)
    if turns is not None:
        dq, dk = (np.einsum("nfe,bnkf->bnke", turns, x) for x in (dq, dk))
    return np.stack([dq, dk, np.einsum("bknm,bnke->bmke", p, g)], axis=3).reshape(qkv.shape)


def _parts(qkv: np.ndarray, heads: int, turns: np.ndarray | None) -> list[np.ndarray]:
    """Queries, keys, values, each ``[B, N, heads, E]``."""
    q, k, v = np.moveaxis(np.asarray(qkv, np.float64).reshape(*qkv.shape[:2], heads, 3, -1), 3, 0)
    if turns is not None:
        q, k = (np.einsum("nfe,bnke->bnkf", turns, x) for x in (q, k))
    return [q, k, v]


def _weights(q: np.ndarray, k: np.ndarray, causal: bool, key_bias: np.ndarray | None) -> np.ndarray:
    logits = np.einsum("bnke,bmke->bknm", q, k) / np.sqrt(q.shape[-1])
    if key_bias is not None:
        logits = logits + np.asarray(key_bias, np.float64)[:, None, None, :]
    if causal:
        logits = np.where(np.tril(np.ones(logits.shape[-2:], bool)), logits, -np.inf)
    e = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)
