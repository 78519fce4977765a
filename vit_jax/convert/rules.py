"""Two-way tables: which of their tensors are which of ours, and how the numbers are laid out in each.

A format lists a :class:`Rule` for every tensor. :func:`into` and :func:`back` apply the list in one direction or the
other, a rule at a time and only when a tensor is read, so that a conversion holds a layer in memory, not a model. Every
tensor on either side must be claimed by exactly one rule: what is left over is an error that lists both sides.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from vit_jax.convert.transforms import (
    CONV,
    HALVES,
    LINEAR,
    SAME,
    Arrays,
    Transform,
    fused_linear,
    queries_and_memory,
    split_linear,
    zeros,
)
from vit_jax.io.tensors import Tensor, Tensors
from vit_jax.types import UserError

FLOATS = tuple(map(np.dtype, (np.float32, np.float16, np.float64, ml_dtypes.bfloat16)))


@dataclasses.dataclass(frozen=True)
class Rule:
    """Tensors ``theirs`` hold what our parameters at the paths ``ours`` hold."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    transform: Transform


def rule(theirs: str | Sequence[str], ours: str | Sequence[str], transform: Transform | None = None) -> Rule:
    """A rule; one name may stand for a tuple of one, no transform for "the same array"."""
    a, b = ((names,) if isinstance(names, str) else tuple(names) for names in (theirs, ours))
    return Rule(a, b, transform or SAME)


def renamed(rows: Iterable[Rule], theirs: str = "", ours: str = "") -> list[Rule]:
    """``rows`` with what precedes the names on either side."""
    return [Rule(tuple(theirs + x for x in r.theirs), tuple(ours + x for x in r.ours), r.transform) for r in rows]


def torch_linear(theirs: str, ours: str) -> list[Rule]:
    """Weight and bias of a ``torch.nn.Linear``."""
    return [rule(f"{theirs}.weight", f"{ours}/kernel", LINEAR), rule(f"{theirs}.bias", f"{ours}/bias")]


def torch_conv(theirs: str, ours: str, bias: bool = True) -> list[Rule]:
    """Weight and bias of a ``torch.nn.Conv2d``."""
    found = [rule(f"{theirs}.weight", f"{ours}/kernel", CONV)]
    return [*found, rule(f"{theirs}.bias", f"{ours}/bias")] if bias else found


def torch_norm(theirs: str, ours: str, bias: bool = True) -> list[Rule]:
    """Weight and bias of a norm."""
    found = [rule(f"{theirs}.weight", f"{ours}/scale")]
    return [*found, rule(f"{theirs}.bias", f"{ours}/bias")] if bias else found


def torch_batch_norm(theirs: str, ours: str) -> list[Rule]:
    """Weight, bias and running statistics of a ``torch.nn.BatchNorm2d``."""
    running = (rule(f"{theirs}.running_{name}", f"batch_stats/{ours}/{name}") for name in ("mean", "var"))
    return [*torch_norm(theirs, ours), *running]


def torch_mlp(theirs: str, ours: str, names: tuple[str, str] = (".fc1", ".fc2")) -> list[Rule]:
    """The two maps of an MLP, which there are called ``theirs`` and then ``names``."""
    return [
        r
        for a, b in zip(names, ("mlp_in", "mlp_out"), strict=True)
        for r in torch_linear(f"{theirs}{a}", f"{ours}/{b}")
    ]


def torch_cross(theirs: str, ours: str, heads: int) -> list[Rule]:
    """A ``torch.nn.MultiheadAttention`` of queries and of a memory that is as wide."""
    both = queries_and_memory(heads)
    rows = [
        rule(f"{theirs}.in_proj_{a}", (f"{ours}/q/{b}", f"{ours}/kv/{b}"), both)
        for a, b in (("weight", "kernel"), ("bias", "bias"))
    ]
    return [*rows, *torch_linear(f"{theirs}.out_proj", f"{ours}/out")]


class Block(NamedTuple):
    """How a project that is written in PyTorch calls the parts of a block of a Transformer.

    Attributes:
      qkv: tensors of queries, keys and values, ``{}`` standing for "weight" and "bias": one, or one for each.
      out: the map after attention.
      mlp: the two maps of the MLP.
      norms: before attention and before the MLP.
      scales: of either branch, in a model with layer scale.
      biases: tensors, of queries and of values, where keys have none.
      qk_norms: of queries and of keys.
      logit_bias: the table of relative positions.
      gate: the map to the gate of a gated MLP; "" where that of ``mlp`` holds gate and value one after the other.
      mlp_norm: of the hidden layer of a gated MLP.
    """

    qkv: tuple[str, ...]
    out: str
    mlp: tuple[str, str]
    norms: tuple[str, str]
    scales: tuple[str, str] = ("", "")
    biases: tuple[str, str] = ("attn.q_bias", "attn.v_bias")
    qk_norms: tuple[str, str] = ("attn.q_norm", "attn.k_norm")
    logit_bias: str = "attn.relative_position_bias_table"
    gate: str = ""
    mlp_norm: str = "mlp.norm"


