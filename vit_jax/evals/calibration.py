"""Calibration: does a confidence of 0.8 come true 8 times in 10? (Guo et al. 2017, arXiv:1706.04599)"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from vit_jax.types import OutputActivation, UserError

T_MIN, T_MAX = 0.01, 100.0
_CHUNK = 4096


class Reliability(NamedTuple):
    """A reliability diagram of M equal-width bins (low, high]; empty bins have NaN means."""

    edges: np.ndarray
    """float64[M+1] from 0 to 1."""
    examples: np.ndarray
    """int64[M] counts."""
    confidence: np.ndarray
    """float64[M] mean confidence."""
    accuracy: np.ndarray
    """float64[M] share of correct predictions."""

    def ece(self) -> float:
        """Expected calibration error, sum_m |B_m| / n |acc(B_m) - conf(B_m)| (equation 3), in [0, 1]."""
        gap = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float(np.sum(self.examples * gap) / np.sum(self.examples))


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> Reliability:
    """Sorts predictions into bins by confidence.

    Args:
      confidence: float[N] in [0, 1], of the predicted class. For a model trained with sigmoid cross-entropy the largest
        softmax probability is not what was trained: take the largest logistic probability, and say so.
      correct: bool[N].
      bins: M; an exact 0 goes to the first bin.
    """
    confidence = np.asarray(confidence, np.float64)
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    sums = [np.bincount(index, np.asarray(x, np.float64), minlength=bins) for x in (confidence, correct)]
    means = [np.divide(s, count, out=np.full(bins, np.nan), where=count > 0) for s in sums]
    return Reliability(edges, count, *means)


@dataclasses.dataclass(frozen=True)
class Temperature:
    """A fitted temperature: divide logits by ``value``.

    Attributes:
      value: the fitted temperature T.
      nll_before: mean negative log-likelihood at T = 1, nats.
      nll_after: mean negative log-likelihood at T = ``value``, nats.
      at_bound: the likelihood still rose at ``T_MIN`` (every example is right: no finite optimum) or at ``T_MAX``
        (the logits say nothing about the labels); ``value`` is then that bound and no estimate.
    """

    value: float
    nll_before: float
    nll_after: float
    at_bound: bool


def fit_temperature(
    logits: np.ndarray, labels: np.ndarray, output_activation: OutputActivation = "softmax"
) -> Temperature:
    """The temperature that minimises the negative log-likelihood of the labels under logits / T (section 4.2).

    Fit T on VALIDATION logits, made without dropout, and report calibration on other data: an ECE measured on the
    examples that T was fitted to flatters the model. Predictions do not change.

    The likelihood is log-concave in 1/T, so a safeguarded Newton search finds the one optimum; T stays positive.

    Args:
      logits: float[N,C], not probabilities.
      labels: int[N].
      output_activation: what the model was trained with: "softmax", or "sigmoid" for one logistic function per class.

    Raises:
      UserError: no examples, or logits that are not finite.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    if not len(logits) or not np.isfinite(logits).all():
        raise UserError(
            f"cannot fit a temperature to logits of shape {logits.shape}; give finite logits, one row each."
        )
    low, high, beta = 1 / T_MAX, 1 / T_MIN, 1.0
    if _derivatives(logits, labels, low, output_activation)[1] >= 0:
        return _temperature(logits, labels, low, output_activation, at_bound=True)
    if _derivatives(logits, labels, high, output_activation)[1] <= 0:
        return _temperature(logits, labels, high, output_activation, at_bound=True)
    for _ in range(100):
        _, slope, curvature = _derivatives(logits, labels, beta, output_activation)
        low, high = (beta, high) if slope < 0 else (low, beta)
        new = beta - slope / curvature if curvature > 0 else low
        new = new if low < new < high else np.sqrt(low * high)
        if abs(new - beta) <= 1e-9 * beta:
            break
        beta = float(new)
    return _temperature(logits, labels, beta, output_activation, at_bound=False)


def _temperature(
    logits: np.ndarray, labels: np.ndarray, beta: float, output_activation: OutputActivation, *, at_bound: bool
) -> Temperature:
    before, after = (_derivatives(logits, labels, b, output_activation)[0] for b in (1.0, beta))
    return Temperature(1 / beta, before, after, at_bound)


def _derivatives(
    logits: np.ndarray, labels: np.ndarray, beta: float, output_activation: OutputActivation
) -> np.ndarray:
    """Mean NLL of ``beta * logits`` and its first two derivatives in beta, in float64, a block of rows at a time."""
    sums = np.zeros(3)
    for i in range(0, len(logits), _CHUNK):
        z = np.asarray(logits[i : i + _CHUNK], np.float64)
        target = np.arange(z.shape[1]) == labels[i : i + _CHUNK, None]
        if output_activation == "softmax":
            z = z - z[target][:, None]  # the true class at 0: slopes keep their sign however confident
            peak = beta * z.max(1, keepdims=True)
            e = np.exp(beta * z - peak)
            p = e / e.sum(1, keepdims=True)
            mean = (p * z).sum(1, keepdims=True)
            nll, slope, curvature = peak[:, 0] + np.log(e.sum(1)), mean, p * (z - mean) ** 2
        else:
            p = np.exp(-np.logaddexp(0.0, -beta * z))
            nll = np.logaddexp(0.0, np.where(target, -beta * z, beta * z))
            slope, curvature = (p - target) * z, p * (1 - p) * z**2
        sums += [nll.sum(), slope.sum(), curvature.sum()]
    return sums / len(logits)
