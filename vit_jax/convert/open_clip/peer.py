"""open_clip's own models, loaded by open_clip from a file or folder, to compare ours with."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_jax.convert.format import check_limits
from vit_jax.convert.open_clip import config, write
from vit_jax.convert.peer import torch_peer, torch_processor
from vit_jax.convert.preprocess import Preprocess
from vit_jax.io import atomic
from vit_jax.io.extras import needed
from vit_jax.io.sidecar import beside
from vit_jax.io.tensors import open_tensors
from vit_jax.models import TwoTower
from vit_jax.types import UserError


def peer(path: pathlib.Path, model: TwoTower) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    """open_clip's model with the weights at ``path``; see :class:`vit_jax.convert.format.Codec`.

    Raises:
      UserError: open_clip is not installed, or refuses the weights.
    """
    module = build(path, model)

    def forward(pixels: Any, tokens: Any) -> dict[str, Any]:
        image, text = module.encode_image(pixels, normalize=True), module.encode_text(tokens, normalize=True)
        logits = module.logit_scale.exp() * image @ text.T
        if module.logit_bias is not None:
            logits = logits + module.logit_bias
        out = {"image embedding": image, "text embedding": text, "logit": logits}
        if hasattr(module, "text_decoder"):
            ends = (tokens == model.text_tower.end_id).int()
            real = ends.cumsum(1) == ends  # up to the first end
            out["caption logit"] = module(pixels, tokens, output_labels=False)["logits"] * real[..., None]
        return out

    return torch_peer(forward)


def processor(path: pathlib.Path, model: TwoTower) -> Callable[[pathlib.Path], np.ndarray] | None:
    """open_clip's own transform of images for evaluation, as the configuration beside ``path`` has it."""
    if not config.Config.of(beside(path)).images:
        return None
    module = build(path, model)
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return torch_processor(image_transform_v2(PreprocessCfg(**module.visual.preprocess_cfg), is_train=False))


def build(path: pathlib.Path, model: TwoTower) -> Any:
    """The ``torch.nn.Module`` behind :func:`peer`: float32, in evaluation mode.

    Its configuration is the one beside the weights, else that of our ``model``.

    Raises:
      UserError: see :func:`peer`.
    """
    with needed("building open_clip's own model", "torch"):
        import open_clip
    about = beside(path)
    found = config.Config.of(about)
    with open_tensors(path) as theirs:
        _, _, size, _ = config.read(theirs, found)
    content: Mapping[str, Any] = {"model_cfg": found.model, "preprocess_cfg": found.images}
    if not found.model:
        check_limits(model, write.LIMITS)
        content, _, _ = write.write(model, Preprocess(size), {})
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        atomic.write_text(place / config.FILE, json.dumps(content))
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