def torch_blocks(theirs: str, ours: str, tower: Any, names: Block, bias: bool = True) -> Iterator[Rule]:
    """The blocks of a ``tower``, which are called ``theirs`` and ``ours`` followed by a number.

    Without ``bias`` there are none of queries, keys and values there, and zeros here.
    """
    qkv = split_linear(tower.heads) if len(names.qkv) > 1 else fused_linear(tower.heads)
    for i in range(tower.depth):
        a, b = f"{theirs}{i}.", f"{ours}{i}/"
        yield from (
            *torch_norm(a + names.norms[0], f"{b}norm_attention"),
            *torch_norm(a + names.norms[1], f"{b}norm_mlp"),
        )
        yield rule([a + part.format("weight") for part in names.qkv], f"{b}attention/qkv/kernel", qkv)
        if tower.qkv_bias == "qkv":
            biases = [a + part.format("bias") for part in names.qkv if bias]
            yield rule(biases, f"{b}attention/qkv/bias", qkv if bias else zeros(3 * tower.width))
        elif tower.qkv_bias == "qv":
            yield from (rule(a + x, f"{b}attention/bias_{y}") for x, y in zip(names.biases, "qv", strict=True))
        if tower.logit_bias is not None:
            yield rule(a + names.logit_bias, f"{b}attention/logit_bias/table")
        if tower.qk_norm is not None:
            for x, y in zip(names.qk_norms, "qk", strict=True):
                yield from torch_norm(a + x, f"{b}attention/norm_{y}", tower.qk_norm == "layer")
        yield from (*torch_linear(a + names.out, f"{b}attention/out"), *_torch_ffn(a, f"{b}mlp", tower, names))
        if tower.layer_scale is not None:
            yield from (rule(a + x, f"{b}scale_{y}") for x, y in zip(names.scales, ("attention", "mlp"), strict=True))


def _torch_ffn(theirs: str, ours: str, tower: Any, names: Block) -> Iterator[Rule]:
    """The MLP of a block, or the gated one (:class:`vit_jax.layers.gated.Gated`) in its place."""
    if tower.ffn is None:
        yield from torch_mlp(theirs, ours, names.mlp)
        return
    both, (first, second) = (f"{ours}/mlp_gate", f"{ours}/mlp_in"), names.mlp
    if names.gate:
        for a, b in zip((names.gate, first), both, strict=True):
            yield from torch_linear(theirs + a, b)
    else:
        yield rule(f"{theirs}{first}.weight", [f"{b}/kernel" for b in both], HALVES)
        yield rule(f"{theirs}{first}.bias", [f"{b}/bias" for b in both], HALVES)
    yield from torch_linear(theirs + second, f"{ours}/mlp_out")
    if tower.ffn.norm_epsilon is not None:
        yield from torch_norm(theirs + names.mlp_norm, f"{ours}/norm")


