"""A whole model: names, opset, only the weights that are read."""

import numpy as np

from vit_jax.export.onnx.translate import translate


def test_only_what_is_read_is_written():
    params = {"used": np.ones((4, 2), np.float32), "transposed": np.ones((4, 2), np.float32), "unused": np.ones(9)}
    run = lambda p, x: (x @ p["used"]) @ p["transposed"].T * 2.0  # noqa: E731
    model, weights = translate(run, params, ("x", (3, 4), np.float32), "y")
    assert set(weights) == {"used", *(n for n in weights if n.startswith("constant_"))} and "unused" not in weights
    assert weights["used"] is params["used"]  # not copied
    assert [i.name for i in model.graph.input] == ["x"] and [o.name for o in model.graph.output] == ["y"]
    assert model.ir_version == 9 and [o.version for o in model.opset_import] == [20]


def test_an_output_that_does_not_depend_on_the_input():
    model, weights = translate(lambda p, x: p["b"] * 2.0, {"b": np.ones(2, np.float32)}, ("x", (3,), np.float32), "y")
    assert [n.op_type for n in model.graph.node] == ["Identity"]
    np.testing.assert_array_equal(*weights.values(), [2.0, 2.0])
