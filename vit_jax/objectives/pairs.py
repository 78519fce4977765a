"""The base of objectives that compare every image of a batch with every text, and their exact accumulation.

Such a loss is no sum over micro-batches, so it is taken in two passes (GradCache, Gao et al. 2021, arXiv:2101.06983):
all embeddings, slice by slice; the loss of the whole batch and its derivatives with respect to the embeddings, the
temperature and the bias, once; then each slice again, which pulls its share of those derivatives back to the
parameters. The result is the gradient of the whole batch: both passes draw the same dropout masks, and what the slices
share, the temperature and the bias, gets its derivative once.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import sharding
from vit_jax.metrics import Mean
from vit_jax.models import ImageTextModel
from vit_jax.objectives.base import Apply, Metrics, Objective, Recorder, Rngs, fold, split, summed
from vit_jax.types import Array, Batch, Params, UserError

CONTRASTIVE = "contrastive"
"""Name of the term that needs all pairs."""


class Pair(NamedTuple):
    """Embeddings of the same rows, ``[B, E]`` each."""

    image: jax.Array
    text: jax.Array


class LogitScaleBias(NamedTuple):
    """Scale (the inverse temperature) and bias of the logits, float32 scalars that all rows share."""

    scale: jax.Array
    bias: jax.Array


class Pairs(Objective):
    """Objectives with a loss over all pairs of a batch, and perhaps further terms that are means over examples.

    Reads ``image``, ``text`` and ``mask`` of a batch, and of what the model returns the fields of
    :class:`vit_jax.models.two_tower.Embedded`. Of several captions of an image the first is taken.
    """

    min_batch_size: ClassVar[int] = 2

    @property
    @abc.abstractmethod
    def weights(self) -> Mapping[str, float]:
        """The loss is the sum of these terms, so weighted; ``"contrastive"`` is one of them."""

    @abc.abstractmethod
    def contrast(self, pair: Pair, shared: LogitScaleBias, mask: Array) -> tuple[jax.Array, Metrics]:
        """The contrastive losses float[B] of a whole batch and its metrics."""

    def terms(self, out: Any, batch: Batch, *, train: bool) -> Metrics:
        """The other terms, means that add up over slices; their counts must follow from the batch, not the model."""
        return {}

    def fit_model(self, model: nn.Module, info: Any) -> nn.Module:
        """A text tower for the tokens of the data."""
        if not isinstance(model, ImageTextModel):
            raise UserError(
                f"this objective trains an image tower with a text tower, and {type(model).__name__} has no text "
                "tower; take a model such as clip_vit_b32, or objective='classify'."
            )
        if info.encoder is None or not info.captions:
            raise UserError(
                "this objective needs a caption for every image, and the data come without; set data.text, and for a "
                "source of classes data.text.templates."
            )
        tokenizer = info.encoder.tokenizer
        fields = {"vocab_size": tokenizer.vocab_size, "end_id": tokenizer.end_id, "pad_id": tokenizer.pad_id}
        return model.clone(text_tower=model.text_tower.clone(length=info.encoder.length, **fields))

    def __call__(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Metrics]:
        _check(batch)
        metrics = self._whole(apply, params, batch, rngs if train else None, train)[1]
        return metrics["loss"].value(), metrics

    def value_and_grad(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, micro: int = 1
    ) -> tuple[tuple[jax.Array, Metrics], Params]:
        _check(batch)
        if micro == 1:
            whole = jax.grad(lambda p: self._whole(apply, p, batch, fold(rngs, 0), True), has_aux=True)
            grads, metrics = whole(params)
        else:
            slices, shared, counts, measured = self._first_pass(apply, params, batch, rngs, micro)
            top = jax.grad(self._contrastive, argnums=(0, 1), has_aux=True)
            d, (means, further) = top(jax.tree.map(_merge, slices), shared, batch["mask"])
            terms, grads = self._second_pass(apply, params, batch, rngs, micro, d, counts)
            metrics = self._combine({**means, **terms}, further)[1] | measured
        return (metrics["loss"].value(), metrics), grads

    def _whole(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs | None, train: bool
    ) -> tuple[jax.Array, Metrics]:
        """Loss and metrics of a batch in one pass."""
        model = Recorder(apply)
        out = _embed(model, params, batch, rngs, train)
        means, further = self._contrastive(*_pick(out), batch["mask"])[1]
        loss, metrics = self._combine({**means, **self.terms(out, batch, train=train)}, further)
        return loss, metrics | (model.measured(_examples(batch)) if train else {})

    def _contrastive(
        self, pair: Pair, shared: LogitScaleBias, mask: Array
    ) -> tuple[jax.Array, tuple[Metrics, Metrics]]:
        """The contrastive part of the loss; its mean; further metrics."""
        losses, further = self.contrast(pair, shared, mask)
        means = {CONTRASTIVE: mean_of(losses, mask)}
        return self._combine(means, {})[0], (means, further)

    def _combine(self, means: Metrics, further: Metrics) -> tuple[jax.Array, Metrics]:
        """The loss, 0 with gradient 0 where nothing counts, and all metrics; ``"loss"`` is a mean over examples."""
        loss = _total(self.weights[k] * m.total / _some(m.count) for k, m in means.items())
        examples = means[CONTRASTIVE].count
        return loss, {"loss": Mean(loss * examples, examples), **(means if len(means) > 1 else {}), **further}

    def _first_pass(self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, micro: int) -> Any:
        """Embeddings ``[micro, B / micro, E]``, what is shared, counts of the other terms, the model's variables."""

        def body(_: None, part: Any) -> tuple[None, Any]:
            i, rows = part
            model = Recorder(apply)
            out = _embed(model, params, rows, fold(rngs, i), True)
            counts = {k: m.count for k, m in self.terms(out, rows, train=True).items()}  # XLA drops their totals
            return None, (*_pick(out), counts, model.measured(_examples(rows)))

        slices, shared, *sums = jax.lax.scan(body, None, (jnp.arange(micro), split(batch, micro)))[1]
        return slices, jax.tree.map(lambda x: x[0], shared), *jax.tree.map(lambda x: jnp.sum(x, 0), sums)

    def _second_pass(
        self,
        apply: Apply,
        params: Params,
        batch: Batch,
        rngs: Rngs,
        micro: int,
        d: tuple[Pair, LogitScaleBias],
        counts: Any,
    ) -> tuple[Metrics, Params]:
        """The other terms, and the gradient of everything: ``d`` are the derivatives of the contrastive part."""

        def part_loss(params: Params, i: jax.Array, rows: Batch, d_pair: Mapping[str, jax.Array]) -> Any:
            out = _embed(Recorder(apply), params, rows, fold(rngs, i), True)
            pair, shared = _pick(out)
            terms = self.terms(out, rows, train=True)
            once = jax.tree.map(lambda x: jnp.where(i == 0, x, jnp.zeros_like(x)), d[1])
            pulled = _inner(pair, Pair(**d_pair)) + _inner(shared, once)
            return _total([pulled, *(self.weights[k] * m.total / _some(counts[k]) for k, m in terms.items())]), terms

        grad = jax.grad(part_loss, has_aux=True)
        parts = (jnp.arange(micro), split(batch, micro), split(d[0]._asdict(), micro))
        grads, terms = summed(functools.partial(grad, params), parts)
        return terms, grads


