"""What a configuration determines before the first step."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from vit_jax.config import Duration
from vit_jax.evals import Evaluator, Report
from vit_jax.train import setup as module
from vit_jax.train.setup import describe
from vit_jax.types import UserError


def test_values_of_a_run(tiny, one_device):
    setup = one_device(tiny(duration="2 epochs"))
    assert (len(setup.train), len(setup.val), setup.total_steps) == (64, 16, 8)
    assert setup.model.num_classes == 4
    assert setup.steps_of(Duration(50, "percent")) == 4 and setup.steps_of(Duration(0.5, "epochs")) == 2
    assert len(set(setup.trained)) == len(jax.tree.leaves(setup.shapes.params))
    batches = setup.train_batches(6)
    assert len(list(batches)) == 2  # steps 6 and 7
    batches.close()


def test_frozen_parameters_are_not_trained(tiny, one_device):
    setup = one_device(tiny(optim={"freeze": ["encoder/.*"]}))
    assert setup.trained and not any(path.startswith("encoder") for path in setup.trained)


def test_a_dry_run_counts(tiny, one_device):
    """Against closed forms; FLOPs do not depend on how the step is computed."""
    found = describe(one_device(tiny()))
    d, f, layers, n, classes = 16, 32, 2, 4, 4
    block = 4 * d * d + 4 * d + 2 * d * f + d + f + 4 * d
    parameters = 48 * d + d + n * d + layers * block + 2 * d + d * classes + classes
    assert found["parameters"] == parameters
    # parameters, their average, two moments; step, Adam's and the schedule's counters; norm and finiteness of 37 leaves
    leaves = 37
    assert found["state bytes per device"] == pytest.approx(16 * parameters + 16 + leaves, abs=8)
    assert found["batch bytes per device"] == 16 * (8 * 8 * 3 + 8 + 4 + 1 + 4)
    assert found["steps"] == 10 and found["training examples"] == 64 and found["validation examples"] == 16
    weights = 48 * d + layers * (4 * d * d + 2 * d * f)
    per_image = 2 * n * weights + 2 * d * classes + layers * 4 * n * n * d
    assert 3 * 16 * per_image < found["FLOPs per step"] < 2 * 3 * 16 * per_image  # at this size much is elementwise


@pytest.mark.first(1)
@pytest.mark.parametrize("change", [{"accumulate": 4}, {"model": {"scan": True}}, {"model": {"remat": "full"}}])
def test_flops_are_those_of_the_model(tiny, one_device, change):
    assert one_device(tiny(**change)).step_flops == pytest.approx(one_device(tiny()).step_flops, rel=0.02)


@pytest.mark.thorough
def test_more_devices_hold_less_each(tiny, one_device):
    big = tiny(model={"width": 32, "mlp_dim": 1024})
    one = describe(one_device(big))
    many = describe(one_device({**big, "mesh": {"replica": 2, "fsdp": 2, "tensor": 2}}, n=8))
    assert many["mesh"] == {"replica": 2, "fsdp": 2, "tensor": 2}
    assert many["parameters"] == one["parameters"]
    assert many["state bytes per device"] < 0.4 * one["state bytes per device"]
    assert many["batch bytes per device"] == one["batch bytes per device"] // 4


def test_evaluators_are_merged_and_unreadable_images_counted(tiny, one_device, monkeypatch):
    setup = one_device(tiny())
    seen = []

    class Count(Evaluator):
        def __call__(self, context):
            rows = [np.asarray(b["mask"]) for b in context.batches()]
            seen.append([r.shape for r in rows])
            return Report({"count": float(sum(r.sum() for r in rows))})

    config = dataclasses.replace(setup.config, evaluators=(Count(prefix="a"), Count(prefix="b")), eval_batch_size=5)
    setup = dataclasses.replace(setup, config=config)

    def one_unreadable(*args, _original=module.eval_batches, **kwargs):
        batches = _original(*args, **kwargs)
        batches.unreadable = {3: "torn"}
        return batches

    monkeypatch.setattr(module, "eval_batches", one_unreadable)
    assert setup.evaluate({}).metrics == {"a/count": 16.0, "a/unreadable": 1.0, "b/count": 16.0, "b/unreadable": 1.0}
    assert seen == [[(5,)] * 4] * 2  # 16 images, the last batch padded


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"duration": "0.01 epochs"}, "less than one step of 16 examples"),
        ({"duration": "5%"}, "a percentage of itself"),
        ({"batch_size": 18, "accumulate": 4}, "not divisible"),
        ({"model": {"mlp_linear": "packed24"}}, "mlp_in/kernel_index holds uint8 numbers, which cannot be trained"),
        (
            {"model": {"out_linear": "int8"}},
            "out/kernel_values holds int8 numbers, which cannot be trained; train a dense",
        ),
        (
            {"evaluators": ({"name": "zero_shot", "data": "no_such_folder"},), "best": "val/zero_shot/accuracy"},
            "no_such_folder",
        ),
    ],
)
def test_mistakes_are_found_before_anything_is_computed(tiny, one_device, change, text):
    with pytest.raises(UserError, match=text):
        one_device(tiny(**change)).init()


def test_the_step_lowers_for_accelerators(tiny, one_device):
    """All augmentations, SAM in groups and accumulation, for platforms that are not here."""
    ops = ["inception_crop", "flip", "color_jitter", "randaugment", "random_erasing", "mixup", "cutmix"]
    raw = tiny(augment={"train": ops}, optim={"sam": "sam(m=8)"}, model={"dtype": "bfloat16"}, accumulate=2)
    setup = one_device(raw, n=1)
    with jax.set_mesh(setup.mesh):
        traced = setup.step.trace(setup.shapes, setup.batch_shapes)
        for platform in ("tpu", "cuda"):
            assert "stablehlo.dot_general" in traced.lower(lowering_platforms=(platform,)).as_text()


def test_a_batch_of_evaluation_is_no_larger_than_the_data(tiny, one_device):
    """What is more would be padding: a number mistyped fills no memory."""
    setup = one_device(tiny(eval_batch_size=10**6))
    with contextlib.closing(setup._eval_batches(setup.val, None)) as batches:
        (batch,) = batches
    assert batch["mask"].shape == (len(setup.val),) and batch["mask"].all()
