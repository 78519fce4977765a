"""Reading compiled programs: a small one written by hand, whose every number is known."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax.plan import hlo

TEXT = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %y = f32[] parameter(1)
  %x = f32[] parameter(0)
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-scatter.1 (p: f32[256,64]) -> f32[64,64] {
  %p = f32[256,64]{1,0:T(8,128)S(1)} parameter(0)
  %all-reduce.9 = f32[256,64]{1,0:T(8,128)} all-reduce(%p), channel_id=7, replica_groups={{0,1,2,3}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %cut = f32[64,64]{1,0} dynamic-slice(%all-reduce.9, %zero, %zero), dynamic_slice_sizes={64,64}
}

%piece.1 (p: bf16[64,512]) -> (bf16[256,512], u32[]) {
  %p.1 = bf16[64,512]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[256,512]{1,0} all-gather(%p.1), channel_id=3, replica_groups=mesh['a'=4,'b'=1] {'a'}
}

%piece.2 (p: bf16[64,512]) -> bf16[256,512] {
  %p.2 = bf16[64,512]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[256,512]{1,0} all-gather(%p.2), channel_id=3, replica_groups=mesh['a'=4,'b'=1] {'a'}
}

%product (a: bf16[128,256], b: bf16[256,512]) -> f32[128,512] {
  %a = bf16[128,256]{1,0} parameter(0)
  %b = bf16[256,512]{1,0} parameter(1)
  ROOT %convolution.1 = f32[128,512]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}

%body (state: (s32[], f32[128,512])) -> (s32[], f32[128,512]) {
  %state = (s32[], f32[128,512]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %g.1 = (bf16[256,512], u32[]) fusion(%i), kind=kCustom, calls=%piece.1
  %g.2 = bf16[256,512] fusion(%i), kind=kCustom, calls=%piece.2
  %f = f32[128,512] fusion(%i, %i), kind=kOutput, calls=%product, metadata={op_name="jit(step)/while/body/closed_call/\
jvp(ViT)/ViT._run/encoder/encoder._scan/block_3/mlp/mlp_in/dot_general"}, backend_config={"estimated_cycles":"1000"}
  %k = f32[8] custom-call(%f), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(step)/transpose(jvp(ViT))/mlp/shard_map/transpose(jvp(times))/pallas_call"}, \
backend_config={"flag_configs":[],"custom_call_config":{"body":"TUw="},"retry_config":{"retry_count":"0"}}
  %s = f32[64,64] fusion(%f), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %next = (s32[], f32[128,512]) tuple(%i, %f)
}

%condition (state.1: (s32[], f32[128,512])) -> pred[] {
  %twelve = s32[] constant(12)
  %state.1 = (s32[], f32[128,512]) parameter(0)
  %j = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%j, %twelve), direction=LT
}

ENTRY %main (x.1: f32[128,512]) -> f32[128,512] {
  %x.1 = f32[128,512]{1,0:T(8,128)} parameter(0)
  %zero.1 = s32[] constant(0)
  %first = (s32[], f32[128,512]) tuple(%zero.1, %x.1)
  %loop = (s32[], f32[128,512]) while(%first), condition=%condition, body=%body
  %ring = (f32[8,4], f32[8,4], u32[], u32[]) collective-permute-start(%x.1), \
source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %total = (f32[10], /*index=1*/bf16[6]) all-reduce(%x.1, %x.1), replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  %scale = f32[128,512] fusion(%x.1), kind=kLoop, calls=%product, metadata={op_name="jit(step)/mul"}, \
backend_config={"estimated_cycles":"50"}
  ROOT %out = f32[128,512] get-tuple-element(%loop), index=1
}
"""


@pytest.fixture(scope="module")
def program():
    return hlo.parse(TEXT)


def test_loops_multiply_what_is_in_them(program):
    times = {run.op.name: run.times for run in hlo.executed(program)}
    assert program.entry == "main" and times["loop"] == 1 and times["f"] == times["convolution.1"] * 12 == 12
    assert "x" not in times  # the sum of an all-reduce is no step of the program
    assert hlo.unknown_loops(program) == 0


