"""What a format of others has to say of itself."""

from __future__ import annotations

import dataclasses
import operator
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn

from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import Rule
from vit_jax.data.text import TextCodec
from vit_jax.io.sidecar import About
from vit_jax.io.tensors import Tensors, open_tensors
from vit_jax.layers.linear import LinearSpec
from vit_jax.models.describe import structured
from vit_jax.types import OutputActivation, UserError


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a format finds out before it reads a number.

    Attributes:
      model: fields of the model, plain data with its ``name``.
      preprocess: how the model's images are prepared, where known.
      class_names: names of the head's outputs, where known.
      layout: whatever ``Codec.rules`` needs to know of this file.
      unused: tensors that may be left out -> why.
      notes: one human-readable note per assumption.
      output_activation: how logits become probabilities; None where the files do not say.
      resize: how position embeddings are resized; None for the format's usual way.
      encoder: tokenizer and context length, where known.
      assumed: fields of the model that no file tells, a dot between those of towers -> the note that says so; notes of
        their own, dropped where the user names the field.
      native: see :class:`vit_jax.convert.pretrained.Described`.
    """

    model: Mapping[str, Any]
    preprocess: Preprocess
    class_names: tuple[str, ...] = ()
    layout: Any = None
    unused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    output_activation: OutputActivation | None = None
    resize: str | None = None
    encoder: TextCodec | None = None
    assumed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    native: int | None = None


@dataclasses.dataclass(frozen=True)
class Writing:
    """How a format stores a model.

    Attributes:
      layout: for ``Codec.rules``.
      about: files beside the weights, bytes for those that are no JSON.
      notes: one human-readable note per thing that the format cannot say or says otherwise.
      extra: tensors that its project expects and that hold nothing of ours.
    """

    layout: Any
    about: About
    notes: tuple[str, ...] = ()
    extra: Tensors = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Limit:
    """What a format cannot say of the modules of a class.

    In ``sentence`` and ``what`` ``{0}`` stands for the module, ``{0.pool!r}`` for a field of it.

    Attributes:
      kind: the class; the model itself, its towers and its decoder are looked at.
      field: path of the one whose values are limited, ``"text_tower.pool"``; ``""`` for the module as a whole.
      allowed: the values that can be said, or whether one can.
      sentence: of the error; ``{what}`` stands for what is lacking, ``{to}`` for the format that has it, ``{title}``
        for this one's title.
      what: what is lacking; limits with the same sentence are told in one.
      able: names of formats that have it, this one perhaps among them.
    """

    kind: type[nn.Module]
    field: str
    allowed: Collection[Any] | Callable[[Any], bool]
    sentence: str
    what: str | Callable[[Any], str] = ""
    able: tuple[str, ...] = ()

    def allows(self, module: Any) -> bool:
        """Whether a module, of whatever class, is within the limit."""
        if not isinstance(module, self.kind):
            return True
        value = operator.attrgetter(self.field)(module) if self.field else module
        return self.allowed(value) if callable(self.allowed) else value in self.allowed

    def lacking(self, module: Any) -> str:
        """``what`` of a module that is beyond the limit."""
        return self.what(module) if callable(self.what) else self.what.format(module)


@dataclasses.dataclass(frozen=True)
class Codec:
    """How a format stores one family of models.

    Attributes:
      kinds: classes of the family's models; none where it is only read.
      matches: whether tensors of these names are of the family, even of a model that is not converted.
      read: names, shapes and the JSON files beside them -> :class:`Reading`.
      rules: ``(model, layout)`` -> every tensor of the file.
      write: a model that :func:`check` allows -> :class:`Writing`; raises :class:`UserError` where it cannot be
        expressed together with what comes with it, as the size of its images.
      peer: ``(path, our model)`` -> the project's own model with the weights at ``path``, as a function from normalised
        images float32[B,H,W,3] to logits float32[B,C] (pooled features without a head); or, of an image-text model,
        from such images and texts int32[B,L] to arrays by the names that :func:`.verify.outputs` gives them.
      parts: classes of the modules that are among their fields: towers and decoders.
      limits: what of these modules it cannot say.
      spelled: tensors that ``matches`` -> the same by the names that ``rules`` give, and a note for each change.
      takes: whether it can store a model of its ``kinds`` at all; another codec of the format may.
      says: fields whose unusual values it can say, see :func:`unusual`, and of what type those are.
      processor: ``(path, our model)`` -> the project's own preparation of images as what lies at ``path`` describes it,
        a function from a file to float32[S,S,3]; None where nothing there does.
    """

    kinds: tuple[type[nn.Module], ...]
    matches: Callable[[Collection[str]], bool]
    read: Callable[[Tensors, About], Reading]
    rules: Callable[[Any, Any], list[Rule]]
    write: Callable[[Stored], Writing]
    peer: Callable[[pathlib.Path, Any], Callable[..., Any]]
    parts: tuple[type[nn.Module], ...] = ()
    limits: tuple[Limit, ...] = ()
    spelled: Callable[[Tensors], tuple[Tensors, list[str]]] = lambda theirs: (theirs, [])
    takes: Callable[[Any], bool] = lambda model: True
    says: Mapping[str, type | tuple[type, ...]] = dataclasses.field(default_factory=dict)
    processor: Callable[[pathlib.Path, Any], Callable[[pathlib.Path], Any] | None] = lambda path, model: None

    def can_say(self, module: nn.Module, field: str) -> bool:
        """Whether it can say the unusual value of a ``field``."""
        return field in self.says and isinstance(getattr(module, field), self.says[field])


@dataclasses.dataclass(frozen=True)
class Format:
    """One way in which others store models: a codec for each family that it has.

    Attributes:
      name: as the user writes it.
      title: of the project it belongs to, for messages.
      suffix: of the weights' file, ``".safetensors"`` or ``".npz"``.
      resize: how its project resizes positions.
      codecs: of the families; of several that match a file the first reads it.
      weights: name of the weights in a folder.
    """

    name: str
    title: str
    suffix: str
    resize: str
    codecs: tuple[Codec, ...]
    weights: str = "model.safetensors"

    def codec(self, model: nn.Module) -> Codec | None:
        """What stores ``model``, None where nothing does."""
        own, *parts = map(type, modules(model))
        able = [c for c in self.codecs if own in c.kinds and set(parts).issubset(c.parts)]
        return next((c for c in able if c.takes(model)), able[0] if able else None)

    def matches(self, names: Collection[str]) -> bool:
        """Whether tensors of these names are in this format."""
        return any(codec.matches(names) for codec in self.codecs)

    def read(self, theirs: Tensors, about: About) -> Reading:
        """See :class:`Codec`."""
        return self.reader(theirs).read(theirs, about)

    def spelled(self, theirs: Tensors) -> tuple[Tensors, list[str]]:
        """See :class:`Codec`."""
        return self.reader(theirs).spelled(theirs)

    def rules(self, model: nn.Module, layout: Any) -> list[Rule]:
        """See :class:`Codec`."""
        return self.known(model).rules(model, layout)

    def write(self, pretrained: Stored) -> Writing:
        """See :class:`Codec`."""
        return self.known(pretrained.model).write(pretrained)

    def peer(self, path: pathlib.Path, model: nn.Module) -> Callable[..., Any]:
        """See :class:`Codec`."""
        with open_tensors(path) as theirs:
            found = next((codec for codec in self.codecs if codec.matches(theirs.keys())), None)
        return (found or self.known(model)).peer(path, model)

    def reader(self, theirs: Tensors) -> Codec:
        """What reads tensors that this format :meth:`matches`."""
        return next(codec for codec in self.codecs if codec.matches(theirs.keys()))

    def processor(self, path: pathlib.Path, model: nn.Module) -> Callable[[pathlib.Path], Any] | None:
        """See :class:`Codec`."""
        with open_tensors(path) as theirs:
            codec = self.reader(theirs)
        return codec.processor(path, model)

    def known(self, model: nn.Module) -> Codec:
        """What stores ``model``, which :func:`check` allows."""
        codec = self.codec(model)
        assert codec is not None, (self.name, type(model))
        return codec


def modules(model: nn.Module) -> Iterator[nn.Module]:
    """``model``, its towers and its decoder: all modules among its fields, however deep."""
    yield model
    for field in dataclasses.fields(model):
        value = getattr(model, field.name) if field.name not in ("parent", "name") else None
        if isinstance(value, nn.Module):
            yield from modules(value)


USUAL: Mapping[str, Any] = {
    "qkv_bias": "qkv",
    "qk_norm": None,
    "distilled": False,
    "patches": (),
    "scales": (1.0,),
    "prompts": (),
    "position_grid": None,
    "parallel": False,
}
"""Fields of plain data -> the value that every format can say."""


def unusual(module: nn.Module) -> dict[str, str]:
    """Fields of ``module`` itself whose values few formats can say, as a user writes these."""
    plain = {name: getattr(module, name, value) for name, value in USUAL.items()}
    found = {name: str(value) for name, value in plain.items() if value != USUAL[name]}
    if getattr(module, "positions", "") == "none":
        found["positions"] = "none"
    return {**structured(module), **found}


def check(model: nn.Module, fmt: Format, others: Iterable[Format]) -> None:
    """Raises a :class:`UserError` for what ``fmt`` has not: a structured value of a field, the family, what it limits.

    Args:
      model: what is to be written.
      fmt: how.
      others: the formats, the first of which that has the family is named; ours has them all.
    """
    codec = fmt.codec(model)
    for module in modules(model):
        for name, value in unusual(module).items():
            if isinstance(getattr(module, name), LinearSpec):
                raise UserError(
                    f"{fmt.title} has dense maps alone, not {name}='{value}'; add --linear dense, which multiplies "
                    "them out, or write --to vit_jax."
                )
            if codec is None or not codec.can_say(module, name):
                sayable = (other.name for other in others if (c := other.codec(model)) and c.can_say(module, name))
                raise UserError(f"{fmt.title} has no {name}='{value}'; write --to {next(sayable, 'vit_jax')}.")
    if codec is None:
        known = {kind for codec in fmt.codecs for kind in codec.kinds + codec.parts}
        new = next((type(module).__name__ for module in modules(model) if type(module) not in known), None)
        able = next((other.name for other in others if other.codec(model)), "vit_jax")
        raise UserError(f"{fmt.title} has no {new or f'{type(model).__name__} by itself'}; write --to {able}.")
    check_limits(model, codec.limits, fmt.name, fmt.title)


def check_limits(model: nn.Module, limits: Iterable[Limit], name: str = "", title: str = "") -> None:
    """Raises a :class:`UserError` where ``model`` is beyond ``limits`` of the format called ``name``, ``title``."""
    beyond = [(limit, module) for limit in limits for module in modules(model) if not limit.allows(module)]
    first, module = next(((limit, module) for limit, module in beyond if name not in limit.able), (None, None))
    if first is None:
        return
    alike = [(limit, module) for limit, module in beyond if limit.sentence == first.sentence]
    what = " and no ".join(limit.lacking(module) for limit, module in alike if name not in limit.able)
    to = next((able for able in first.able if all(able in limit.able for limit, _ in alike)), "vit_jax")
    raise UserError(first.sentence.format(module, what=what, to=to, title=title))