def mean_of(values: jax.Array, weights: Array) -> Mean:
    """:meth:`Mean.of` for values of any shape, in their own type."""
    weights = jnp.asarray(weights).astype(values.dtype)
    return Mean(jnp.sum(jnp.where(weights == 0, 0.0, values) * weights), jnp.sum(weights))


def _examples(batch: Batch) -> jax.Array:
    return jnp.sum(jnp.asarray(batch["mask"]).astype(jnp.float32))


def _check(batch: Batch) -> None:
    if "text" not in batch:
        raise UserError("a contrastive loss needs captions, and the batch has none; set data.text.")
    if batch["mask"].shape[0] < 2:
        raise UserError("a contrastive loss compares pairs, and the batch is a single one; set batch_size=2 or more.")


def _embed(apply: Apply, params: Params, batch: Batch, rngs: Rngs | None, train: bool) -> Any:
    return apply(params, batch["image"], first_caption(batch), train=train, rngs=rngs)


def first_caption(batch: Batch) -> Array:
    """int32[B, L] of a training batch, or of an evaluation batch, whose ``text`` is int32[B, K, L]."""
    return batch["text"] if batch["text"].ndim == 2 else batch["text"][:, 0]


def _pick(out: Any) -> tuple[Pair, LogitScaleBias]:
    return Pair(out.image, out.text), LogitScaleBias(out.scale, out.bias)


def _merge(x: jax.Array) -> jax.Array:
    """The inverse of :func:`split`."""
    x = jnp.reshape(jnp.swapaxes(x, 0, 1), (-1, *x.shape[2:]))
    return sharding.constrain(x, "batch", *[None] * (x.ndim - 1))


def _inner(a: Any, b: Any) -> jax.Array:
    return _total(jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _total(values: Iterable[Any]) -> jax.Array:
    return functools.reduce(jnp.add, values)


def _some(count: Array) -> jax.Array:
    """The divisor of a mean that may be over nothing."""
    return jnp.maximum(count, 1)
