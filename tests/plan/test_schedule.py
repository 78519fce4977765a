"""Cycles of kernels: bundles as libtpu writes them, shortened by hand to what decides, and the compiler itself."""

import dataclasses
import json
import subprocess

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import SingleDeviceSharding

from vit_jax.plan import hlo, schedule, topology
from vit_jax.plan.schedule import Schedule

V5E = topology.CHIPS["v5e"]
NESTED = """\
= control target key start
LB: loop body
= control target key end

     0   :  { %9 = vsyncpa [#allocation3], 0  ;;  %s2_s0 = inlined_call_operand.hbm [shape: f32[8,8], index: 0] /* a
window_bounds: (16, 1)
 */ }
   0x1   :  { %s3_s8 = smov 0 /* copy for cssa */ } /* Start region 9 :: End region 9 */
   0x2 LB: > { %s4_s9 = sadd.s32 4294967295, %s5_s9 /* iteration index, stage = 1 */  ;;  %s5_s9 = sphi %s3_s8, %s6_s9 \
/* phi copy :: iteration index, stage = 0 */ } /* Start region 10 :: Start region 11 */
   0x3   : > { %30 = sst [smem:[#allocation8_spill]] %s7_s1  ;;  %s7_s1 = sadd.s32 1, %s5_s9 /* copy for cssa */ }
   0x4   : > { %31 = sbr.rel (%p1_p1) target = $region24  ;;  %s8_s2 = smov 2 /* copy for cssa */ } /* End region 11 */
   0x5 LB: >> { %s9_s3 = sphi %s8_s2, %s10_s3 /* phi copy */ } /* Start region 12 */
   0x6   : >> { %s10_s3 = sadd.s32 (%p1_p1), 3, %s9_s3  ;;  %p2_p2 = scmp.ge.s32.totalorder %s10_s3, 16 \
/* loop exit test */ }
   0x7   : > { %33 = sbr.rel (!%p2_p2) target = $region12 }
   0x8   : >> { %v1_v0 = vmov 0.0 }
   0x9   :  {}
   0xa   :  {}
   0xb   : >> { %v2_v0 = vmov 0.0 } /* End region 12 */
   0xc PF: > { %s11_s4 = sld [smem:[#allocation8_spill]] } /* Start/End empty region 24 */
   0xd   : > { %s6_s9 = smov %s11_s4  ;;  %p3_p3 = scmp.ge.s32.totalorder %s11_s4, 6 /* loop exit test */ }
   0xe   :  { %27 = sbr.rel (!%p3_p3) target = $region10 }
   0xf   :  {} /* End region 10 */
  0x10   :  { %14 = vsyncpa [#allocation3], 1 }
"""


def test_bundles_count_as_often_as_their_loops_and_the_grid_run_them():
    """Of 17 bundles two stand before the grid of 6 - 2 steps, and of the 15 in it 7 turn from 2 by 3 to 16: 5 times."""
    assert schedule.parse(NESTED) == Schedule(17, 4, 2 + 4 * (8 + 7 * 5), 0)
    assert schedule.parse(NESTED.replace("stage = 1", "")).steps == 6  # nothing is fetched ahead


@pytest.mark.parametrize(
    ("change", "steps"),
    [(("%s8_s2 = smov 2", "%s8_s2 = sld [smem:[%s2_s0]]"), 4), (("%s11_s4, 6", "%s11_s4, %s0_s0"), 1)],
)
def test_a_loop_that_does_not_show_its_turns_counts_once_and_is_counted(change, steps):
    found = schedule.parse(NESTED.replace(*change))
    assert found.unknown == 1 and found.steps == steps and found.cycles == (2 + 4 * 15 if steps == 4 else 2 + 8 + 35)
    assert found.turn == (4 * 7 if steps == 4 else 8 + 35)


@pytest.mark.parametrize(("comparison", "cycles"), [("scmp.ne", 4 * 7 * 5), ("scmp.eq", 4 * 7 * 5), ("scmp.ge", 0)])
def test_what_hangs_on_an_index_of_the_grid_is_told_apart(comparison, cycles):
    text = NESTED.replace("%s7_s1 = sadd", f"%p1_p1 = {comparison}.s32.totalorder %s5_s9, 0  ;;  %s7_s1 = sadd")
    assert schedule.parse(text) == dataclasses.replace(schedule.parse(NESTED), conditional=cycles)


def test_what_is_no_schedule_is_refused():
    with pytest.raises(ValueError, match="another form"):
        schedule.parse("Schedule analysis:\n\ttotal scheduled bundles:    4\n")