def test_a_loop_that_does_not_show_its_turns_counts_once_and_is_counted(program):
    unknown = hlo.parse(TEXT.replace("direction=LT", "direction=NE"))
    assert hlo.unknown_loops(unknown) == 1 and {r.op.name: r.times for r in hlo.executed(unknown)}["f"] == 1
    said = TEXT.replace("direction=LT", "direction=NE").replace(
        "body=%body", 'body=%body, {"known_trip_count":{"n":"7"}}'
    )
    assert {r.op.name: r.times for r in hlo.executed(hlo.parse(said))}["f"] == 7


def test_collectives_are_counted_as_often_as_they_run_and_pieces_of_one_as_one(program):
    found = {e.kind: e for e in hlo.collectives(program)}
    assert {kind: (e.times, e.bytes, e.group) for kind, e in found.items()} == {
        "all-gather": (12, 256 * 512 * 2, (0, 1, 2, 3)),
        "reduce-scatter": (12, 256 * 64 * 4, (0, 1, 2, 3)),
        "collective-permute": (1, 8 * 4 * 4, (0, 1, 2, 3)),
        "all-reduce": (1, 10 * 4 + 6 * 2, (0, 2, 4, 6)),
    }
    sent = {kind: e.sent(8) for kind, e in found.items()}
    assert sent["all-gather"] == 3 / 4 * 256 * 512 * 2 and sent["all-reduce"] == 2 * 3 / 4 * 52
    assert sent["reduce-scatter"] == 3 / 4 * 256 * 64 * 4 and sent["collective-permute"] == 128


def test_cycles_and_products_are_those_of_a_step(program):
    assert hlo.cycles(program) == {
        "forward encoder/block/mlp/mlp_in": 12_000,
        "optimizer, augmentation and the rest": 50,
    }
    assert hlo.matrix_flops(program) == 13 * 2 * 128 * 256 * 512
    ((kernel, path, moved), calls), *others = hlo.kernels(program).items()
    assert (
        calls == 12
        and not others
        and moved == 4 * (128 * 512 + 8)
        and kernel.name == "times"
        and hlo.layer(path) == "backward mlp"
    )
    assert kernel.operands == (("f32", (128, 512)),) and kernel.results == (("f32", (8,)),)
    assert kernel.config == '{"custom_call_config": {"body": "TUw="}}'


BACKWARD = "jit(step)/transpose(jvp(ViT))/"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (f"{BACKWARD}ViT._run/encoder/block_11/attention/out/out.product/dot", "backward encoder/block/attention/out"),
        (f"{BACKWARD}encoder/checkpoint/rematted_computation/blocks/mlp/dot", "recomputed encoder/block/mlp"),
        ("jit(step)/jvp()/reduce_sum", "forward loss"),
        (
            "jit(step)/while/body/TwoTower.embed/image_tower/image_tower._run/blocks/mlp/add",
            "forward image_tower/block/mlp",
        ),
        ("jit(step)/sqrt", "optimizer, augmentation and the rest"),
        ("", "optimizer, augmentation and the rest"),
    ],
)
def test_layers_have_names(path, words):
    assert hlo.layer(path) == words


def test_products_of_a_batch_are_counted_where_the_tpu_writes_them_as_strided_convolutions():
    """Of 4 x 4 independent products ``[4, 64] @ [64, 4]``, and of one convolution with padding."""
    text = """\
ENTRY %main (a: f32[4,4,4,64], b: f32[4,4,4,64]) -> f32[4,4,4,4] {
  %a = f32[4,4,4,64] parameter(0)
  %b = f32[4,4,4,64] parameter(1)
  %c = f32[4,4,4,4] convolution(%a, %b), window={size=4x4 stride=3x3 lhs_dilate=4x4}, dim_labels=01bf_01oi->01bf
  %i = f32[1,5,5,1] parameter(2)
  %k = f32[3,3,1,1] parameter(3)
  ROOT %d = f32[1,5,5,1] convolution(%i, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
}
"""
    padded = 2 * (5 * 3 - 2) ** 2  # of 15 pairs of places in a row two lie outside
    assert hlo.matrix_flops(hlo.parse(text)) == 2 * 4 * 4 * 4 * 64 * 4 + padded


def test_a_program_of_this_machine_is_read():
    def f(x, w):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0]

    compiled = jax.jit(f).lower(jnp.ones((8, 16)), jnp.ones((5, 16, 16))).compile()
    found = hlo.parse(compiled.as_text())
    assert hlo.unknown_loops(found) == 0 and hlo.matrix_flops(found) in (0, 5 * 2 * 8 * 16 * 16)
