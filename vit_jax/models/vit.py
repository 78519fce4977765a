"""Vision Transformers (Dosovitskiy et al. 2021, arXiv:2010.11929) and their hybrids (AugReg, arXiv:2106.10270)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import config
from vit_jax.checks import Pixels, Range, Size
from vit_jax.layers.block import Block
from vit_jax.layers.embed import GridPositions, PatchEmbed, PositionEmbedding, grid_of, sincos_positions
from vit_jax.layers.hooks import Place, Tokens
from vit_jax.layers.linear import Linear, logical
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.pool import AttentionPool, average
from vit_jax.layers.stack import TransformerStack
from vit_jax.layers.stochastic import dropout
from vit_jax.layers.tokens.lookup import Lookup, LookupBlock
from vit_jax.layers.tokens.prompts import Prompted
from vit_jax.layers.tokens.reduce import Attentive, Random, ReducerSpec
from vit_jax.models.base import Features, ImageModel
from vit_jax.models.resnet import Numerics, ResNet
from vit_jax.types import Array, Patches, UserError

POOLS = ("cls", "gap", "map", "cls_gap")
POSITIONS = ("learn", "sincos2d", "none")


class ViT(TransformerStack, ImageModel):
    """Vision Transformer.

    Attributes:
      patch: side of a patch, in pixels (of the feature map where there is a ``stem``).
      patches: sides of the patches that images are cut into where they are others than ``patch``, of which the
        parameters stay: kernel and positions are resized in every forward pass (FlexiViT, Beyer et al. 2023,
        arXiv:2212.08013). The first counts; with several an objective (``drawn``) trains one of them at each step.
      width: channels D of a token.
      pool: "cls" token, "gap" (average of the grid), "map" (attention pooling) or "cls_gap" (cls beside the average:
        2D features, as the linear classifiers of DINOv2 see, Oquab et al. 2024, arXiv:2304.07193).
      positions: "learn", "sincos2d" (fixed) or "none"; those of ``rotary`` come on top.
      position_grid: side of a square grid of learned positions, which are resized to the grid of every image (NaFlex of
        SigLIP 2, Tschannen et al. 2025, arXiv:2502.14786): images have any shape, and a batch of them may come as
        :class:`vit_jax.types.Patches`; None for one position per token.
      patch_bias: whether the patch embedding has a bias.
      cls_token: a class token beside the grid even where ``pool`` does not look at it, as in fine-tuned masked
        autoencoders (He et al. 2022, arXiv:2111.06377).
      pre_norm: a layer norm before the first block, as CLIP has (Radford et al. 2021).
      final_norm: a layer norm after the last block.
      pool_norm: a layer norm after pooling, as those have that are ``final_norm=False`` and average (timm's fc_norm).
      distilled: a second class token with a head of its own, for a teacher's answer; logits and pooled features are the
        means of both (Touvron et al. 2021, arXiv:2012.12877, section 4). Takes ``pool="cls"``.
      registers: extra learned tokens without position (Darcet et al. 2024, arXiv:2309.16588).
      reduce: what leaves tokens out or merges them: ``merge(13)``, ``attentive(0.7)``, in training ``random(0.5)``;
        None keeps all. No parameters depend on these, those of ``lookup(5)`` are a model's own.
      prompts: blocks, from 0, that are told of coarse classes, and how many those are, ``((2, 5), (4, 20))``; the
        objective ``hierarchical`` trains them (TransHP, Wang et al. 2023, arXiv:2304.06385).
      parallel: attention and MLP of every block side by side, of one norm (ViT-22B, Dehghani et al. 2023,
        arXiv:2302.05442).
      pre_logits: size of a tanh layer before the head, None for none.
      stem: bottlenecks per stage of a ResNetV2 before the patches, None for no stem.
      stem_numerics: whose epsilons the stem has, a name in :data:`vit_jax.models.resnet.NUMERICS`.
    """

    patch: Pixels = 16
    patches: tuple[Pixels, ...] = ()
    width: Size = 192
    pool: Literal["cls", "gap", "map", "cls_gap"] = "cls"
    positions: Literal["learn", "sincos2d", "none"] = "learn"
    position_grid: Size | None = None
    cls_token: bool = False
    distilled: bool = False
    patch_bias: bool = True
    pre_norm: bool = False
    final_norm: bool = True
    pool_norm: bool = False
    registers: Annotated[int, Range(0, 1024)] = 0
    reduce: ReducerSpec | None = None
    prompts: tuple[tuple[Annotated[int, Range(0, 255)], Size], ...] = ()
    parallel: bool = False
    pre_logits: Size | None = None
    stem: tuple[Annotated[int, Range(1, 64)], ...] | None = None
    stem_numerics: Numerics = "original"

    def encode(self, image: jax.Array | Patches, train: bool) -> Features:
        tokens, grid = self.embed(image, train)
        if isinstance(image, Patches):
            real = self._real(image)
            left = Tokens(self.encode_tokens(tokens, train, mask=real[:, None, None]), real.astype(jnp.float32))
        else:
            found = self.encode_tokens(tokens, train, self.coordinates(*grid))
            left = found if isinstance(found, Tokens) else Tokens(found)
        return Features(left.x, self.pooled(left), left.size)

    def forms(self) -> dict[str, ViT]:
        found: dict[str, ViT] = {}
        if len(self.patches) > 1:
            found = {f"patch_{p}": self.clone(patches=(p,)) for p in self.patches}
        elif isinstance(self.reduce, Attentive | Lookup):
            found = {name: self.clone(reduce=reduce) for name, reduce in self.reduce.forms().items()}
        inner = ((name, model.forms() or {"": model}) for name, model in found.items())
        return {"_".join(filter(None, (name, more))): form for name, of in inner for more, form in of.items()}

    def _real(self, patches: Patches) -> jax.Array:
        """Which tokens are no padding, bool ``[B, N]``; all of an image that is nothing else, as what fills a batch."""
        here = patches.real | ~patches.real.any(axis=1, keepdims=True)
        return jnp.pad(here, ((0, 0), (self._prefix(), 0)), constant_values=True)

    def check_patches(self) -> None:
        if self.position_grid is None:
            raise UserError("images of any shape take positions of any grid; set position_grid=16 for example.")
        fixed = ("stem", "rotary", "logit_bias", "reduce")
        if (name := next((f for f in fixed if getattr(self, f) is not None), None)) is not None:
            raise UserError(f"{name} is for images of one shape, and these have shapes of their own; set {name}=None.")
        if self.patches or self.prompts or self.scales != (1.0,):
            raise UserError("patches, prompts and scales are for images of one shape; leave them out.")

    def coordinates(self, height: int, width: int) -> Array | None:
        """Of the tokens of a grid, row by row, ``[height * width, A]`` for ``rotary``; None without it."""
        return None if self.rotary is None else self.rotary.coordinates(height, width)

    @nn.compact
    def embed(self, image: jax.Array | Patches, train: bool) -> tuple[jax.Array, tuple[int, int]]:
        """``[B, H, W, C] -> [B, N, D]``, cls, registers and grid with positions, and the grid's (rows, columns).

        Those of :class:`Patches`, which have grids of their own, are (1, N). With ``lookup`` the compressed tokens come
        before those of the grid.
        """
        config.lookup(dict.fromkeys(POOLS), self.pool, "pool")
        config.lookup(dict.fromkeys(POSITIONS), self.positions, "positions")
        if self.position_grid is not None and self.positions != "learn":
            raise UserError(f"position_grid has learned positions and positions={self.positions!r}; leave 'learn'.")
        if self.distilled and self.pool != "cls":
            raise UserError(f"distilled=True has two class tokens and pool={self.pool!r} none; leave pool='cls'.")
        if train and (forms := list(self.forms())):
            raise UserError(
                f"this model has {len(forms)} forms, {forms[0]} to {forms[-1]}, and a step trains one of them; set "
                "objective='drawn(classify)', or leave one."
            )
        x, grid = self._embed(image)
        if self.pre_norm:
            x = LayerNorm(self.dtype, self.norm_epsilon, name="norm_pre")(x)
        if train and self.dropout:
            x = dropout(x, self.dropout, self.make_rng("dropout"))
        if train and isinstance(self.reduce, Random):
            x = self.reduce.draw(x, self._prefix(), self.make_rng("dropout"))
        if isinstance(self.reduce, Lookup):
            x = self.reduce.streams(x, grid)
        return x, grid

    @nn.compact
    def encode_tokens(
        self,
        tokens: jax.Array,
        train: bool,
        at: Array | None = None,
        mask: jax.Array | None = None,
        blocks: range | None = None,
    ) -> Any:
        """``[B, N, D] -> [B, N, D]``, for any of the tokens; ``at`` are coordinates of the last ones for ``rotary``.

        ``mask``, bool ``[B, 1, 1, N]``, says which may be attended to, ``blocks`` which run: all by default.
        :class:`vit_jax.layers.hooks.Tokens` where ``reduce`` has merged some.
        """
        return self.stack(Block, name="encoder")(tokens, train=train, at=at, mask=mask, blocks=blocks)

    def classify(self, found: Features) -> jax.Array:
        if not self.distilled:
            return super().classify(found)
        cls, dist = found.tokens[:, 0].astype(jnp.float32), found.tokens[:, 1].astype(jnp.float32)
        return (self.to_classes("head", cls) + self.to_classes("head_dist", dist)) / 2

    def with_fields(self, block: Callable[..., nn.Module] = Block) -> Any:
        made = functools.partial(super().with_fields(block), reduce=None)
        if self.prompts:
            return self._prompted(made, functools.partial(super().with_fields(Prompted), reduce=None))
        if self.reduce is None:
            return made
        if (fixed := next((f for f in ("rotary", "logit_bias") if getattr(self, f) is not None), None)) is not None:
            raise UserError(
                f"reduce leaves every image tokens at places of its own, and {fixed} is for the whole grid; set "
                "reduce=None."
            )
        if isinstance(self.reduce, Random):
            return made
        if isinstance(self.reduce, Lookup):
            fields = functools.partial(super().with_fields(LookupBlock), reduce=None)
            return self.reduce.blocks(fields, self.depth, self._prefix(), self.width)
        places = (Place(i, self.depth, self._prefix(), self._has_cls()) for i in range(self.depth))
        return tuple(functools.partial(made, reduce=functools.partial(self.reduce, place)) for place in places)

    @nn.compact
    def pooled(self, tokens: jax.Array | Tokens) -> jax.Array:
        """``[B, N, D] -> [B, D]``, what the head sees: by ``pool``, through ``pool_norm`` and ``pre_logits``."""
        x = self._pool(tokens if isinstance(tokens, Tokens) else Tokens(tokens))
        if self.pool_norm:
            x = LayerNorm(self.dtype, self.norm_epsilon, name="norm_pool")(x)
        if self.pre_logits is not None:
            x = jnp.tanh(Linear(self.pre_logits, ("embed", "mlp"), name="pre_logits")(x.astype(jnp.float32)))
        return x

    def _embed(self, image: Any) -> tuple[jax.Array, tuple[int, int]]:
        """Only class tokens and grid have positions, and those of ``position_grid`` the grid alone."""
        if self.stem is not None:
            image = ResNet(self.stem, dtype=self.dtype, numerics=self.stem_numerics, name="stem")(image)
        any_shape = isinstance(image, Patches)
        height, width = (self.patch, self.patch) if any_shape else image.shape[1:3]
        grids = [grid_of(height, width, side) for side in self.patches]  # each is to fit, whichever is drawn first
        cut = self.patches[0] if self.patches else None
        grid = PatchEmbed(self.patch, self.width, self.dtype, self.patch_bias, cut, name="patch")(image)
        b, d = grid.shape[0], grid.shape[-1]
        h, w = (1, grid.shape[1]) if any_shape else grid.shape[1:3]
        x = grid.reshape(b, h * w, d)
        fixed = self.positions != "none" and self.position_grid is None
        stored = grid_of(height, width, self.patch) if grids and fixed else (h, w)
        if self.position_grid is not None:
            at: Array = np.indices((h, w)).reshape(1, 2, -1).swapaxes(1, 2)
            sides: Array = np.array([[h, w]])
            if any_shape:
                at, sides = image.at, jnp.max(image.at, axis=1) + 1
            x = GridPositions(self.position_grid, name="position")(x, at, sides)
        if self.positions == "sincos2d":
            x += jnp.asarray(sincos_positions(h, w, d, stored)[None], x.dtype)
        names = (["cls"] if self._has_cls() else []) + (["dist"] if self.distilled else [])
        x = jnp.concatenate([*(self._tokens(name, nn.initializers.zeros, 1, b) for name in names), x], axis=1)
        if self.positions == "learn" and self.position_grid is None:
            x = PositionEmbedding(self.dtype, name="position")(x, grids=(stored, (h, w)))
        if self.registers:
            extra = self._tokens("registers", nn.initializers.normal(0.02), self.registers, b)
            x = jnp.concatenate([x[:, : -h * w], extra, x[:, -h * w :]], axis=1)
        return x, (h, w)

    def _prompted(self, plain: Callable[..., nn.Module], prompted: Callable[..., nn.Module]) -> Any:
        """The blocks, of which those of ``prompts`` are prompted."""
        sizes = dict(self.prompts)
        if len(sizes) < len(self.prompts) or max(sizes) >= self.depth:
            raise UserError(
                f"prompts={self.prompts} name a block twice, or one beyond the last of {self.depth}, {self.depth - 1}."
            )
        if self.reduce is not None:
            raise UserError("prompts are for tokens that each stand for one; set reduce=None.")
        return tuple(functools.partial(prompted, prompts=sizes[i]) if i in sizes else plain for i in range(self.depth))

    def _tokens(self, name: str, init: Any, count: int, batch: int) -> jax.Array:
        init = logical(init, (None, None, "embed"))
        tokens = self.param(name, init, (1, count, self.width)).astype(self.dtype)
        return jnp.broadcast_to(tokens, (batch, count, self.width))

    def _has_cls(self) -> bool:
        return self.cls_token or self.pool in ("cls", "cls_gap")

    def _prefix(self) -> int:
        """Tokens before those of the grid."""
        return self._has_cls() + self.distilled + self.registers

    def _pool(self, left: Tokens) -> jax.Array:
        tokens, size, _ = left
        if self.distilled:
            return average(tokens[:, :2])
        if self.pool == "cls":
            return tokens[:, 0]
        if self.pool == "map":
            pool = AttentionPool(self.heads, self.mlp_dim, self.dtype, self.activation, self.norm_epsilon, name="pool")
            return pool(tokens, size=size)
        grid = average(tokens[:, self._prefix() :], None if size is None else size[:, self._prefix() :])
        return grid if self.pool == "gap" else jnp.concatenate([tokens[:, 0], grid], axis=-1)
