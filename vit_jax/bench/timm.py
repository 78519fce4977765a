"""The same model as timm has it, in PyTorch: what ``vit_jax bench --against timm`` compares with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax.bench.steps import Kind
from vit_jax.bench.timing import cores
from vit_jax.convert.format import check
from vit_jax.convert.formats import FORMATS
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import POSITION, Stored
from vit_jax.io.extras import needed
from vit_jax.io.tensors import Tensor

FORMAT = FORMATS["timm"]


def arguments(model: Any, size: int) -> dict[str, Any]:
    """What ``timm.create_model`` takes for the architecture of ``model`` on images of ``size`` pixels.

    Raises:
      UserError: timm has no such model.
    """
    check(model, FORMAT, FORMATS.values())
    positions = Tensor.of(np.ones((1, 1, 1), np.float32))  # timm has one for the class token, too, where that is not 0
    config = FORMAT.write(Stored(model, {POSITION: positions}, Preprocess(size))).about["config.json"]
    return {"model_name": config["architecture"], **config["model_args"]}


def candidate(
    kind: Kind, arguments: dict[str, Any], dtype: str, batch: int, size: int, compiled: bool
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """What is timed, on random images: one step on the CPU, as many threads as cores; and facts about it.

    In bfloat16 PyTorch's autocast computes; parameters are float32, and AdamW is the fused one.

    Args:
      kind: "forward" or "train", as of :func:`vit_jax.bench.models.compare`.
      arguments: of timm's model.
      dtype: of the computation.
      batch: images a step.
      size: side of the images, in pixels.
      compiled: whether ``torch.compile`` makes a program of the model.

    Raises:
      UserError: timm is not installed.
    """
    with needed("bench --against timm", "torch"):
        import timm
        import torch
    torch.set_num_threads(cores())
    model = timm.create_model(**arguments)
    images, labels = torch.rand(batch, 3, size, size), torch.arange(batch) % arguments["num_classes"]
    tx = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.1, fused=True)
    model = model.eval() if kind == "forward" else model.train()
    apply = torch.compile(model) if compiled else model

    def logits() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            return apply(images)

    def forward() -> Any:
        with torch.no_grad():
            return logits()

    def train() -> Any:
        loss = torch.nn.functional.cross_entropy(logits().float(), labels)
        loss.backward()
        tx.step()
        tx.zero_grad()
        return loss

    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "version": f"timm {timm.__version__}, torch {torch.__version__}",
    }
    return (forward if kind == "forward" else train), facts
