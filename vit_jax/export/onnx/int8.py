"""Weights of products and tables in int8, activations quantised as they come, by ONNX Runtime."""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from vit_jax.export.base import Program
from vit_jax.export.onnx import file

COUNT = 32
"""Inputs that show what was lost."""


def quantise(path: pathlib.Path, of: Program) -> str:
    """Puts the int8 program in place of the one at ``path`` and says what became of size and outputs.

    Weights have a scale for each output, and 7 bits, so that no processor's products of 8 bits overflow. What prepares
    images stays float32.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    images = of.input["dtype"] == "uint8"
    inputs = {of.input["name"]: photographs(COUNT, of.input["shape"][1]) if images else of.examples(COUNT)}
    before, large, new = file.run(path, inputs), file.size(path), path.parent / "int8" / path.name
    nodes = onnx.load(path, load_external_data=False).graph.node
    new.parent.mkdir()
    with _quiet():
        quantize_dynamic(
            path,
            new,
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in nodes if "/" not in node.name],
            use_external_data_format=large > file.LIMIT,
        )
    mode = path.stat().st_mode
    for old in file.parts(path):
        old.unlink()
    for part in file.parts(new):
        part.chmod(mode)  # ONNX gives the weights beside a program to their owner alone
        part.rename(path.with_name(part.name))
    new.parent.rmdir()
    after = file.run(path, inputs)
    sizes = f"{path.name} in int8: {large / 2**20:,.1f} MiB became {file.size(path) / 2**20:,.1f}"
    what = f"{COUNT} crops of photographs" if images else f"{COUNT} random texts"
    return f"{sizes}; on {what} {_difference(before, after, of.output['name'])}"


def photographs(count: int, side: int) -> np.ndarray:
    """Random squares of scikit-learn's two photographs, uint8[count, side, side, 3]."""
    from sklearn.datasets import load_sample_images

    rng, out = np.random.default_rng(0), []
    pictures = [Image.fromarray(x) for x in load_sample_images().images]
    for i in range(count):
        picture = pictures[i % len(pictures)]
        edge = int(rng.integers(100, min(picture.size) + 1))
        left, top = (int(rng.integers(0, whole - edge + 1)) for whole in picture.size)
        out.append(
            np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + edge, top + edge)))
        )
    return np.stack(out)


def _difference(before: np.ndarray, after: np.ndarray, name: str) -> str:
    if name == "probabilities":
        same = int(np.sum(before.argmax(1) == after.argmax(1)))
        return f"{name} differ by {np.max(np.abs(after - before)):.2g} at most, the first class is the same for {same}"
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    return (
        f"the cosine between {name} before and after is {np.min(np.sum(before * after, axis=1) / lengths):.4f} at least"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime recommends on the root logger a preparation that there is nothing left of to do."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