KERNEL = hlo.Kernel("times", (("bf16", (8, 128)), ("s32", (4,))), (("pred", (8,)),), "{}")


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """What the process of the compiler is asked and answers: ``(questions, answers)``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(schedule.importlib.metadata, "version", lambda _: "1")
    questions, answers = [], []

    def run(command, *, input, env, **_):
        assert command[-1] in env["LIBTPU_INIT_ARGS"] and env["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "1"
        questions.append(json.loads(input))
        if isinstance(answers[0], BaseException):
            raise answers.pop(0)
        return subprocess.CompletedProcess(command, 1, answers.pop(0), b"")

    monkeypatch.setattr(schedule.subprocess, "run", run)
    return questions, answers


def test_a_kernel_is_compiled_once(compiler):
    questions, answers = compiler
    answers.append(json.dumps({"schedule": NESTED}).encode() + b"\n")
    want = {KERNEL: schedule.parse(NESTED)}
    assert schedule.of([KERNEL], V5E) == schedule.of([KERNEL], V5E) == want and schedule.of([], V5E) == {}
    (question,) = questions
    assert question["topology"] == "v5e:1x1" and question["kernels"] == [
        {"operands": [["bfloat16", [8, 128]], ["int32", [4]]], "results": [["bool", [8]]], "config": "{}"}
    ]


def test_a_kernel_of_which_nothing_is_known_has_a_reason(compiler):
    _, answers = compiler
    others = [dataclasses.replace(KERNEL, config=f'"{i}"') for i in range(3)]
    late = subprocess.TimeoutExpired("", 1, json.dumps({"error": "no such op"}).encode() + b"\n{")
    answers += [late, b"", json.dumps({"schedule": ""}).encode() + b"\n"]
    assert list(schedule.of(others[:2], V5E).values()) == ["no such op", "not compiled within 600 s"]
    assert list(schedule.of(others[:1], V5E).values()) == ["the compiler's process ended with exit status 1"]
    assert list(schedule.of(others[2:], V5E).values()) == ["the compiler wrote a schedule of another form"]


def call(name: str, around: str) -> str:
    metadata = (
        f'metadata={{op_name="jit(step)/jvp(ViT)/{around}/{name}/pallas_call"}}, backend_config={{"flag":"{name}"}}'
    )
    return f'%{name}.1 = f32[8,128] custom-call(%x), custom_call_target="tpu_custom_call", {metadata}'


HBM = round(4 * (1024 * 1024 + 8) / V5E.bandwidth * V5E.clock)
"""Cycles of a v5e chip in which HBM takes or gives the array that a kernel reads and the one it writes."""


def test_kernels_are_rows_and_part_of_their_layers(monkeypatch):
    calls = [call(name, "mlp") for name in ("once", "odd", "waits")]
    text = "\n  ".join(["ENTRY %main (x: f32[8]) -> f32[8] {", "%x = f32[8] parameter(0)", *calls])
    text = text.replace("%waits.1 = f32[8,128] ", "%waits.1 = f32[1024,1024]{1,0} ")
    known = [Schedule(100, 4, 380, 1), "refused", Schedule(10, 4, 40, 0)]
    monkeypatch.setattr(schedule, "of", lambda kernels, chip: dict(zip(kernels, known, strict=True)))
    rows = schedule.kernels(hlo.parse(text + "\n}"), V5E)
    assert [(k.name, k.layer, k.calls, k.cycles, k.reason) for k in rows] == [
        ("waits f32[1024,1024]", "forward mlp", 1, HBM, ""), ("once f32[8,128]", "forward mlp", 1, 380, ""),
        ("odd f32[8,128]", "forward mlp", 1, 0, "refused"),
    ]  # fmt: skip
    layers = {"forward mlp": 30 + 380 + HBM, "forward head": 400}
    assert schedule.added({"forward head": 400, "forward mlp": 30}, rows) == layers
    assumed, once, left = schedule.notes(rows)
    assert "final schedule" in assumed and "once f32[8,128] 1 loops" in once and "odd f32[8,128] (1; refused)" in left
    assert schedule.notes([]) == []


def _loops(x, y):
    def inner(_, total):
        return total * 2 + jnp.tanh(total)

    def outer(i, total):
        return jax.lax.fori_loop(0, 5, inner, total + jnp.exp(x[pl.ds(i * 8, 8), :]))

    y[...] = jax.lax.fori_loop(2, 16, outer, jnp.zeros((8, 128)))


@pytest.mark.parametrize(("name", "steps"), [("v5e", 12), ("v5p", 6)])
def test_the_compilers_own_bundles(name, steps, tpu_chips):
    """A grid of 12, on two cores where a chip has two, around two loops; the inner one waits for its tanh."""
    chip = topology.CHIPS[name]
    shape = chip.topologies[0]
    place = SingleDeviceSharding(tpu_chips(f"{name}:{shape}", **topology.options(shape))[0])
    run = pl.pallas_call(
        _loops,
        grid=(4, 3),
        in_specs=[pl.BlockSpec((128, 128), lambda i, j: (i, j))],
        out_specs=pl.BlockSpec((8, 128), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((32, 384), "float32"),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        name="loops",
    )
    operand = jax.ShapeDtypeStruct((512, 384), "float32", sharding=place)
    compiled = jax.jit(lambda x: run(x) + 1.0, out_shardings=place).lower(operand).compile()
    (row,) = schedule.kernels(hlo.parse(compiled.as_text()), chip)
    assert row.name == "loops f32[32,384]" and row.reason == "" and row.unknown == 0 and row.steps == steps
    assert steps * 14 * (5 * 5 + 5) < row.cycles < steps * 14 * (5 * 20 + 20)
