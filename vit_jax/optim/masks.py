"""Which parameters are decayed, frozen or slowed down: by their roles, or by a user's rules over their paths.

A pattern is a regular expression over paths, ``"encoder/block_0/mlp/mlp_in/kernel"``. It matches the *whole* path
(``re.fullmatch``), so that ``"head"`` cannot hit ``"encoder/head_norm"`` by accident. One that matches nothing is a
mistake, never a no-op.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax import trees
from vit_jax.types import Params, UserError

Rules = Sequence[tuple[str, Any]]
"""``(pattern, value)`` in order of precedence: the first match decides."""


def paths(params: Params) -> Any:
    """The tree of ``params`` with each leaf replaced by its path."""
    return jax.tree_util.tree_map_with_path(lambda path, _: trees.name(path), params)


def first_match(rules: Rules, params: Params, default: Any) -> Any:
    """A tree like ``params`` of the value of the first rule whose pattern matches the path, or ``default``."""
    compiled = [(re.compile(pattern), value) for pattern, value in rules]
    return jax.tree.map(
        lambda name: next((value for regex, value in compiled if regex.fullmatch(name)), default), paths(params)
    )


def check(what: str, patterns: Iterable[str], params: Params) -> None:
    """Raises a :class:`UserError` for a pattern that is no regular expression or matches no path at all."""
    names = jax.tree.leaves(paths(params))
    for pattern in patterns:
        try:
            regex = re.compile(pattern)
        except re.error as e:
            raise UserError(
                f"{what} pattern {pattern!r} is no regular expression: {e}; escape special characters."
            ) from None
        if not any(map(regex.fullmatch, names)):
            near = ", ".join(_nearest(pattern, names))
            raise UserError(f"{what} pattern {pattern!r} matches no whole parameter path; nearest: {near}.")


def _nearest(pattern: str, names: Sequence[str]) -> list[str]:
    """What the user may have meant: whole paths, or modules as ``"encoder/.*"``."""
    modules = {name.rsplit("/", k)[0] + "/.*" for name in names for k in range(1, name.count("/") + 1)}
    return [repr(s) for s in difflib.get_close_matches(pattern, sorted(modules | set(names)), n=3, cutoff=0.0)]


def covered(values: Any, params: Params, what: str) -> Any:
    """``values``, if no leaf is ``None``.

    Raises:
      UserError: naming the first path without a value.
    """
    names = jax.tree.leaves(paths(params))
    for name, value in zip(names, jax.tree.leaves(values, is_leaf=lambda v: v is None), strict=True):
        if value is None:
            raise UserError(f"no {what} covers parameter {name!r}; add one, such as {(name, 0.0)!r}.")
    return values


def kernels_only(roles: Any) -> Any:
    """Default weight decay: a tree of 1.0 for matrices of linear maps and convolutions, 0.0 for all else."""
    return jax.tree.map(lambda role: None if role.kind is None else float(role.kind == "kernel"), roles)


def layer_decay(roles: Any, rate: float) -> Any:
    """A tree of ``rate ** above``: heads are taken as they are, embeddings as many layers below as there are blocks.

    Each stack of blocks (image tower, text tower, decoder) has its own depth (BEiT, arXiv:2106.08254, appendix).

    Raises:
      UserError: a model without blocks, or a parameter of which it does not say in what part it is.
    """
    if not any(role.part == "block" for role in jax.tree.leaves(roles)):
        raise UserError("layer_decay needs parameters named '…/block_<i>/…', and this model has none; use lr_mult.")
    found = jax.tree.map(lambda role: None if role.part is None else rate**role.above, roles)
    return covered(found, roles, "layer of layer_decay")


def keep(mask: Any, tree: Any) -> Any:
    """``tree`` without the leaves where ``mask`` is False: an ``optax.MaskedNode`` holds their place, and no memory."""
    return jax.tree.map(lambda kept, x: x if kept else optax.MaskedNode(), mask, tree)


def merge(part: Any, full: Any) -> Any:
    """``full`` with every leaf that :func:`keep` left in ``part`` replaced by that one."""
    return jax.tree.map(lambda x, p: x if isinstance(p, optax.MaskedNode) else p, full, part)


class _Trained:
    """A ``grad_fn`` of the trained parameters only; the others stay what they are in ``params``."""

    def __init__(self, grad_fn: Any, mask: Any, params: Params) -> None:
        self.grad_fn, self.mask, self.params = grad_fn, mask, params

    def __call__(self, part: Params) -> Params:
        return keep(self.mask, self.grad_fn(merge(part, self.params)))

    def over_groups(self, body: Any, m: int) -> Any:
        return self.grad_fn.over_groups(lambda group: body(_Trained(group, self.mask, self.params)), m)


def train_only(inner: optax.GradientTransformationExtraArgs, mask: Any) -> optax.GradientTransformationExtraArgs:
    """``inner`` on the leaves where ``mask`` is True. It never sees the others: they have no state, no share in any
    norm, are not perturbed by SAM, and their update is zero."""

    def update(updates: Any, state: Any, params: Any = None, *, grad_fn: Any = None, **extra: Any) -> tuple[Any, Any]:
        inside = None if grad_fn is None else _Trained(grad_fn, mask, params)
        part, state = inner.update(keep(mask, updates), state, keep(mask, params), grad_fn=inside, **extra)
        return merge(part, jax.tree.map(jnp.zeros_like, updates)), state

    return optax.GradientTransformationExtraArgs(lambda params: inner.init(keep(mask, params)), update)
