"""open_clip's own models, loaded by open_clip from a file or folder, to compare ours with."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_jax.convert import open_clip_config, open_clip_write
from vit_jax.convert.base import Preprocess
from vit_jax.convert.peer import packages
from vit_jax.io.sidecar import beside
from vit_jax.io.tensors import open_tensors
from vit_jax.models import TwoTower
from vit_jax.types import UserError


def peer(path: pathlib.Path, model: TwoTower) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    """open_clip's model with the weights at ``path``; see :class:`vit_jax.convert.base.Format`.

    Raises:
      UserError: open_clip is not installed, or refuses the weights.
    """
    module = build(path, model)
    import torch

    def run(images: np.ndarray, texts: np.ndarray) -> dict[str, np.ndarray]:
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        tokens = torch.from_numpy(texts.astype(np.int64))
        with torch.inference_mode():
            image = module.encode_image(pixels, normalize=True)
            text = module.encode_text(tokens, normalize=True)
            logits = module.logit_scale.exp() * image @ text.T
            if module.logit_bias is not None:
                logits = logits + module.logit_bias
            out = {"image embedding": image, "text embedding": text, "logit": logits}
            if hasattr(module, "text_decoder"):
                ends = (tokens == model.text_tower.end_id).int()
                real = ends.cumsum(1) == ends  # up to the first end
                out["caption logit"] = module(pixels, tokens, output_labels=False)["logits"] * real[..., None]
        return {name: x.numpy() for name, x in out.items()}

    return run


def build(path: pathlib.Path, model: TwoTower) -> Any:
    """The ``torch.nn.Module`` behind :func:`peer`: float32, in evaluation mode.

    Its configuration is the one beside the weights, else that of our ``model``.

    Raises:
      UserError: see :func:`peer`.
    """
    with packages("building open_clip's own model"):
        import open_clip
    about = beside(path)
    found = open_clip_config.Config.of(about)
    with open_tensors(path) as theirs:
        _, _, size, _ = open_clip_config.read(theirs, found)
    content: Mapping[str, Any] = {"model_cfg": found.model, "preprocess_cfg": found.images}
    if not found.model:
        content, _, _ = open_clip_write.write(model, Preprocess(size), {})
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        (place / open_clip_config.FILE).write_text(json.dumps(content), encoding="utf-8")
        suffix = ".pth" if path.suffix == ".pt" else path.suffix  # it looks for no other
        (place / f"model{suffix}").symlink_to(path.absolute())
        try:
            module = open_clip.create_model(f"local-dir:{folder}")
        except Exception as e:  # whatever it makes of settings and shapes that do not fit
            reason = " ".join(str(e).split())[:200]
            raise UserError(f"open_clip {open_clip.__version__} refuses the weights at {path} ({reason}).") from e
    if model.text_tower.pool == "cls":
        module.text.correct_cls_mask = model.text_tower.cls_mask == "text"
    return module.eval()
