"""Plans by the real TPU compiler; it needs the package ``libtpu``, and no TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import vit_jax as vj
from vit_jax import config
from vit_jax.config import parse
from vit_jax.plan import hlo, planning, program, topology
from vit_jax.plan.search import search
from vit_jax.train.config import TrainConfig

WIDE = {"width": 256, "mlp_dim": 512, "dtype": "bfloat16"}
FSDP = {"replica": 1, "fsdp": 4}


def by_kind(compiled) -> dict[str, list[int]]:
    """Kind -> exchanges and bytes of a compiled program."""
    out: dict[str, list[int]] = {}
    for e in hlo.collectives(hlo.parse(compiled.as_text())):
        row = out.setdefault(e.kind, [0, 0])
        row[0], row[1] = row[0] + e.times, row[1] + e.times * e.bytes
    return out


def test_bytes_are_the_compilers(tiny, tpu_chips):
    raw = tiny(model=WIDE, mesh=FSDP, batch_size=64)
    found = vj.plan(raw, "v5e:2x2")
    setup = program.setup_for(parse(TrainConfig, raw), tpu_chips("v5e:2x2"))
    with jax.set_mesh(setup.mesh):
        compiled = setup.step.lower(setup.shapes, setup.batch_shapes).compile()
    said = compiled.memory_analysis()
    for name, value in found.memory.compiler.items():
        assert value == getattr(said, f"{name}_size_in_bytes"), name
    assert found.memory.needed >= said.argument_size_in_bytes + said.temp_size_in_bytes
    assert sum(found.memory.parts.values()) <= said.argument_size_in_bytes  # the rest is padding
    assert found.fits and found.memory.available == topology.CHIPS["v5e"].hbm
    assert found.time.compute > 0 and 0 < found.mfu[0] <= found.mfu[1] < 1 and found.hosts == 1
    assert found.program_flops == pytest.approx(found.flops, rel=0.2)


@pytest.fixture(scope="module")
def chips():
    """A mesh of four v5e along one axis, and shapes on it."""
    pytest.importorskip("libtpu")
    mesh = Mesh(np.asarray(topology.find("v5e:2x2").devices), "x")

    def shape(dims, *spec, dtype="bfloat16"):  # of float32 products the compiler sends what it rounds to bfloat16
        return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, P(*spec)))

    return mesh, shape


@pytest.mark.tpu
def test_gathering_two_layers_moves_their_bytes(chips):
    mesh, shape = chips
    weights = shape((256, 1024), "x"), shape((1024, 256), "x")
    rows = jax.jit(lambda w, v, x: jnp.tanh(x @ w) @ v, out_shardings=NamedSharding(mesh, P("x")))
    found = by_kind(rows.lower(*weights, shape((4096, 256), "x")).compile())
    assert found["all-gather"][1] == 2 * 256 * 1024 * 2 and set(found) == {"all-gather"}


@pytest.mark.tpu
def test_summing_gradients_moves_the_bytes_of_the_parameters(chips):
    mesh, shape = chips
    loss = lambda p, x: jnp.mean(jnp.tanh(x @ p[0]) @ p[1])  # noqa: E731
    whole = NamedSharding(mesh, P())
    lowered = jax.jit(jax.grad(loss), out_shardings=whole).lower(
        (shape((256, 1024), dtype="float32"), shape((1024, 256), dtype="float32")),
        shape((4096, 256), "x", dtype="float32"),
    )
    found = by_kind(lowered.compile())
    assert found["all-reduce"][1] == 2 * 256 * 1024 * 4 and set(found) == {"all-reduce"}


@pytest.mark.tpu
def test_a_ring_passes_its_part_on_as_often_as_there_are_others(chips):
    mesh, shape = chips
    ring = [(i, (i + 1) % 4) for i in range(4)]

    def local(x):
        def step(carry, _):
            here, there = carry
            there = jax.lax.ppermute(there, "x", ring)
            return (here + x @ there.T, there), None

        return jax.lax.scan(step, (x @ x.T, x), None, length=3)[0][0]

    turned = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False))
    found = by_kind(turned.lower(shape((4096, 256), "x")).compile())
    assert found == {"collective-permute": [3, 3 * 1024 * 256 * 2]}


@pytest.mark.slow
@pytest.mark.tpu
def test_what_is_too_large_is_refused_with_its_size(tiny):
    found = vj.plan(
        tiny(model={**WIDE, "depth": 12}, augment={"size": 64}, data={"canvas": 64}, batch_size=2**17), "v5e:2x2"
    )
    assert not found.fits and found.memory.needed > found.memory.available and found.time is None
    assert "does not fit" in found.text()


PAIRS = {
    "data": {"path": "digits_pairs", "canvas": 16, "text": {"tokenizer": "bytes", "length": 8}},
    "augment": {"size": 8, "train": ["inception_crop"]},
    "batch_size": 64,
}
TOWER = {"width": 128, "depth": 2, "heads": 2, "mlp_dim": 256}
IMAGE = {"name": "vit", "patch": 4, "num_classes": 0, **TOWER}
TWO_TOWER = {"name": "two_tower", "image_tower": IMAGE, "text_tower": TOWER, "embed_dim": 64}
COCA = {**TWO_TOWER, "name": "coca", "decoder": {"heads": 2, "mlp_dim": 256, "depth": 1}, "queries": 5, "pool_heads": 2}
COCA["text_tower"] = {**TOWER, "pool": "cls"}
RUNS = {
    "accumulation": {"model": {**WIDE, "scan": True}, "accumulate": 2, "batch_size": 64},
    "sam": {"optim": {"sam": "sam(rho=0.05, m=16)"}, "batch_size": 64},
    "distillation": {"objective": {"name": "distill", "teacher": "runs/nowhere"}},
    "clip": {**PAIRS, "model": TWO_TOWER, "objective": {"name": "contrast", "form": "ring"}, "accumulate": 2},
    "siglip": {**PAIRS, "model": TWO_TOWER, "objective": {"name": "contrast", "loss": "sigmoid"}},
    "lit": {**PAIRS, "model": {**TWO_TOWER, "lock": "image"}, "objective": {"name": "contrast"}},
    "cloob": {**PAIRS, "model": TWO_TOWER, "objective": {"name": "contrast", "loss": "cloob(beta=8.0)"}},
    "coca": {**PAIRS, "model": COCA, "objective": {"name": "coca"}},
}
FROZEN = {"lit": {"optim": {"freeze": ["image_tower/.*"]}}, "cloob": {"optim": {"freeze": ["logit_scale"]}}}


@pytest.mark.slow
@pytest.mark.tpu
@pytest.mark.parametrize("run", RUNS)
def test_every_objective_is_planned(run, tiny):
    raw = tiny(**{**RUNS[run], **FROZEN.get(run, {})})
    if "model" in RUNS[run] and "name" in RUNS[run]["model"]:
        raw["model"] = RUNS[run]["model"]
    found = vj.plan({**raw, "mesh": FSDP}, "v5e:2x2")
    assert found.fits and found.time.compute > 0 and found.flops > 0 and found.exchanges
    kinds = {e.kind for e in found.exchanges}
    assert ("collective-permute" in kinds) >= (run == "clip")
    assert (found.memory.parts["teacher"] > 0) == (run == "distillation")
    assert any("taken to be a model like the student" in note for note in found.notes) == (run == "distillation")


@pytest.mark.slow
@pytest.mark.tpu
def test_twice_too_large_is_answered_with_what_the_compiler_takes(tiny):
    """The nearest that is named is compiled, and a device holds it."""
    raw = tiny(model={**WIDE, "depth": 6, "scan": True}, augment={"size": 64}, data={"canvas": 64}, batch_size=2**15)
    assert not vj.plan(raw, "v5e:2x2").fits
    found = search(raw, "v5e:2x2", nearest=True)
    assert set(found.best.changes) == {"accumulate"}
    again = planning.compiled(config.change(raw, found.best.changes.items()), topology.find("v5e:2x2"), None, None)
    assert again.fits and again.memory.compiler and again.memory.needed <= topology.CHIPS["v5e"].hbm
