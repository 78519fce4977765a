"""Results of batches, gathered."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.evals.gather import concatenate, encoder_of, gather
from vit_jax.types import UserError


def test_masked_rows_are_left_out_and_results_come_one_batch_late() -> None:
    started: list[int] = []

    def run(batch: Any) -> dict[str, jax.Array]:
        started.append(int(batch["x"][0]))
        return {"double": jnp.asarray(batch["x"]) * 2, "mask": jnp.asarray(batch["mask"])}

    masks = [[True, False, True], [False] * 3, [True, True, False]]
    batches = [
        {"x": np.array([3 * i, 3 * i + 1, 3 * i + 2], np.int32), "mask": np.array(m)} for i, m in enumerate(masks)
    ]
    seen = []
    for batch, found in gather(run, iter(batches)):
        assert batch is batches[len(seen)] and len(started) == min(len(seen) + 2, 3)
        seen.append(found)
    whole = concatenate(seen)
    assert whole["double"].tolist() == [0, 4, 12, 14] and whole["row"].tolist() == [0, 2, 0, 1]
    assert list(gather(run, [])) == []


def test_nothing_is_an_error() -> None:
    for parts in ([], [{"row": np.zeros(0, np.int64)}]):
        with pytest.raises(UserError, match="nothing to fit to: the data holds no example"):
            concatenate(parts, "fit to")


def test_a_run_without_texts() -> None:
    with pytest.raises(UserError, match="'zero_shot' needs a model of images and texts"):
        encoder_of(types.SimpleNamespace(encoder=None), "zero_shot")
    assert encoder_of(types.SimpleNamespace(encoder=len), "x") is len
