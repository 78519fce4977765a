"""Runs that draw a form of the model at each step: resumed and uninterrupted they are the same."""

import jax
import numpy as np
import pytest

from vit_jax import metrics
from vit_jax.train import loop


class Stop(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["drawn(classify)", "annealed(classify, 1, 6)"])
def test_a_run_resumes_bit_for_bit(tiny, alone, tmp_path, objective):
    raw = tiny(
        model={"patches": (4, 2, 8)}, objective=objective, duration=6, eval_every=6,
        checkpoint_every=2, evaluators=("classify", "forms"),
    )  # fmt: skip

    def die(event):
        if event.step == 5:
            raise Stop

    with alone():
        whole = loop.run(raw, tmp_path / "whole")
        with pytest.raises(Stop):
            loop.run(raw, tmp_path / "cut", hooks=[die])
        again = loop.run(raw, tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, again.state.params, whole.state.params)
    rows = [
        [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in metrics.read(tmp_path / name)]
        for name in ("cut", "whole")
    ]
    assert rows[0] == rows[1]
    found = again.report.metrics
    assert {f"patch_{p}/accuracy" for p in (2, 4, 8)} < set(found)
    assert found["patch_4/accuracy"] == found["accuracy"]
    assert found["forms/accuracy"] == np.mean([found[f"patch_{p}/accuracy"] for p in (2, 4, 8)])
