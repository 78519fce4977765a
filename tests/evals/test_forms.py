"""Each form is scored as it would be alone, and the means are theirs."""

import types
from typing import Annotated

import jax
import numpy as np
import pytest

from tests.evals.contexts import score
from vit_jax.config import Choice, parse
from vit_jax.evals import EVALUATORS, KNN, Classify, Evaluator, Forms
from vit_jax.models import ImageModel, ModelFn
from vit_jax.models.base import Features
from vit_jax.objectives import Classify as Objective
from vit_jax.types import UserError

INFO = types.SimpleNamespace(num_classes=3, class_names=("a", "b", "c"))


class Turned(ImageModel):
    """Logits are the image's numbers, turned by as many places."""

    places: tuple[int, ...] = (0, 1)
    num_classes: int = 3

    def forms(self):
        return {f"by_{i}": self.clone(places=(i,)) for i in self.places} if len(self.places) > 1 else {}

    def encode(self, image, train):
        return Features(image[:, None], jax.numpy.roll(image, self.places[0], axis=1))

    def classify(self, found):
        return found.pooled


def batches(rng):
    label = rng.integers(0, 3, 8).astype(np.int32)
    image = (np.eye(3)[label] + 0.1 * rng.normal(size=(8, 3))).astype(np.float32)
    for part in (slice(0, 4), slice(4, 8)):
        yield {"image": image[part], "label": label[part], "mask": np.arange(4) != 3, "index": np.arange(4)}


def test_each_form_is_scored(rng):
    val = list(batches(rng))
    model = ModelFn(Turned())
    report = score(Forms(evaluator=Classify(bins=5)), model, {}, val, INFO, Objective())
    for name, form in model.model.forms().items():
        alone = score(Classify(bins=5), ModelFn(form), {}, val, INFO, Objective())
        assert {f"{name}/{k}": v for k, v in alone.metrics.items()}.items() <= report.metrics.items()
        np.testing.assert_array_equal(report.arrays[f"{name}/confusion"], alone.arrays["confusion"])
    assert report.metrics["by_0/accuracy"] == 1 and report.metrics["by_1/accuracy"] == 0
    assert report.metrics["forms/accuracy"] == 0.5
    assert set(Forms().reported) <= set(report.metrics)
    assert report.results(INFO.class_names)["by_1"]["metrics"]["accuracy"] == 0


def test_what_it_reports_is_known_before():
    row = parse(Annotated[Evaluator, Choice(EVALUATORS, Evaluator)], "forms(evaluator=knn(k=3))", "evaluators")
    assert row.evaluator == KNN(k=3) and row.splits == ("train", "val")
    assert "forms/knn/accuracy" in row.reported
    assert Forms(prefix="x").reported[0] == "x/forms/accuracy"


def test_what_cannot_be_scored(rng):
    with pytest.raises(UserError, match="this one has no other; leave it out"):
        score(Forms(), ModelFn(Turned(places=(1,))), {}, list(batches(rng)), INFO, Objective())
    with pytest.raises(UserError, match="data and prefix are fields of 'forms' itself"):
        Forms(evaluator=Classify(prefix="x"))
