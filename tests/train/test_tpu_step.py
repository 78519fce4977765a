"""A sharded train step with Monarch kernels, by the real TPU compiler; it needs the package ``libtpu``, and no TPU."""

import jax
import pytest

from vit_jax.config import parse
from vit_jax.train.config import TrainConfig
from vit_jax.train.setup import build


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_monarch_kernels_are_in_the_sharded_step(tiny, tpu_chips, topology):
    linear = {"name": "monarch", "nblocks": 2, "implementation": "mosaic_tpu"}
    model = dict(
        patch=4, width=256, heads=2, mlp_dim=512, depth=1, qkv_linear=linear, out_linear=linear, mlp_linear=linear
    )
    setup = build(parse(TrainConfig, tiny(model=model, mesh={"replica": 2, "fsdp": 2})), tpu_chips(topology))
    with jax.set_mesh(setup.mesh):
        text = setup.step.lower(setup.shapes, setup.batch_shapes).compile().as_text()
    assert text.count("monarch_forward") >= 4 and text.count("monarch_backward") >= 4
    assert "all-gather" in text or "all-reduce" in text
