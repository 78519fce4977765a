"""What a plan says."""

import dataclasses
import json

from vit_jax.plan.report import Exchange, Kernel, Memory, Plan, Time

GIB = 2**30
KERNELS = (
    Kernel("times f32[8]", "forward mlp", 12, 700, 25, 12 * 25 * 700, 0, ""),
    Kernel("odd", "", 3, 0, 0, 0, 0, "refused"),
)  # fmt: skip
PLAN = Plan(
    topology="v5e:4x4", devices=16, hosts=4, mesh={"replica": 1, "fsdp": 16, "tensor": 1},
    settings={"batch_size": 4096, "accumulate": 1},
    memory=Memory(
        {"parameters": GIB, "optimizer": 2 * GIB, "teacher": 0},
        {"argument": 3 * GIB + 2**20, "output": 3 * GIB, "alias": 3 * GIB, "temp": 5 * GIB, "generated_code": 2**20},
        8 * GIB + 2**21, 16 * GIB, True,
    ),
    flops=2e12, program_flops=2.5e12, exchanges=(Exchange("all-gather", 24, 2**30, 2**29, 0.004),),
    cycles={f"layer {i}": 10**6 for i in range(20)}, kernels=KERNELS, time=Time(0.01, 0.004, 0.002, 0.01, 0.014),
    mfu=(0.5, 0.7), images_per_host=1e5, bytes_per_host=2e10, checkpoint=3 * GIB, notes=("Assumed so.",),
)  # fmt: skip


def test_a_plan_survives_json():
    assert Plan.of(json.loads(json.dumps(PLAN.summary()))) == PLAN and PLAN.summary()["fits"]
    bare = dataclasses.replace(PLAN, time=None, mfu=None, cycles={}, exchanges=())
    assert Plan.of(json.loads(json.dumps(bare.summary()))) == bare
    assert "Collectives: none" in bare.text() and "Predicted" not in bare.text()


def test_the_report_names_every_part():
    text = PLAN.text()
    for part in (
        "16 devices of 4 hosts, mesh replica x fsdp x tensor = 1 x 16 x 1",
        "optimizer                                2.000",
        "5.000  gradients as large as the parameters, then 4.000 of activations", "of 16.00 (50%): fits",
        "2.00 TFLOP of the model", "all-gather                            24     1,024.00       512.00      4.00",
        "0.21     12 700 x 25", "?      3",
        "4 more", "10.0 ms with every exchange hidden, 14.0 ms with none", "MFU: 50.0% to 70.0%", "100,000 images/s",
        "Checkpoint: 3.00 GiB", "Assumed so.",
    ):  # fmt: skip
        assert part in text, part
    assert "teacher" not in text


def test_what_does_not_fit_says_so():
    memory = Memory({"parameters": GIB}, {}, 40 * GIB, 16 * GIB, False)
    large = dataclasses.replace(PLAN, memory=memory, time=None, mfu=None)
    assert not large.fits and "40.000  of 16.00: does not fit" in large.text() and "Collectives" not in large.text()
    assert not dataclasses.replace(PLAN.memory, available=GIB).fits
