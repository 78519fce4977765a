"""Models as plain data, and back."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn

from vit_jax import config, models, trees
from vit_jax.layers.linear import LinearSpec
from vit_jax.layers.linear.specs import name_of
from vit_jax.layers.mlp import TOPK
from vit_jax.models.base import abstract_init, split_variables
from vit_jax.types import UsageError


def classes(model: nn.Module) -> int:
    """Outputs of the head; 0 for a model without one, as image-text models are."""
    return model.num_classes if isinstance(model, models.ImageModel) else 0


def describe(model: nn.Module) -> dict[str, Any]:
    """A model as plain data: its row of ``models.MODELS``, all of whose fields it has, and what it has besides.

    A class of one's own is a row where it is known (:func:`vit_jax.config.known`).

    Towers and decoders are described likewise, by what they have besides the row's. ``config.parse`` gives the model
    back.
    """
    rows = {n: row.fields for n, row in models.MODELS.items() if row.cls is type(model)}
    if not rows:
        own = config.name_of(model)
        return {"name": own, **_besides(model, {})} if own else config.record(model)
    name = max((n for n, fields in rows.items() if _has(model, fields)), key=lambda n: len(rows[n]))
    return {"name": name, **_besides(model, rows[name])}


def _has(model: nn.Module, fields: Mapping[str, Any]) -> bool:
    """Whether ``model`` is what ``fields`` name, in all of those fields."""
    if "name" in fields:
        if models.NAMES[fields["name"]].cls is not type(model):
            return False
        fields = own_fields(fields)
    types = config.hints(type(model))
    for key, value in fields.items():
        own = getattr(model, key)
        if isinstance(own, nn.Module) and not isinstance(value, nn.Module):
            if not _has(own, value):
                return False
        elif own != config.parse(types[key], value):
            return False
    return True


def _besides(model: nn.Module, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``model`` that neither ``fields``, which it has, nor the defaults of its class give."""
    fields = own_fields(fields) if "name" in fields else fields
    types, out = config.hints(type(model)), {}
    defaults = {f.name: f.default for f in dataclasses.fields(type(model))}
    for key, own in ((key, getattr(model, key)) for key in types):
        if not isinstance(own, nn.Module):
            if key not in fields and own != defaults[key]:
                out[key] = _plain(own, types[key])
        elif key in fields or own != defaults[key]:
            named = any(_tables(types[key])) and key not in fields
            inner = describe(own) if named else _besides(own, fields.get(key, {}))
            out |= {key: inner} if inner or key not in fields else {}
    return out


def _plain(value: Any, hint: Any) -> Any:
    """A field's value as a configuration says it: a frozen value by its name and fields, anything else as it is."""
    if not dataclasses.is_dataclass(value):
        return value
    table = next(_tables(hint), TOPK)
    name = next((name for name, row in table.items() if row is type(value)), config.name_of(value))
    if name is None:
        return config.record(value)
    return {"name": name, **{f.name: getattr(value, f.name) for f in dataclasses.fields(value)}}


def _tables(hint: Any) -> Iterator[Mapping[str, Any]]:
    """Those of the choices in a type, however deep."""
    for part in typing.get_args(hint):
        if isinstance(part, config.Choice):
            yield part.table
        else:
            yield from _tables(part)


PLAIN = (str, int, float, tuple, type(None), nn.Module)


def structured(model: nn.Module) -> dict[str, str]:
    """Fields of ``model`` itself whose values are neither plain data nor the default, as a user writes them."""
    types, out = config.hints(type(model)), {}
    for field in dataclasses.fields(model):
        value = getattr(model, field.name) if field.name in types else None
        if value != field.default and not isinstance(value, PLAIN):
            plain = {} if isinstance(value, LinearSpec) else _plain(value, types[field.name])
            known = isinstance(plain, dict) and "name" in plain
            out[field.name] = f"{plain.pop('name')}({', '.join(map(str, plain.values()))})" if known else name_of(value)
    return out


def build(fields: Mapping[str, Any], name: str | None = None) -> Any:
    """The model with ``fields`` (plain data), those of the user's ``name`` taking precedence.

    Args:
      fields: with the key ``"name"``.
      name: ``"vit_b16"`` or ``"vit_b16(activation='gelu_tanh')"``, what the user says it is; None leaves it open.

    Raises:
      UsageError: an unknown name or field; another kind of model than the fields are of.
    """
    merged = dict(fields)
    if name is not None:
        given = config.spec_fields(name, models.NAMES, "--model")
        row = config.lookup(models.NAMES, given["name"], "model")
        kind, found = row.cls, config.lookup(models.NAMES, fields["name"], "model").cls
        if kind is not found:
            raise UsageError(f"--model {name} is a {kind.__name__}, but the weights are of a {found.__name__}.")
        merged = over(fields, given)
    return config.parse(typing.Annotated[Any, config.Choice(models.NAMES)], merged, "model")


def fields(model: nn.Module) -> dict[str, Any]:
    """All fields of ``model`` by name; of a tower or a decoder its own, likewise."""
    own = trees.fields(model).items()
    return {key: fields(value) if isinstance(value, nn.Module) else value for key, value in own}


def given(name: str) -> dict[str, Any]:
    """The fields that a user's ``"vit_b16"`` or ``"vit_b16(activation='gelu_tanh')"`` names, those of the row too.

    Raises:
      UsageError: an unknown name.
    """
    return _spelled(config.spec_fields(name, models.NAMES, "--model"))


def own_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` with those of the row that they name spelled out, without the name."""
    row = config.lookup(models.NAMES, fields["name"], "model")
    return over(row.fields, {k: v for k, v in fields.items() if k != "name"})


def over(fields: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``more`` on top of ``fields``; objects in them likewise, unless ``more`` names one of another kind."""
    low, high = (_spelled(f) for f in (fields, more))
    if "name" in high and high["name"] != low.get("name", high["name"]):
        return high
    both = {k for k in low.keys() & high.keys() if isinstance(low[k], Mapping) and isinstance(high[k], Mapping)}
    return {**low, **high, **{k: over(low[k], high[k]) for k in both}}


def _spelled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` with those of the row that they name spelled out and the row without any as the name."""
    if fields.get("name") not in models.NAMES:
        return dict(fields)
    kind = models.NAMES[fields["name"]].cls
    bare = next(name for name, row in models.MODELS.items() if row.cls is kind and not row.fields)
    return {"name": bare, **own_fields(fields)}


def shapes(model: Any, size: int) -> dict[str, tuple[int, ...]]:
    """Path -> shape of the model's parameters for images of ``size`` pixels; computes nothing."""
    return _flat(split_variables(abstract_init(model, model.inputs(size)))[0])


def variables(model: Any, size: int) -> dict[str, tuple[int, ...]]:
    """Likewise of the model's collections besides the parameters, ``batch_stats/...`` for instance."""
    return _flat(split_variables(abstract_init(model, model.inputs(size)))[1])


def _flat(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in trees.flat(nn.unbox(tree)).items()}
