"""timm's MLP-Mixers."""

from __future__ import annotations

from typing import Any

from vit_jax.convert.fields import depth, grid, patches, shape
from vit_jax.convert.format import Limit, Writing
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import Rule, torch_mlp, torch_norm
from vit_jax.convert.timm import image
from vit_jax.convert.timm.config import EPSILON, EPSILONS, Config, less_epsilon, ratio, write_config
from vit_jax.convert.timm.image import Found, check_gate, refused
from vit_jax.convert.timm.rules import head_rules, patch_rules
from vit_jax.io.tensors import Tensors
from vit_jax.models import Mixer

MIXERS = {
    (patch, width, depth): f"mixer_{size}{patch}_224"
    for size, width, depth in (("s", 512, 8), ("b", 768, 12), ("l", 1024, 24))
    for patch in (16, 32)
}
"""Patch, width and depth -> architecture; these three are no arguments of a Mixer."""


LIMITS = (
    Limit(Mixer, "", lambda m: (m.patch, m.width, m.depth) in MIXERS and m.activation == "gelu",
          "no file can tell timm of a Mixer of patch/width/depth {0.patch}/{0.width}/{0.depth} with {0.activation}; it "
          f"knows {', '.join(f'{p}/{w}/{d}' for p, w, d in MIXERS)} with gelu: write another format."),
    Limit(Mixer, "norm_epsilon", lambda epsilon: epsilon <= EPSILON, EPSILONS),
)  # fmt: skip
"""What no file can tell timm of a Mixer."""


def fields(theirs: Tensors, config: Config) -> Found:
    """See :data:`.image.Fields`.

    Raises:
      UserError: a pooling that ours has not; a tensor that tells a size is missing.
    """
    if (pool := config.args.get("global_pool", "avg")) != "avg":
        raise refused(f"global_pool={pool!r} of a Mixer", "only 'avg' can")
    width, patch = patches(theirs, "stem.proj.weight", 3)
    token_dim, tokens = shape(theirs, "blocks.0.mlp_tokens.fc1.weight", 2)
    mlp_dim = shape(theirs, "blocks.0.mlp_channels.fc1.weight", 2)[0]
    for name, hidden in (("mlp_tokens", token_dim), ("mlp_channels", mlp_dim)):
        check_gate(theirs, f"blocks.0.{name}", hidden)
    found = {"name": "mixer", "patch": patch, "width": width, "depth": depth(theirs, r"blocks\.")}
    found |= {"token_dim": token_dim, "mlp_dim": mlp_dim}
    _, side = grid(tokens, (0,), config.grids(patch), "blocks.0.mlp_tokens.fc1.weight")
    return found, None, side * patch, [], {}


def rules(model: Mixer, _: None) -> list[Rule]:
    """Every tensor of a file and what it is of ``model``."""
    out = patch_rules("stem.proj")
    for i in range(model.depth):
        a, b = f"blocks.{i}", f"encoder/block_{i}"
        out += [*torch_norm(f"{a}.norm1", f"{b}/norm_tokens"), *torch_mlp(f"{a}.mlp_tokens", f"{b}/tokens")]
        out += [*torch_norm(f"{a}.norm2", f"{b}/norm_mlp"), *torch_mlp(f"{a}.mlp_channels", f"{b}/mlp")]
    return out + head_rules(model)


def content(pretrained: Stored, _: None = None) -> tuple[dict[str, Any], list[str]]:
    """``config.json``, and what it cannot say."""
    model = pretrained.model
    ratios = [ratio(hidden, model.width) for hidden in (model.token_dim, model.mlp_dim)]
    args = {"mlp_ratio": ratios, "global_pool": "avg"}
    config, notes = write_config(pretrained, MIXERS[model.patch, model.width, model.depth], args, "stem.proj")
    return config, [*less_epsilon(model.norm_epsilon, EPSILON), *notes]


def write(pretrained: Stored) -> Writing:
    """A folder for ``timm.create_model("local-dir:...", pretrained=True)``."""
    config, notes = content(pretrained)
    return Writing(None, {"config.json": config}, tuple(notes))


CODEC = image.codec(Mixer, r"stem\.proj\.", 0.875, fields, rules, content, write, LIMITS)
