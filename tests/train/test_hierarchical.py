"""A run that is told of coarse classes."""

import numpy as np
import pytest

from vit_jax import create, load
from vit_jax.train import loop


@pytest.mark.slow
def test_a_run(tiny, alone, tmp_path):
    """Digits are even or odd; what it has learned is loaded and asked without that."""
    table = tmp_path / "parity.csv"
    table.write_text("class,parity\n" + "".join(f"{i},{'even' if i % 2 == 0 else 'odd'}\n" for i in range(10)))
    raw = tiny(
        data={"path": "digits"}, model={"prompts": ((0, 2),)}, duration=30, batch_size=64,
        objective=f"hierarchical(levels={str(table)!r})",
    )  # fmt: skip
    with alone():
        result = loop.run(raw, tmp_path / "run")
    assert np.isfinite(result.report.metrics["loss"])
    rows = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "level_1/accuracy" in rows
    assert load(tmp_path / "run").model.prompts == ((0, 2),)
    assert (
        create("vit(prompts=((0, 2),), patch=4, depth=1)", size=8).params["encoder"]["block_0"]["prompts"].shape[0] == 2
    )
