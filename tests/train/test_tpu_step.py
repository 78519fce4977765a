"""Sharded train steps by the real TPU compiler: Monarch kernels, and two slices; libtpu is needed, and no TPU."""

import re

import jax
import pytest

from vit_jax import sharding
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


@pytest.mark.parametrize(
    ("mesh", "between"),
    [((2, 2, 2), {"ALL_REDUCE"}), ((1, 4, 2), {"ALL_REDUCE", "ALL_GATHER"})],
    ids=("replica", "fsdp"),
)
def test_slices_exchange_gradients_and_parameters_stay_within(tiny, tpu_chips, mesh, between):
    """What two slices tell each other over the network of their hosts; fsdp across them is said to be slow, and is."""
    raw = tiny(model={"width": 256, "mlp_dim": 512, "depth": 1})
    raw["mesh"] = dict(zip(sharding.AXES, mesh, strict=True))
    setup = build(parse(TrainConfig, raw), tpu_chips("v5e:2x2", num_slices=2))
    assert bool(sharding.notes(setup.mesh)) == ("ALL_GATHER" in between)
    with jax.set_mesh(setup.mesh):
        text = setup.step.lower(setup.shapes, setup.batch_shapes).compile().as_text()
    assert set(re.findall(r'_xla_megascale_transfer_type="(\w+)"', text)) == between
    assert "all-gather" in text


@pytest.mark.slow
def test_weights_are_gathered_however_large_activations_are(tiny, tpu_chips):
    """Else XLA passes parts of them around in a loop, which costs many times the cycles."""
    model = dict(patch=4, width=256, heads=2, mlp_dim=512, depth=1, dtype="bfloat16", dropout=0.0)
    large = dict(augment={"size": 32, "train": ["flip"]}, data={"canvas": 32}, batch_size=8192)
    setup = build(parse(TrainConfig, tiny(model=model, mesh={"replica": 1, "fsdp": 4}, **large)), tpu_chips("v5e:2x2"))
    with jax.set_mesh(setup.mesh):
        text = setup.step.lower(setup.shapes, setup.batch_shapes).compile().as_text()
    assert "all-gather" in text and "windowed_dot_general" not in text
    assert not [line for line in text.splitlines() if "collective-permute" in line and "mlp_in" in line]
