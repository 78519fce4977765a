"""What every parameter is to its model: where it stands in the depth, and what kind of thing it is.

Whoever decays, freezes, casts or replaces parameters asks the model for their roles instead of reading their names.
"""

from __future__ import annotations

import bisect
import dataclasses
import fnmatch
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax

from vit_jax import checks, trees
from vit_jax.types import Params

Part = Literal["stem", "block", "head"]
Kind = Literal["kernel", "bias", "scale", "token", "scalar", "filter", "packed"]
Path = tuple[str, ...]
LAYER = re.compile(r"(stage|block)_(\d+)")
"""How the names of modules begin that stand one after the other in the depth; blocks may be inside of stages."""


@dataclasses.dataclass(frozen=True)
class Role:
    """The role of one parameter; a leaf of a tree.

    Attributes:
      part: "stem", before the blocks; "block"; "head", after them: norm, pooling, map to classes or an embedding. None
        where the model does not say.
      kind: "kernel" of a linear map or a convolution; "bias"; "scale" of a norm or a branch; "token", an embedding, a
        position or a query; "scalar"; "filter" over tokens; "packed", integers and what belongs to them. None where
        the model does not say.
      above: layers from here to the head: 0 in it, 1 in the last block, one more than there are blocks in the stem.
        The blocks of all stages of a stack count.
      new: whether it may be missing in the weights that a training starts from: the map to classes, an adapter.
    """

    part: Part | None
    kind: Kind | None
    above: int = 0
    new: bool = False


class Model(nn.Module):
    """A module with a compute type ``dtype`` that says what its parameters are, by the names that it gives them."""

    ENCODER: ClassVar[str | None] = None
    """The field that is the model's image encoder, where that is a model of its own; None where it is the model."""

    PARTS: ClassVar[Mapping[str, Part]] = {
        **dict.fromkeys(("stem", "patch", "cls", "dist", "registers", "position", "token", "norm_pre"), "stem"),
        **dict.fromkeys(("norm", "norm_pool", "pool", "map", "head", "head_dist", "pre_logits"), "head"),
    }
    """Name of a module or a parameter -> its part; what is below ``block_<i>`` or ``stage_<i>`` is in a block."""
    KINDS: ClassVar[Mapping[str, Kind]] = {
        "kernel": "kernel", "predict": "kernel", "bias": "bias",
        **dict.fromkeys(("scale", "amplitude", "sigma"), "scale"),
        **dict.fromkeys(("embedding", "cls", "dist", "registers", "probe", "queries", "table"), "token"),
        **dict.fromkeys(("prompts", "prototypes", "frequencies"), "token"),
        **dict.fromkeys(("kernel_values", "kernel_index", "kernel_scale"), "packed"),
    }  # fmt: skip
    """Name of a module, of a parameter, or the first word of a parameter's -> its kind."""
    NEW: ClassVar[tuple[str, ...]] = (
        "head", "head_dist", "pre_logits", "adapter_*", "prompts", "prototypes", "predict_*", "*lookup*"
    )  # fmt: skip
    """Names of modules, wildcards allowed, that weights may lack."""

    def __post_init__(self) -> None:
        checks.check(self)
        super().__post_init__()

    def image_encoder(self, params: Params) -> tuple[Model, Params]:
        """The model of images alone in this one, and its parameters."""
        return (self, params) if self.ENCODER is None else (getattr(self, self.ENCODER), params[self.ENCODER])

    def forms(self) -> Mapping[str, Model]:
        """Models of the very same parameters, by name, of which the objective ``drawn`` trains one at each step.

        The first computes what this one does. Empty where there is but this one; those of the image encoder where that
        is a model of its own.
        """
        if self.ENCODER is None:
            return {}
        clone: Any = self.clone
        return {name: clone(**{self.ENCODER: form}) for name, form in getattr(self, self.ENCODER).forms().items()}

    def roles(self, params: Params) -> Any:
        """A tree like ``params`` (arrays or shapes) of :class:`Role`; models among the fields say theirs themselves."""
        inner = {
            name: value for name, value in trees.fields(self).items() if isinstance(value, Model) and name in params
        }
        own = roles({name: tree for name, tree in params.items() if name not in inner}, type(self))
        return {**own, **{name: model.roles(params[name]) for name, model in inner.items()}}


def roles(params: Params, model: type[Model] = Model) -> Any:
    """A tree like ``params`` of the roles that the tables of a class of models give."""
    flat, tree = jax.tree_util.tree_flatten_with_path(params)
    paths = [trees.names(path) for path, _ in flat]
    places = [_place(path, model.PARTS) for path in paths]
    layers: dict[Path, list[tuple[int, ...]]] = {}
    for _, stack, number in sorted({place for place in places if place[0] == "block"}):
        if layers.setdefault(stack, []) and number[: len(layers[stack][-1])] == layers[stack][-1]:
            layers[stack].pop()  # a stage that has blocks is none itself
        layers[stack].append(number)

    def role(path: Path, part: Part | None, stack: Path, number: tuple[int, ...]) -> Role:
        above = 0
        if part == "block":
            above = len(layers[stack]) - bisect.bisect_left(layers[stack], number)
        elif part == "stem":  # of the nearest stack
            near = max(layers, key=lambda stack: _shared(stack, path), default=())
            above = len(layers.get(near, ())) + 1
        new = any(fnmatch.fnmatchcase(name, pattern) for name in path for pattern in model.NEW)
        return Role(part, _kind(path, model.KINDS), above, new)

    return jax.tree.unflatten(tree, [role(path, *place) for path, place in zip(paths, places, strict=True)])


def _place(path: Path, parts: Mapping[str, Part]) -> tuple[Part | None, Path, tuple[int, ...]]:
    """The part that ``path`` is in, the path of its stack, and the numbers of its stage and block."""
    stack: Path = ()
    number: tuple[int, ...] = ()
    for i, name in enumerate(path):
        if not number and name in parts:
            return parts[name], (), ()
        if found := LAYER.match(name):
            stack, number = stack if number else path[:i], (*number, int(found[2]))
            if found[1] == "block":
                break
    return "block" if number else None, stack, number


def _kind(path: Path, kinds: Mapping[str, Kind]) -> Kind | None:
    found = next((kinds[name] for name in path if name in kinds), None)
    return found or kinds.get(path[-1].partition("_")[0])


def _shared(a: Path, b: Path) -> int:
    """How many leading names two paths have in common."""
    same = [x == y for x, y in zip(a, b, strict=False)]
    return [*same, False].index(False)
