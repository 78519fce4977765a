"""Small models of timm's, with every parameter random, and ours of them."""

import json
import types
from typing import Any

import jax
import numpy as np
import pytest

from tests.convert.outputs import both, captured
from vit_jax.convert.pretrained import Stored, leaves
from vit_jax.convert.rules import back, into
from vit_jax.convert.timm import FORMAT
from vit_jax.io.tensors import Tensor
from vit_jax.models import describe
from vit_jax.trees import nested
from vit_jax.types import UserError


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


def convert(theirs: dict[str, Tensor], about: dict[str, Any] | None, model: str | None = None) -> types.SimpleNamespace:
    found = FORMAT.read(theirs, {} if about is None else {"config.json": json.loads(json.dumps(about))})
    module = describe.build(found.model, model)
    shapes = describe.shapes(module, found.preprocess.size)
    rules = FORMAT.rules(module, found.layout)
    others = describe.variables(module, found.preprocess.size)
    params, notes = into(rules, theirs, shapes | others, source="it", unused=found.unused)
    variables = nested({path: params.pop(path).read() for path in others})
    notes = (*found.notes, *notes)
    pretrained = Stored(module, params, found.preprocess, found.class_names, notes=notes, variables=variables)
    return types.SimpleNamespace(pretrained=pretrained, found=found, rules=rules)


def ours(pretrained: Stored, images: np.ndarray) -> dict[str, np.ndarray]:
    """Logits, pooled features, tokens, and what every block gives."""
    (features, logits), blocks = captured(pretrained, images, train=False, method=both)
    return {"logits": logits, "pooled": features.pooled, "tokens": features.tokens} | blocks


def theirs(torch: Any, module: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    found: dict[str, Any] = {}
    hooks = [
        b.register_forward_hook(lambda *args, i=i: found.__setitem__(f"block_{i}", args[2]))
        for i, b in enumerate(module.blocks)
    ]
    with torch.no_grad():
        found["tokens"] = module.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        found["pooled"] = module.forward_head(found["tokens"], pre_logits=True)
        found["logits"] = module.forward_head(found["tokens"])
    for hook in hooks:
        hook.remove()
    return {k: v.numpy() for k, v in found.items()}


def of_stages(pretrained: Stored, images: np.ndarray) -> dict[str, np.ndarray]:
    """Logits, pooled features and tokens of a model of stages."""
    variables = {"params": pretrained.tree(), **pretrained.variables}
    features, logits = jax.jit(lambda v, x: pretrained.model.apply(v, x, train=False, method=both))(variables, images)
    return {"tokens": features.tokens, "pooled": features.pooled, "logits": logits}


def theirs_of_stages(torch: Any, module: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        grid = module.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        found = {"tokens": grid.flatten(2).transpose(1, 2), "pooled": module.forward_head(grid, pre_logits=True)}
        found["logits"] = module.forward_head(grid)
    return {name: x.numpy() for name, x in found.items()}


def photos(size: int, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, size, size, 3), np.float32)


def gaps(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, float]:
    assert a.keys() == b.keys() and {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    return {k: float(np.abs(a[k] - b[k]).max()) for k in a}


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def check_equal(torch: Any, module: Any, about: dict[str, Any] | None) -> Stored:
    """Every number of ``module`` is ours, there and back."""
    there = tensors_of(module)
    found = convert(there, about)
    pretrained = found.pretrained
    images = photos(pretrained.preprocess.size)
    want = theirs(torch, module, images)
    found_gaps = gaps(ours(pretrained, images), want)
    assert max(found_gaps.values()) <= 2e-5, found_gaps
    assert 0.1 < np.std(want["logits"]) < 3 and np.abs(want["tokens"]).max() < 30
    again = back(found.rules, pretrained.params, name="it")
    assert again.keys() == there.keys()
    if not any("are added to the registers" in note for note in pretrained.notes):
        assert all(same_bits(again[k].read(), there[k].read()) for k in there)
    module.load_state_dict({k: torch.from_numpy(np.array(v.read())) for k, v in again.items()}, strict=True)
    assert gaps(theirs(torch, module, images), want)["logits"] <= 1e-6
    return pretrained


def check_stages(
    torch: Any, module: Any, about: dict[str, Any], images: np.ndarray
) -> tuple[Stored, dict[str, np.ndarray]]:
    """As :func:`check_equal` of a model of stages, whose counted steps are left out; ours, and what theirs computes."""
    there = tensors_of(module)
    found = convert(there, about)
    pretrained, want = found.pretrained, theirs_of_stages(torch, module, images)
    assert max(gaps(of_stages(pretrained, images), want).values()) <= 2e-5 * max(1, np.abs(want["tokens"]).max())
    again = back(found.rules, {**pretrained.params, **leaves(pretrained.variables)}, name="it")
    assert again.keys() == {name for name in there if not name.endswith("num_batches_tracked")}
    assert all(same_bits(again[k].read(), there[k].read()) for k in again)
    return pretrained, want


def check_refused(timm: Any, name: str, says: str) -> None:
    """The tensors of ``name`` are known as timm's, and what ours lack is said."""
    module = timm.create_model(name, device="meta")
    there = {k: Tensor(tuple(v.shape), np.dtype("f4"), lambda: np.zeros(0)) for k, v in module.state_dict().items()}
    assert FORMAT.matches(there)
    with pytest.raises(UserError, match=says) as e:
        FORMAT.read(there, {"config.json": {"architecture": name}})
    assert str(e.value).endswith("can be converted.") and "\n" not in str(e.value)


def check_rules(codec: Any, rules: Any, ours: Any) -> None:
    """Every one of our paths has one rule, and every name of theirs."""
    assert sorted(path for rule in rules for path in rule.ours) == sorted(ours)
    names = [name for rule in rules for name in rule.theirs]
    assert len(set(names)) == len(names) and codec.CODEC.matches(names)
