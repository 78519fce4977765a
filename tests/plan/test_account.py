"""What operations cost: a small program written by hand, whose every number is known."""

import pytest

from vit_jax.plan import account, hlo, topology
from vit_jax.plan.report import Kernel

V5E = topology.CHIPS["v5e"]
TEXT = """\
HloModule jit_f

%product (a: bf16[128,256], b: bf16[256,512]) -> f32[128,512] {
  %a = bf16[128,256]{1,0} parameter(0)
  %b = bf16[256,512]{1,0} parameter(1)
  ROOT %convolution.1 = f32[128,512]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}

%cast (w: f32[2,256,512]) -> bf16[256,512] {
  %w = f32[2,256,512]{2,1,0} parameter(0)
  %one = f32[1,256,512]{2,1,0} slice(%w), slice={[0:1], [0:256], [0:512]}
  %flat = f32[256,512]{1,0} bitcast(%one)
  ROOT %low = bf16[256,512]{1,0} convert(%flat)
}

%body (state: (s32[], f32[2,256,512], bf16[128,256])) -> (s32[], f32[2,256,512], bf16[128,256]) {
  %state = (s32[], f32[2,256,512], bf16[128,256]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %ws = f32[2,256,512]{2,1,0} get-tuple-element(%state), index=1
  %h = bf16[128,256]{1,0:T(8,128)S(1)} get-tuple-element(%state), index=2
  %wc = bf16[256,512]{1,0} fusion(%ws), kind=kLoop, calls=%cast, metadata={op_name="jit(f)/ViT/blocks/mlp/convert"}, \
backend_config={"estimated_cycles":"70"}
  %y = f32[128,512]{1,0} fusion(%h, %wc), kind=kOutput, calls=%product, \
metadata={op_name="jit(f)/ViT/blocks/mlp/dot"}, backend_config={"estimated_cycles":"1000"}
  %t = f32[512,128]{1,0} copy(%y), metadata={op_name="jit(f)/ViT/blocks/mlp/transpose"}, \
backend_config={"estimated_cycles":"300"}
  %e = f32[128,512]{1,0} exponential(%y), metadata={op_name="jit(f)/ViT/blocks/attention_2/exp"}, \
backend_config={"estimated_cycles":"40"}
  %n = f32[128,512]{1,0} multiply(%e, %e), metadata={op_name="jit(f)/ViT/blocks/norm_mlp/mul"}, \
backend_config={"estimated_cycles":"30"}
  ROOT %next = (s32[], f32[2,256,512], bf16[128,256]) tuple(%i, %ws, %h)
}

%condition (state.1: (s32[], f32[2,256,512], bf16[128,256])) -> pred[] {
  %three = s32[] constant(3)
  %state.1 = (s32[], f32[2,256,512], bf16[128,256]) parameter(0)
  %j = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%j, %three), direction=LT
}

ENTRY %main (w.1: f32[2,256,512], x.1: f32[128,256]) -> bf16[128,256] {
  %w.1 = f32[2,256,512]{2,1,0} parameter(0), metadata={op_name="variables['w']"}
  %x.1 = f32[128,256]{1,0} parameter(1), metadata={op_name="inputs['image']"}
  %zero = s32[] constant(0)
  %low.1 = bf16[128,256]{1,0:T(8,128)S(1)} convert(%x.1), metadata={op_name="jit(f)/convert"}, \
backend_config={"estimated_cycles":"20"}
  %first = (s32[], f32[2,256,512], bf16[128,256]) tuple(%zero, %w.1, %low.1)
  %loop = (s32[], f32[2,256,512], bf16[128,256]) while(%first), condition=%condition, body=%body
  %s = (f32[2,256,512]{2,1,0}, f32[1,256,512]{2,1,0:S(1)}, s32[]{:S(2)}) slice-start(%w.1)
  %k = f32[8]{0} custom-call(%low.1), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(f)/ViT/head/times/pallas_call"}
  ROOT %out = bf16[128,256]{1,0} get-tuple-element(%loop), index=2
}
"""


@pytest.fixture(scope="module")
def program():
    return hlo.parse(TEXT)


def test_entries_are_by_layer_and_kind(program):
    kernels = [Kernel("times f32[8]", "head", 1, 10, 1, 500, 0, "")]
    found = {(e.layer, e.kind): e for e in account.entries(program, kernels, V5E)}
    assert {key: (e.cycles, e.count) for key, e in found.items()} == {
        ("block/mlp", "product"): (3000, 3), ("block/mlp", "copy"): (3 * 370, 6), ("head", "kernel"): (500, 1),
        ("block/attention", "softmax"): (120, 3), ("block/norm_mlp", "norm"): (90, 3), ("the rest", "copy"): (20, 1),
        (account.AHEAD, "copy"): (0, 1),
    }  # fmt: skip
    product = found["block/mlp", "product"]
    assert product.flops == 3 * 2 * 128 * 256 * 512 and product.bytes == 3 * (256 * 512 * 2 + 128 * 512 * 4)
    assert product.floor == int(product.bytes / V5E.bandwidth * V5E.clock) and product.above == 3000 - product.floor
    assert found["head", "kernel"].bytes == 8 * 4  # what it reads is in VMEM
    assert found["the rest", "copy"].bytes == 128 * 256 * 4


def test_of_what_is_sliced_only_the_slice_is_read(program):
    ahead = next(e for e in account.entries(program, [], V5E) if e.layer == account.AHEAD)
    assert ahead.bytes == 256 * 512 * 4
    cast = next(pair for pair in account.operations(program) if pair[0].op.name == "wc")
    assert account.traffic(program, *cast) == 256 * 512 * (4 + 2)


def test_copies_of_activations_are_counted_as_often_as_they_run(program):
    """The cast of the image once and a transposition in each of three turns; not the cast of a weight."""
    assert account.copies(program, [], "inputs") == 1 + 3
    assert account.copies(program, [512 * 128], "inputs") == 1  # as large as a parameter: its gradient


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("jit(f)/jvp(ViT)/encoder/block_3/mlp/dot_general", "encoder/block/mlp"),
        ("jit(f)/transpose(jvp(PlainViT))/attention_11/query/dot_general", "backward attention/query"),
        ("jit(f)/ViT/ViT._run/add", "the rest"),
        ("", "the rest"),
    ],
)
def test_layers_have_names_that_two_models_share(path, layer):
    assert account.layer(path) == layer