def into(
    rules: Iterable[Rule],
    theirs: Tensors,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    source: str,
    unused: Mapping[str, str] | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Their tensors as our parameters.

    Args:
      rules: of the format.
      theirs: by name.
      shapes: of our model's parameters, by path.
      source: what is read, for errors.
      unused: names that may be there and are not needed -> why.

    Returns:
      Our parameters by path, float32, checked for NaN as they are read; and human-readable notes.

    Raises:
      UserError: names that are missing or left over, shapes of another model, a type that is no float.
    """
    rules, unused = list(rules), unused or {}
    _claimed(rules, "theirs", [name for name in theirs if name not in unused], source)
    _claimed(rules, "ours", shapes, "the model")
    reasons = {why: [n for n in theirs if unused.get(n) == why] for why in dict.fromkeys(unused.values())}
    notes = [f"{_listed(names)} left out ({why})" for why, names in reasons.items() if names]
    types = Counter(str(theirs[name].dtype) for r in rules for name in r.theirs)
    notes += [f"{n} of {types.total()} tensors are {t} there, float32 here" for t, n in types.items() if t != "float32"]
    for r in rules:
        for name in r.theirs:
            if theirs[name].dtype not in FLOATS:
                raise UserError(
                    f"{source}: {name} is of type {theirs[name].dtype}; weights are floats of 16 to 64 bits."
                )
        want = [shapes[path] for path in r.ours]
        if (found := _probe(r.transform.into, [theirs[name].shape for name in r.theirs])) != want:
            there = ", ".join(f"{name} {theirs[name].shape}" for name in r.theirs)
            here = ", ".join(f"{path} {shapes[path]}" for path in r.ours)
            means = "" if found is None else f", which would be {', '.join(map(str, found))}"
            raise UserError(
                f"{source}: {there} does not fit {here} of the model{means}; name the right one by --model."
            )
    return _lazily([(r.theirs, r.ours, r.transform.into) for r in rules], theirs, shapes, source), notes


def back(rules: Iterable[Rule], ours: Tensors, *, name: str) -> dict[str, Tensor]:
    """Our parameters as their tensors, in the order of the rules.

    Args:
      rules: of the format.
      ours: by path.
      name: what is written, for errors.

    Raises:
      UserError: parameters without a rule, or rules without their parameters.
    """
    rules = list(rules)
    _claimed(rules, "ours", ours, name)
    shapes: dict[str, tuple[int, ...]] = {}
    for r in rules:
        found = _probe(r.transform.back, [ours[path].shape for path in r.ours])
        if found is None:
            raise UserError(f"{name}: {', '.join(f'{p} {ours[p].shape}' for p in r.ours)} cannot become {r.theirs}.")
        shapes |= dict(zip(r.theirs, found, strict=True))
    return _lazily([(r.ours, r.theirs, r.transform.back) for r in rules], ours, shapes, name)


def _claimed(rules: Sequence[Rule], side: str, there: Iterable[str], where: str) -> None:
    """Raises unless the rules' names on one side are those that are there, each once."""
    wanted = Counter(name for r in rules for name in getattr(r, side))
    assert wanted.total() == len(wanted), wanted.most_common(1)
    there = list(there)
    missing = [name for name in wanted if name not in set(there)]
    extra = [name for name in there if name not in wanted]
    if not missing and not extra:
        return
    parts = []
    if missing:
        near = difflib.get_close_matches(missing[0], extra, n=1, cutoff=0.6)
        parts.append(f"{_listed(missing)} missing" + (f" (nearest to the first: {near[0]})" if near else ""))
    if extra:
        near = difflib.get_close_matches(extra[0], missing, n=1, cutoff=0.6)
        parts.append(f"{_listed(extra)} left over" + (f" (nearest to the first: {near[0]})" if near else ""))
    remedy = "get the whole file, or name the model by --model"
    raise UserError(f"{where} does not have the tensors of the model: {'; '.join(parts)}; {remedy}.")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"


def _probe(transform: Callable[..., Arrays], shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]] | None:
    """The shapes that ``transform`` gives for arrays of ``shapes``, None where it cannot; costs a byte an entry."""
    return _probed(transform, tuple(shapes))


@functools.lru_cache(maxsize=4096)
def _probed(transform: Callable[..., Arrays], shapes: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]] | None:
    try:
        return [y.shape for y in transform(*(np.empty(shape, np.int8) for shape in shapes))]
    except (ValueError, IndexError):
        return None


def _lazily(
    rows: Sequence[tuple[tuple[str, ...], tuple[str, ...], Callable[..., Arrays]]],
    source: Tensors,
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
) -> dict[str, Tensor]:
    """Results by name; reading one runs its row, whose other results are kept until another row is run."""

    @functools.lru_cache(maxsize=1)
    def run(i: int) -> Arrays:
        names, _, transform = rows[i]
        results = transform(*(_float32(source[n].read(), n, where) for n in names))
        return tuple(np.asarray(y, order="C") for y in results)

    def result(i: int, j: int) -> np.ndarray:
        value = run(i)[j]
        if len(rows[i][1]) == 1:
            run.cache_clear()
        return value

    return {
        name: Tensor(shapes[name], np.dtype(np.float32), functools.partial(result, i, j))
        for i, (_, names, _) in enumerate(rows)
        for j, name in enumerate(names)
    }


def _float32(x: np.ndarray, name: str, where: str) -> np.ndarray:
    if not np.isfinite(x).all():
        bad = x.size - np.isfinite(x).sum()
        raise UserError(f"{where}: {name} holds NaN or infinity in {bad} of {x.size} entries; the file is of no use.")
    return x.astype(np.float32, copy=False)
