"""HorNet's own files (raoyongming/HorNet)."""

from __future__ import annotations

from typing import Any

from vit_jax.convert.authors.files import codec
from vit_jax.convert.fields import depth, patches, shape
from vit_jax.convert.rules import Rule, rule, torch_conv, torch_linear, torch_mlp, torch_norm
from vit_jax.convert.transforms import CONV1X1, permute
from vit_jax.io.tensors import Tensors
from vit_jax.models import HorNet

FILTER = permute(1, 2, 0, 3)
"""``[D, H, W / 2 + 1, 2]`` <-> ``[H, W / 2 + 1, D, 2]``."""
SIZE = 224


def fields(theirs: Tensors) -> tuple[dict[str, Any], int, str]:
    """See :data:`.files.Fields`."""
    depths = tuple(depth(theirs, rf"stages\.{i}\.") for i in range(depth(theirs, r"stages\.")))
    first = [f"stages.{i}.0." for i in range(len(depths))]
    found: dict[str, Any] = {
        "name": "hornet",
        "depths": depths,
        "widths": tuple(shape(theirs, f"{at}norm1.weight", 1)[0] for at in first),
        "orders": tuple(depth(theirs, rf"{at}gnconv\.pws\.") + 1 for at in first),
        "patch": patches(theirs, "downsample_layers.0.0.weight")[1],
        "num_classes": shape(theirs, "head.weight", 2)[0] if "head.weight" in theirs else 0,
        "layer_scale": 1e-6 if "stages.0.0.gamma1" in theirs else None,
    }
    name, size = f"{first[-1]}gnconv.dwconv.complex_weight", SIZE
    if name in theirs:
        size = shape(theirs, name, 4)[1] * found["patch"] * 2 ** (len(depths) - 1)
        found |= {"global_filters": True, "filter_size": size}
    return found, size, f"images of {size} pixels, gelu and norm epsilon 1e-6"


def rules(model: HorNet) -> list[Rule]:
    """Every tensor of a file and what it is of ``model``."""
    out = [*torch_conv("downsample_layers.0.0", "patch"), *torch_norm("downsample_layers.0.1", "norm_pre")]
    for i, count in enumerate(model.depths):
        if i:
            out += torch_norm(f"downsample_layers.{i}.0", f"stage_{i}_norm")
            out += torch_conv(f"downsample_layers.{i}.1", f"stage_{i}_down")
        for j in range(count):
            filtered = model.global_filters and i >= len(model.depths) - 2
            out += _block(f"stages.{i}.{j}", f"stage_{i}/block_{j}", model, model.orders[i], filtered)
    return [*out, *torch_norm("norm", "norm"), *(torch_linear("head", "head") if model.num_classes else [])]


def _block(theirs: str, ours: str, model: HorNet, order: int, filtered: bool) -> list[Rule]:
    a, b = f"{theirs}.gnconv", f"{ours}/mixer"
    maps = {f"{a}.proj_in": f"{b}/qkv", f"{a}.proj_out": f"{b}/out"}
    maps |= {f"{a}.pws.{k}": f"{b}/up_{k}" for k in range(order - 1)}
    out = [*torch_norm(f"{theirs}.norm1", f"{ours}/norm_mixer"), *torch_norm(f"{theirs}.norm2", f"{ours}/norm_mlp")]
    for x, y in maps.items():
        out += [rule(f"{x}.weight", f"{y}/kernel", CONV1X1), rule(f"{x}.bias", f"{y}/bias")]
    if filtered:
        out += [*torch_norm(f"{a}.dwconv.pre_norm", f"{b}/conv/norm_pre")]
        out += [*torch_conv(f"{a}.dwconv.dw", f"{b}/conv/conv", bias=False)]
        out += [rule(f"{a}.dwconv.complex_weight", f"{b}/conv/filter", FILTER)]
        out += [*torch_norm(f"{a}.dwconv.post_norm", f"{b}/conv/norm_post")]
    else:
        out += torch_conv(f"{a}.dwconv", f"{b}/conv")
    out += torch_mlp(theirs, f"{ours}/mlp", (".pwconv1", ".pwconv2"))
    if model.layer_scale is not None:
        out += [rule(f"{theirs}.gamma{k}", f"{ours}/scale_{part}") for k, part in ((1, "mixer"), (2, "mlp"))]
    return out


CODEC = codec("HorNet", lambda names: "stages.0.0.gnconv.proj_in.weight" in names, fields, rules)
