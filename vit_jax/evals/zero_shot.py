"""Zero-shot classification: class names put into prompts are the classifier (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax import sharding
from vit_jax.data.prompts import ensemble, read_class_names, read_templates
from vit_jax.evals.base import DataInfo, EvalContext, Evaluator
from vit_jax.evals.classify import NamedReport, scored, scores, summarise
from vit_jax.evals.gather import encoder_of, gather
from vit_jax.evals.ranking import unit
from vit_jax.objectives.base import Apply
from vit_jax.types import Array, Batch, Params, UserError

PROMPTS_AT_ONCE = 256
"""Prompts of one batch, rounded to a multiple of the batch of images."""
_EPSILON = 1e-8

Embed = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class ZeroShot(Evaluator):
    """Classifies images by the class whose prompts they are nearest to.

    The embedding of a class is the mean of the unit embeddings of its prompts, of unit length again. Of equal classes
    the lower one is predicted. A softmax (CLIP) and a sigmoid (SigLIP) model are scored alike: scale and bias do not
    change the order.

    Attributes:
      data: a source to evaluate on instead of the run's own validation part.
      templates: row of ``data.prompts.TEMPLATES``, or a file with one template a line.
      classes: names in the order of the labels, or a file with one a line; None takes those of the data.
    """

    data: str | None = None
    templates: str = "openai"
    classes: str | tuple[str, ...] | None = None
    metrics: ClassVar[tuple[str, ...]] = (
        "zero_shot/accuracy", "zero_shot/top5", "zero_shot/mean_class_accuracy", "zero_shot/examples",
    )  # fmt: skip

    def __call__(self, context: EvalContext) -> NamedReport:
        """Reads ``image``, ``label`` and ``mask``; the model is one of images and texts.

        ``zero_shot/truncated_prompts`` appears where there are any; ``arrays`` holds ``zero_shot/classifier``
        float32[C, E].

        Raises:
          UserError: no class names, not as many as the data has classes, no encoder, or nothing to evaluate.
        """
        encoder, names = encoder_of(context.info, "zero_shot"), self.class_names(context.info)
        tokens, truncated = _tokens(encoder, names, read_templates(self.templates))
        batches = iter(context.batches())
        first = [*itertools.islice(batches, 1)]
        # it says where texts belong
        classifier = text_classifier(*_embedder(context, first[0]["image"]), tokens) if first else np.zeros(0)
        each = gather(context, _scorer, batches=itertools.chain(first, batches), inputs=(classifier,))
        whole, mistakes = scored(each)
        table = dataclasses.replace(summarise(whole, len(names), "softmax"), mistakes=mistakes)
        extra = {"truncated_prompts": float(truncated)} if truncated else {}
        return NamedReport.of("zero_shot", table, extra, {"zero_shot/classifier": classifier}, class_names=names)

    def class_names(self, info: DataInfo) -> tuple[str, ...]:
        """The names, one per label of the data.

        Raises:
          UserError: there are none, or too few, or too many.
        """
        names = read_class_names(self.classes) if isinstance(self.classes, str) else self.classes or info.class_names
        if not info.num_classes:
            raise UserError("the evaluator 'zero_shot' needs data with classes; set its field data, or leave it out.")
        if len(names) != info.num_classes:
            raise UserError(f"zero_shot: classes has {len(names)} names, but the data has {info.num_classes} classes.")
        return tuple(names)


def text_classifier(embed: Embed, rows: int, tokens: np.ndarray) -> np.ndarray:
    """The unit embedding of each class: of its prompts' unit embeddings the mean, of unit length again.

    Without the first normalisation long embeddings would outvote short ones.

    Args:
      embed: int32[rows, L] -> float[rows, E].
      rows: texts of one call; the last one is filled up with copies.
      tokens: int32[C, T, L], T prompts of each class.

    Returns:
      float32[C, E].
    """
    classes, templates, length = tokens.shape
    flat, sums = tokens.reshape(-1, length), None
    for start in range(0, len(flat), rows):
        index = np.arange(start, min(start + rows, len(flat)))
        found = unit(embed(flat[np.resize(index, rows)])[: len(index)], _EPSILON)
        sums = np.zeros((classes, found.shape[1])) if sums is None else sums
        np.add.at(sums, index // templates, found)
    assert sums is not None, tokens.shape
    return unit(sums / templates, _EPSILON).astype(np.float32)


@functools.lru_cache(maxsize=2)
def _tokens(encoder: Any, names: tuple[str, ...], templates: tuple[str, ...]) -> tuple[np.ndarray, int]:
    """The prompts of each class, int32[C, T, L], and how many of them do not fit."""
    prompts = [prompt for of_class in ensemble(names, templates) for prompt in of_class]
    return encoder(prompts).reshape(len(names), len(templates), -1), encoder.truncated(prompts)


def _embedder(context: EvalContext, image: Array) -> tuple[Embed, int]:
    """What embeds a batch of texts, spread over the devices as the batch ``image`` is, and the rows of such a batch."""
    layout = sharding.replicated_like(image)
    run = context.program(_text_embedder, layout)

    def embed(tokens: np.ndarray) -> np.ndarray:
        if layout is not None:
            spread = NamedSharding(layout.mesh, PartitionSpec(sharding.BATCH))
            return np.asarray(
                run(context.params, jax.make_array_from_callback(tokens.shape, spread, tokens.__getitem__))
            )
        return np.asarray(run(context.params, tokens))

    return embed, len(image) * max(1, PROMPTS_AT_ONCE // len(image))


def _text_embedder(apply: Apply, replicated: NamedSharding | None) -> Any:
    """Jitted (params, tokens) -> embeddings, on every host in full."""

    def run(params: Params, tokens: jax.Array) -> jax.Array:
        return apply(params, tokens, train=False, method="embed_text").astype(jnp.float32)

    return jax.jit(run, out_shardings=replicated)


def _scorer(apply: Apply) -> Any:
    """(params, batch, classifier) -> scores."""

    def run(params: Params, batch: Batch, classifier: jax.Array) -> dict[str, jax.Array]:
        embedding = apply(params, batch["image"], train=False, method="embed_image").astype(jnp.float32)
        cosines = jnp.einsum("be,ce->bc", embedding, classifier, precision="highest")
        return scores(cosines, batch["label"], "softmax")

    return run
