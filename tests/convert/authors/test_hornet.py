"""HorNet's own names: every one of them once, and where each number goes."""

import itertools
import math

import numpy as np
import pytest

from vit_jax import architectures
from vit_jax.convert.authors import FORMAT
from vit_jax.convert.authors import hornet as codec
from vit_jax.convert.rules import back, into
from vit_jax.io.tensors import Tensor
from vit_jax.models import create, describe

SMALL = {"depths": (1, 2, 1, 1), "widths": (8, 16, 24, 32), "orders": (2, 3, 2, 3), "num_classes": 3}
CASES = {"gf": {**SMALL, "global_filters": True, "filter_size": 64}, "7x7": SMALL}


def file(case):
    """Random tensors by the names of the published code, which are written out here, for ``CASES[case]``."""
    f, rng, shapes = CASES[case], np.random.default_rng(0), {}

    def put(name, *shape, bias=True):
        shapes[f"{name}.weight"] = shape
        shapes.update({f"{name}.bias": shape[:1]} if bias else {})

    put("downsample_layers.0.0", f["widths"][0], 3, 4, 4)
    put("downsample_layers.0.1", f["widths"][0])
    for i, d in enumerate(f["widths"]):
        if i:
            put(f"downsample_layers.{i}.0", f["widths"][i - 1])
            put(f"downsample_layers.{i}.1", d, f["widths"][i - 1], 2, 2)
        dims = [d // 2**k for k in reversed(range(f["orders"][i]))]
        for j in range(f["depths"][i]):
            at = f"stages.{i}.{j}"
            put(f"{at}.norm1", d)
            put(f"{at}.gnconv.proj_in", 2 * d, d, 1, 1)
            put(f"{at}.gnconv.proj_out", d, d, 1, 1)
            for k, (a, b) in enumerate(itertools.pairwise(dims)):
                put(f"{at}.gnconv.pws.{k}", b, a, 1, 1)
            c = sum(dims)
            if case == "gf" and i >= 2:
                side = 64 // 4 // 2**i
                put(f"{at}.gnconv.dwconv.dw", c // 2, 1, 3, 3, bias=False)
                shapes[f"{at}.gnconv.dwconv.complex_weight"] = (c // 2, side, side // 2 + 1, 2)
                put(f"{at}.gnconv.dwconv.pre_norm", c)
                put(f"{at}.gnconv.dwconv.post_norm", c)
            else:
                put(f"{at}.gnconv.dwconv", c, 1, 7, 7)
            put(f"{at}.norm2", d)
            put(f"{at}.pwconv1", 4 * d, d)
            put(f"{at}.pwconv2", d, 4 * d)
            shapes |= {f"{at}.gamma1": (d,), f"{at}.gamma2": (d,)}
    put("norm", f["widths"][-1])
    put("head", 3, f["widths"][-1])
    return {name: Tensor.of(rng.standard_normal(s).astype(np.float32)) for name, s in shapes.items()}


@pytest.mark.first(1)
@pytest.mark.parametrize("case", CASES)
def test_every_number_has_its_place(case):
    there = file(case)
    assert FORMAT.matches(there)
    found = FORMAT.read(there, {})
    model = describe.build(found.model)
    fields = {**CASES[case], "layer_scale": 1e-6}
    assert model == create("hornet", **fields) and found.preprocess.size == (64 if case == "gf" else 224)
    assert "gelu and norm epsilon 1e-6" in found.notes[0]
    rules = codec.rules(model)
    ours, _ = into(rules, there, describe.shapes(model, found.preprocess.size), source="it")
    again = back(rules, ours, name="it")
    assert again.keys() == there.keys()
    assert all(np.array_equal(again[name].read(), there[name].read()) for name in there)
    at, mixer = "stages.3.0.gnconv", "stage_3/block_0/mixer"
    np.testing.assert_array_equal(
        ours[f"{mixer}/qkv/kernel"].read(), there[f"{at}.proj_in.weight"].read()[:, :, 0, 0].T
    )
    np.testing.assert_array_equal(ours[f"{mixer}/up_1/bias"].read(), there[f"{at}.pws.1.bias"].read())
    np.testing.assert_array_equal(ours["stage_0/block_0/scale_mlp"].read(), there["stages.0.0.gamma2"].read())
    first = ours["stage_0/block_0/mixer/conv/kernel"].read(), there["stages.0.0.gnconv.dwconv.weight"].read()
    np.testing.assert_array_equal(first[0][2, 5, 0], first[1][:, 0, 2, 5])
    if case == "gf":
        stored = ours[f"{mixer}/conv/filter"].read(), there[f"{at}.dwconv.complex_weight"].read()
        np.testing.assert_array_equal(stored[0][1, 0, :, 1], stored[1][:, 1, 0, 1])


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures.HORNET)
def test_published_sizes(name):
    model = create(name)
    shapes = describe.shapes(model, 224)
    there = back(
        codec.rules(model), {k: Tensor(s, np.dtype("f4"), lambda: np.zeros(0)) for k, s in shapes.items()}, name="it"
    )
    assert sum(math.prod(t.shape) for t in there.values()) == sum(map(math.prod, shapes.values()))
    assert describe.build(FORMAT.read(there, {}).model) == model.clone(layer_scale=1e-6)
