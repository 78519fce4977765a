"""A checkpoint as an ONNX program, preprocessing inside: its timm twin, wrapped and exported by PyTorch."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tempfile
import warnings
from typing import Any

import numpy as np

from vit_jax.augment.geometry import center_box, resize_matrix
from vit_jax.config import lookup
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.timm import FORMAT
from vit_jax.convert.timm.image import build_peer
from vit_jax.convert.write import save
from vit_jax.export import base
from vit_jax.io.extras import needed
from vit_jax.predict import Predictor

FILE = "model.onnx"


def write(predictor: Predictor, out: pathlib.Path) -> base.Exported:
    """Writes ``out/model.onnx`` and ``out/model.json``, whose content is in the program's ``metadata_props`` too.

    Above 2 GB the parameters lie in a file of their own beside it.

    Raises:
      UserError: ``out`` exists or cannot be written; timm has no such model; a package is missing.
    """
    _check_packages()
    import onnxruntime

    usage = (
        f"session = onnxruntime.InferenceSession('{FILE}')",
        "print(session.run(None, {'images': images})[0])",
    )
    about = base.describe(predictor)
    about["usage"] = base.script("onnxruntime", about, usage, predictor.pretrained.preprocess.host_frame)
    model: Any = predictor.model
    exact = Predictor(dataclasses.replace(predictor.pretrained, model=model.clone(dtype="float32")))
    with base.new_folder(out) as folder, tempfile.TemporaryDirectory() as scratch:
        twin, notes = timm_twin(exact, pathlib.Path(scratch))
        program = _program(_classifier(exact, twin), about)
        program.save(folder / FILE)
        base.write_json(folder / base.ABOUT, about)
        session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
        difference = base.compare(lambda images: np.asarray(session.run(None, {"images": images})[0]), exact, notes)
    if model.dtype != "float32":
        notes.append(f"it computes in float32, the checkpoint in {model.dtype}")
    return base.Exported(out, base.signature(about), usage, difference, tuple(notes))


def _check_packages() -> None:
    with needed("--to onnx", "torch"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
        import torch  # noqa: F401


def timm_twin(predictor: Predictor, scratch: pathlib.Path) -> tuple[Any, list[str]]:
    """timm's model with the checkpoint's weights, and where it differs, one note each; files go to ``scratch``.

    Raises:
      UserError: timm has no such model.
    """
    model = predictor.pretrained.stored()
    bare = dataclasses.replace(model, output_activation="softmax", preprocess=Preprocess(model.preprocess.size))
    notes = save(bare, scratch / "twin", "timm")  # need not tell preprocessing and activation, which follow
    return build_peer(scratch / "twin" / "model.safetensors", FORMAT.known(model.model)), notes


def _classifier(predictor: Predictor, twin: Any) -> Any:
    """``twin`` with preprocessing and output activation, a module uint8[B,S,S,3] -> float32[B,C]."""
    import torch

    preprocess = predictor.pretrained.preprocess
    canvas = preprocess.host_canvas
    device = preprocess.augment()
    start, _, stop, _ = center_box(canvas, device["crop"])
    matrix = np.asarray(resize_matrix(start, stop, canvas, preprocess.size, device["interpolation"]))
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (preprocess.mean, preprocess.std))
    activations = {"softmax": lambda x: torch.softmax(x, -1), "sigmoid": torch.sigmoid}
    name = predictor.pretrained.output_activation if predictor.model.num_classes else None
    activation = lookup(activations, name, "output_activation") if name else lambda x: x

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = twin
            for key, value in {"matrix": matrix, "scale": 1 / std, "offset": -mean / std}.items():
                self.register_buffer(key, torch.from_numpy(np.array(value)))

        def forward(self, images: Any) -> Any:
            x = images.permute(0, 3, 1, 2).to(torch.float32) * (1 / 255)
            x = self.matrix @ x @ self.matrix.T
            x = x.clamp(0, 1) if device["interpolation"] == "bicubic" else x
            return activation(self.model(x * self.scale + self.offset))

    return Classifier().eval()


def _program(classifier: Any, about: dict[str, Any]) -> Any:
    """``classifier`` traced for any batch size, with ``about`` as metadata."""
    import torch

    _, *shape = about["input"]["shape"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of itself
        program: Any = torch.onnx.export(
            classifier,
            (torch.zeros((2, *shape), dtype=torch.uint8),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[about["input"]["name"]],
            output_names=[about["output"]["name"]],
            verbose=False,
        )
    props = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str) for k, v in about.items()}
    program.model.metadata_props.update(props)
    return program
