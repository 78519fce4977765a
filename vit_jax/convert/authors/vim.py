"""Vim's own files (hustvl/Vim)."""

from __future__ import annotations

from typing import Any

import numpy as np

from vit_jax.convert.authors.files import codec
from vit_jax.convert.fields import depth, patches, shape, square, unsupported
from vit_jax.convert.rules import Rule, rule, torch_conv, torch_linear
from vit_jax.convert.transforms import LINEAR, Arrays, Transform
from vit_jax.io.tensors import Tensors
from vit_jax.models import Vim

SHORT = Transform(lambda x: (x[:, 0].T,), lambda x: (x.T[:, None],))
"""A causal convolution ``[E, 1, K]`` <-> ``[K, E]``, the newest weight last in both."""


def _first(x: np.ndarray) -> Arrays:
    """Positions whose middle is the class token's, as ours, where that comes first."""
    middle = (x.shape[1] - 1) // 2
    return (np.concatenate([x[:, middle : middle + 1], x[:, :middle], x[:, middle + 1 :]], axis=1),)


def _middle(x: np.ndarray) -> Arrays:
    middle = (x.shape[1] - 1) // 2
    return (np.concatenate([x[:, 1 : middle + 1], x[:, :1], x[:, middle + 1 :]], axis=1),)


def fields(theirs: Tensors) -> tuple[dict[str, Any], int, str]:
    """See :data:`.files.Fields`.

    Raises:
      UserError: scans of one direction, or no class token.
    """
    for name, what in (("layers.0.mixer.conv1d_b.weight", "scans of one direction"), ("cls_token", "no class token")):
        if name not in theirs:
            raise unsupported(
                what, f"there is no {name}", "Vim", "those with a class token and scans of two directions"
            )
    width, patch = patches(theirs, "patch_embed.proj.weight")
    channels, _, short = shape(theirs, "layers.0.mixer.conv1d.weight", 3)
    found = {
        "name": "vim",
        "patch": patch,
        "width": width,
        "depth": depth(theirs, r"layers\."),
        "expand": channels // width,
        "state": shape(theirs, "layers.0.mixer.A_log", 2)[1],
        "short": short,
        "num_classes": shape(theirs, "head.weight", 2)[0] if "head.weight" in theirs else 0,
    }
    side = square(shape(theirs, "pos_embed", 3)[1] - 1, "pos_embed")
    return found, side * patch, "a class token in the middle, halved sums of two directions and norm epsilon 1e-5"


def rules(model: Vim) -> list[Rule]:
    """Every tensor of a file and what it is of ``model``."""
    out = [*torch_conv("patch_embed.proj", "patch"), rule("cls_token", "cls")]
    out += [rule("pos_embed", "position/embedding", Transform(_first, _middle))]
    for i in range(model.depth):
        a, b = f"layers.{i}.mixer", f"encoder/block_{i}/mixer"
        out += [rule(f"layers.{i}.norm.weight", f"encoder/block_{i}/norm_mixer/scale")]
        out += [rule(f"{a}.{name}_proj.weight", f"{b}/{name}/kernel", LINEAR) for name in ("in", "out")]
        for end, way in (("", "forward"), ("_b", "backward")):
            scan = f"{b}/{way}"
            out += [rule(f"{a}.{x}_proj{end}.weight", f"{scan}/{x}_proj/kernel", LINEAR) for x in ("x", "dt")]
            out += [rule(f"{a}.conv1d{end}.weight", f"{scan}/kernel_conv", SHORT)]
            out += [
                rule(f"{a}.conv1d{end}.bias", f"{scan}/bias_conv"),
                rule(f"{a}.dt_proj{end}.bias", f"{scan}/bias_dt"),
            ]
            out += [rule(f"{a}.A{end}_log", f"{scan}/A_log"), rule(f"{a}.D{end}", f"{scan}/D")]
    return [*out, rule("norm_f.weight", "norm/scale"), *(torch_linear("head", "head") if model.num_classes else [])]


CODEC = codec("Vim", lambda names: "layers.0.mixer.A_log" in names, fields, rules)
