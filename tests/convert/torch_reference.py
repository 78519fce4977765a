"""What timm's, transformers' and open_clip's Transformers compute, in NumPy and float64, on their own names and shapes.

Every function takes the tensors of a file by name, ``w``, and images as ours are, ``[B, H, W, 3]``.
"""

import numpy as np
from scipy import special

ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + special.erf(x / np.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * special.expit(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
}
"""By our names."""


def wide(tensors):
    """Lazy tensors as float64."""
    return {name: np.asarray(tensor.read(), np.float64) for name, tensor in tensors.items()}


def norm(x, w, name, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def mlp(x, w, names, act):
    return linear(act(linear(x, w, names[0])), w, names[1])


def patches(image, w, name):
    """``[B, N, D]``, row by row."""
    kernel = w[f"{name}.weight"]
    width, _, p, _ = kernel.shape
    b, height, side, _ = image.shape
    grid = image.reshape(b, height // p, p, side // p, p, 3)
    return np.einsum("bhpwqc,dcpq->bhwd", grid, kernel).reshape(b, -1, width) + w.get(f"{name}.bias", 0)


def apart(w, names):
    """Weights and biases of queries, keys and values of three maps."""
    return [(w[f"{name}.weight"], w.get(f"{name}.bias", 0)) for name in names]


def together(w, weight, bias, parts=3):
    """The same of one map."""
    return list(zip(np.split(w[weight], parts), np.split(w[bias], parts), strict=True))


def attention(x, context, projections, heads, causal=False):
    """Before the output projection."""
    inputs = (x, context, context)
    q, k, v = (
        (y @ weight.T + bias).reshape(*y.shape[:2], heads, -1).swapaxes(1, 2)
        for y, (weight, bias) in zip(inputs, projections, strict=True)
    )
    logits = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
    if causal:
        logits = np.where(np.tri(*logits.shape[2:], dtype=bool), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ v
    return out.swapaxes(1, 2).reshape(*x.shape[:2], -1)


def probed(x, latent, projections, w, out, heads):
    """Attention pooling before its MLP."""
    latent = np.broadcast_to(latent, (len(x), 1, x.shape[-1]))
    return linear(attention(latent, x, projections, heads), w, out)


def block(x, w, norms, projections, out, names, heads, eps, act, scales=(1, 1), causal=False):
    y = norm(x, w, norms[0], eps)
    x = x + scales[0] * linear(attention(y, y, projections, heads, causal), w, out)
    return x + scales[1] * mlp(norm(x, w, norms[1], eps), w, names, act)


def timm_vit(image, w, pool, heads, eps, act):
    """Logits (or pooled features) and every block's output; ``pool`` is "token", "avg" or "map"."""
    act = ACTIVATIONS[act]
    x = patches(image, w, "patch_embed.proj")
    first = [np.broadcast_to(w[n], (len(x), *w[n].shape[1:])) for n in ("cls_token", "reg_token") if n in w]
    if w["pos_embed"].shape[1] == x.shape[1]:
        x = np.concatenate([*first, x + w["pos_embed"]], 1)
    else:
        x = np.concatenate([*first, x], 1) + w["pos_embed"]
    grid, blocks = sum(y.shape[1] for y in first), []
    while f"blocks.{len(blocks)}.norm1.weight" in w:
        b = f"blocks.{len(blocks)}"
        names = (f"{b}.norm1", f"{b}.norm2"), together(w, f"{b}.attn.qkv.weight", f"{b}.attn.qkv.bias")
        scales = [w.get(f"{b}.ls{i}.gamma", 1) for i in (1, 2)]
        x = block(x, w, *names, f"{b}.attn.proj", (f"{b}.mlp.fc1", f"{b}.mlp.fc2"), heads, eps, act, scales)
        blocks.append(x)
    x = norm(x, w, "norm", eps)
    if pool == "map":
        a = "attn_pool"
        projections = [*apart(w, [f"{a}.q"]), *together(w, f"{a}.kv.weight", f"{a}.kv.bias", 2)]
        y = probed(x, w[f"{a}.latent"], projections, w, f"{a}.proj", heads)
        x = (y + mlp(norm(y, w, f"{a}.norm", eps), w, (f"{a}.mlp.fc1", f"{a}.mlp.fc2"), act))[:, 0]
    else:
        x = x[:, 0] if pool == "token" else x[:, grid:].mean(1)
    return (linear(x, w, "head") if "head.weight" in w else x), blocks


def hf_vit(image, w, heads, eps, act):
    """Logits (or what a bare model pools) and every block's output, of a ViT or a DINOv2 of transformers'."""
    act, prefix = ACTIVATIONS[act], next(n for n in w if n.endswith("embeddings.cls_token")).rpartition("embeddings")[0]
    headed, w = w, {name.removeprefix(prefix): x for name, x in w.items()}
    x = patches(image, w, "embeddings.patch_embeddings.projection")
    x = np.concatenate([np.broadcast_to(w["embeddings.cls_token"], (len(x), 1, x.shape[-1])), x], 1)
    x, more, blocks = x + w["embeddings.position_embeddings"], w.get("embeddings.register_tokens"), []
    if more is not None:
        x = np.concatenate([x[:, :1], np.broadcast_to(more, (len(x), *more.shape[1:])), x[:, 1:]], 1)
    while f"encoder.layer.{len(blocks)}.attention.output.dense.weight" in w:
        b = f"encoder.layer.{len(blocks)}"
        dino = f"{b}.norm1.weight" in w
        norms = [f"{b}.{n}" for n in (("norm1", "norm2") if dino else ("layernorm_before", "layernorm_after"))]
        names = [f"{b}.{n}" for n in (("mlp.fc1", "mlp.fc2") if dino else ("intermediate.dense", "output.dense"))]
        parts = apart(w, [f"{b}.attention.attention.{n}" for n in ("query", "key", "value")])
        scales = [w.get(f"{b}.layer_scale{i}.lambda1", 1) for i in (1, 2)]
        x = block(x, w, norms, parts, f"{b}.attention.output.dense", names, heads, eps, act, scales)
        blocks.append(x)
    x = norm(x, w, "layernorm", eps)
    if "classifier.weight" in headed:
        features = np.concatenate([x[:, 0], x[:, 1 + (0 if more is None else more.shape[1]) :].mean(1)], 1)
        return linear(features if dino else x[:, 0], headed, "classifier"), blocks
    return (np.tanh(linear(x[:, 0], w, "pooler.dense")) if "pooler.dense.weight" in w else x[:, 0]), blocks


def hf_tower(x, w, prefix, heads, eps, act, causal=False):
    """The layers of a tower of transformers' CLIP or SigLIP."""
    i = 0
    while f"{prefix}encoder.layers.{i}.layer_norm1.weight" in w:
        b = f"{prefix}encoder.layers.{i}"
        parts = apart(w, [f"{b}.self_attn.{p}_proj" for p in "qkv"])
        names = (f"{b}.layer_norm1", f"{b}.layer_norm2"), parts, f"{b}.self_attn.out_proj"
        x = block(x, w, *names, (f"{b}.mlp.fc1", f"{b}.mlp.fc2"), heads, eps, ACTIVATIONS[act], causal=causal)
        i += 1
    return x


def hf_pair(images, texts, w, image, text):
    """Embeddings and logits of a CLIP or a SigLIP; ``image`` and ``text`` are our towers, for heads and the like."""
    settings = [(t.heads, t.norm_epsilon, t.activation) for t in (image, text)]
    clip, a, b = "visual_projection.weight" in w, "vision_model", "text_model"
    x = patches(images, w, f"{a}.embeddings.patch_embedding")
    if clip:
        own = np.broadcast_to(w[f"{a}.embeddings.class_embedding"], (len(x), 1, x.shape[-1]))
        x = np.concatenate([own, x], 1)
    x = x + w[f"{a}.embeddings.position_embedding.weight"]
    x = norm(x, w, f"{a}.pre_layrnorm", settings[0][1]) if clip else x
    x = norm(hf_tower(x, w, f"{a}.", *settings[0]), w, f"{a}.post_layernorm", settings[0][1])
    if clip:
        x = linear(x[:, 0], w, "visual_projection")
    else:
        h = f"{a}.head"
        parts = together(w, f"{h}.attention.in_proj_weight", f"{h}.attention.in_proj_bias")
        y = probed(x, w[f"{h}.probe"], parts, w, f"{h}.attention.out_proj", settings[0][0])
        names, act = (f"{h}.mlp.fc1", f"{h}.mlp.fc2"), ACTIVATIONS[settings[0][2]]
        x = (y + mlp(norm(y, w, f"{h}.layernorm", settings[0][1]), w, names, act))[:, 0]
    y = w[f"{b}.embeddings.token_embedding.weight"][texts]
    y = y + w[f"{b}.embeddings.position_embedding.weight"][: texts.shape[1]]
    y = norm(hf_tower(y, w, f"{b}.", *settings[1], causal=clip), w, f"{b}.final_layer_norm", settings[1][1])
    if clip:
        y = linear(y[np.arange(len(y)), np.argmax(texts == text.end_id, 1)], w, "text_projection")
    else:
        y = linear(y[:, -1], w, f"{b}.head")
    return together_with_logits(x, y, w)


def open_clip_tower(x, w, prefix, heads, eps, act, causal=False):
    i = 0
    while f"{prefix}resblocks.{i}.ln_1.weight" in w:
        b = f"{prefix}resblocks.{i}"
        names = (f"{b}.ln_1", f"{b}.ln_2"), together(w, f"{b}.attn.in_proj_weight", f"{b}.attn.in_proj_bias")
        inner = f"{b}.attn.out_proj", (f"{b}.mlp.c_fc", f"{b}.mlp.c_proj")
        scales = [w.get(f"{b}.ls_{i}.gamma", 1) for i in (1, 2)]
        x = block(x, w, *names, *inner, heads, eps, ACTIVATIONS[act], scales, causal)
        i += 1
    return x


def open_clip_pair(images, texts, w, image, text):
    """Embeddings and logits of open_clip's CLIP."""
    settings = [(t.heads, t.norm_epsilon, t.activation) for t in (image, text)]
    x = patches(images, w, "visual.conv1")
    own = np.broadcast_to(w["visual.class_embedding"], (len(x), 1, x.shape[-1]))
    x = np.concatenate([own, x], 1) + w["visual.positional_embedding"]
    x = norm(x, w, "visual.ln_pre", settings[0][1]) if "visual.ln_pre.weight" in w else x
    x = open_clip_tower(x, w, "visual.transformer.", *settings[0])
    x = norm(x[:, 0], w, "visual.ln_post", settings[0][1]) @ w["visual.proj"]
    y = w["token_embedding.weight"][texts] + w["positional_embedding"]
    y = norm(open_clip_tower(y, w, "transformer.", *settings[1], causal=True), w, "ln_final", settings[1][1])
    y = y[np.arange(len(y)), np.argmax(texts == text.end_id, 1)] @ w["text_projection"]
    return together_with_logits(x, y, w)


def together_with_logits(x, y, w):
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    return x, y, np.exp(w["logit_scale"]) * x @ y.T + w.get("logit_bias", 0)
