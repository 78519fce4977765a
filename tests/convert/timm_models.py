"""Small models of timm's, with every parameter random."""

from typing import Any

from vit_jax.io.tensors import Tensor


def randomise(torch: Any, module: Any, seed: int = 0) -> Any:
    """Every parameter is drawn: norm scales around 1, maps so that activations stay of order 1."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.1)
            if p.ndim >= 2 and name.endswith("weight"):
                p.mul_(6 / p[0].numel() ** 0.5)
            elif name.endswith(("weight", "gamma")):
                p.add_(0.2 if "norm3" in name else 1.0)  # a stack of bottlenecks of order 1 loses two digits
    return module.eval()


def create(timm: Any, torch: Any, name: str, args: dict[str, Any]) -> Any:
    """A model of timm's that remembers what a file of timm's would say of it."""
    torch.manual_seed(0)
    module = randomise(torch, timm.create_model(name, **args))
    images = {k: module.pretrained_cfg[k] for k in ("mean", "std", "interpolation", "crop_pct")}
    module.about = {"architecture": name, "model_args": args, "global_pool": module.global_pool}
    module.about["pretrained_cfg"] = images
    return module


def mixer(torch: Any, **args: Any) -> Any:
    """A Mixer smaller than any that timm has a name for."""
    from timm.models.mlp_mixer import MlpMixer

    args = dict(patch_size=8, num_blocks=2, embed_dim=32, mlp_ratio=(0.75, 3.0), img_size=32, num_classes=5) | args
    return randomise(torch, MlpMixer(**args))


def tensors_of(module: Any) -> dict[str, Tensor]:
    return {name: Tensor.of(p.detach().numpy().copy()) for name, p in module.state_dict().items()}
