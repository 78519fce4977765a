"""Results of batches, gathered."""

import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.evals.base import EvalContext
from vit_jax.evals.gather import concatenate, encoder_of, gather
from vit_jax.objectives import Classify
from vit_jax.types import UserError


def context(batches: list[Any]) -> EvalContext:
    info: Any = types.SimpleNamespace(num_classes=2, class_names=("a", "b"), encoder=None)
    model: Any = None
    return EvalContext(model, lambda p, x: p * x, jnp.float32(2), Classify(), info, ("a", "b"), lambda *_: batches)


def test_masked_rows_are_left_out_and_one_program_serves_all_batches() -> None:
    traced, taken = [], []

    def make(apply: Any, add: int) -> Any:
        def run(params: Any, batch: Any, more: Any) -> dict[str, jax.Array]:
            traced.append(add)
            return {"x": apply(params, batch["image"]) + add + more}

        return run

    masks = [[True, False, True], [False] * 3, [True, True, False]]
    rows = [np.array([3 * i, 3 * i + 1, 3 * i + 2], np.float32) for i in range(3)]
    batches = [{"image": x, "mask": np.array(m)} for x, m in zip(rows, masks, strict=True)]
    where = context(batches)
    for _ in range(2):
        for batch, found in gather(where, make, 1, inputs=(np.float32(10),)):
            assert batch is batches[len(taken) % 3]
            taken.append(found)
    whole = concatenate(taken[:3])
    assert whole["x"].tolist() == [11, 15, 23, 25] and whole["row"].tolist() == [0, 2, 0, 1]
    assert traced == [1]
    (_, last), *others = gather(where, make, 5, batches=batches[2:], inputs=(np.float32(0),))
    assert last["x"].tolist() == [17, 19] and not others and traced == [1, 5]
    assert list(gather(where, make, 1, batches=[])) == []


def test_results_come_one_batch_late() -> None:
    read = []

    def batches() -> Iterator[Any]:
        for i in range(3):
            read.append(i)
            yield {"image": np.float32([i]), "mask": np.array([True])}

    late = gather(context([]), lambda apply: lambda p, batch: {"x": batch["image"]}, batches=batches())
    assert [(found["x"].tolist(), len(read)) for _, found in late] == [([0], 2), ([1], 3), ([2], 3)]


def test_nothing_is_an_error() -> None:
    for parts in ([], [{"row": np.zeros(0, np.int64)}]):
        with pytest.raises(UserError, match="nothing to fit to: the data holds no example"):
            concatenate(parts, "fit to")


def test_a_run_without_texts() -> None:
    with pytest.raises(UserError, match="'zero_shot' needs a model of images and texts"):
        encoder_of(types.SimpleNamespace(encoder=None), "zero_shot")
    assert encoder_of(types.SimpleNamespace(encoder=len), "x") is len
