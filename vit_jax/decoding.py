"""Captions of images, token by token: greedy, beam search and nucleus sampling in one compiled loop.

Every decoder is a value that chooses the next token of each hypothesis; the loop, the cache of keys and values and the
rules for start, end and padding are the same for all.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_jax import sharding
from vit_jax.checks import INFINITE, Checked, Range, Seed
from vit_jax.models import Captioner
from vit_jax.types import Params, UserError

Kept = Mapping[str, Any]
Read = Callable[[jax.Array, jax.Array | int, Kept], tuple[jax.Array, Kept]]


class Hypotheses(NamedTuple):
    """W captions in the making for each of B images, the best first.

    Attributes:
      tokens: int32 ``[B, W, L]``, start first, filled up with padding.
      log_p: float32 ``[B, W]``, sum of the tokens' log-probabilities; -inf is no caption at all.
      steps: int32 ``[B, W]``, tokens behind the start, the end included.
      ended: bool ``[B, W]``, whether a caption has its end token.
    """

    tokens: jax.Array
    log_p: jax.Array
    steps: jax.Array
    ended: jax.Array


class Captions(NamedTuple):
    """What was generated.

    Attributes:
      tokens: int32 ``[B, L]``: start, content, end, then padding; no end where ``L`` tokens were not enough.
      log_p: float32 ``[B]``, log-probability of those tokens under the model, padding and start excluded from it.
    """

    tokens: jax.Array
    log_p: jax.Array


class SearchStrategy(Checked, abc.ABC):
    """A frozen dataclass in :data:`DECODERS`: how captions go on, and which of several is the best."""

    width: int = 1
    """W, hypotheses per image."""

    @abc.abstractmethod
    def choose(
        self, log_p: jax.Array, found: Hypotheses, rows: jax.Array, at: jax.Array
    ) -> tuple[jax.Array | None, jax.Array]:
        """The next token of each hypothesis.

        Args:
          log_p: float32 ``[B, W, V]``, of the next token; one that has ended goes on with padding only.
          found: so far.
          rows: int32 ``[B]``, names of the images, for randomness.
          at: int32 ``[]``, position of the next token.

        Returns:
          ``(parent, token)``, int32 ``[B, W]``: which hypothesis goes on, None for each itself, and with what.
        """

    def score(self, log_p: jax.Array, steps: jax.Array | int) -> jax.Array:
        """What ranks the hypotheses of one image, of ``steps`` tokens each."""
        return log_p


@dataclasses.dataclass(frozen=True)
class Greedy(SearchStrategy):
    """The most probable token, each time; of equal ones that of the lowest id."""

    def choose(self, log_p: jax.Array, found: Hypotheses, rows: jax.Array, at: jax.Array) -> Any:
        return None, jnp.argmax(log_p, axis=-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Nucleus(SearchStrategy):
    """Draws from the smallest set of most probable tokens whose mass is at least ``p`` (Holtzman et al. 2020).

    arXiv:1904.09751, section 3.1. A draw depends on the seed, the image's name and the position only: not on the batch.

    Attributes:
      p: mass of the nucleus, in (0, 1]; the most probable token is always in it.
      temperature: divides the logits before the draw; below 1 sharpens, above 1 flattens.
      seed: random seed of the draws.
    """

    p: Annotated[float, Range(0, 1, "(]", "; 0.9 is usual, 1 samples freely")] = 0.9
    temperature: Annotated[float, Range(0, INFINITE, "()", "; 'greedy' is its limit 0")] = 1.0
    seed: Seed = 0

    def choose(self, log_p: jax.Array, found: Hypotheses, rows: jax.Array, at: jax.Array) -> Any:
        p = jax.nn.softmax(log_p[:, 0] / self.temperature, axis=-1)
        order = jnp.argsort(p, axis=-1, descending=True)
        p = jnp.take_along_axis(p, order, axis=-1)
        before = jnp.cumsum(p, axis=-1) - p
        key = jax.random.fold_in(jax.random.key(self.seed), at)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
        drawn = jax.vmap(jax.random.categorical)(keys, jnp.where(before < self.p, jnp.log(p), -jnp.inf))
        return None, jnp.take_along_axis(order, drawn[:, None], axis=-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Beam(SearchStrategy):
    """The ``width`` best hypotheses, ended ones among them, are kept each time; the best at the end is the caption.

    They are ranked by log-probability over ``((5 + n) / 6) ** length_penalty`` for n tokens, the end included (Wu et
    al. 2016, arXiv:1609.08144, equation 14). An ended one keeps its place until ``width`` others are better. The search
    ends when the best has ended and no other can overtake it. Ties go to the better parent, then to the lower id.

    Attributes:
      width: hypotheses per image; 1 is greedy decoding.
      length_penalty: 0 ranks by probability, which favours short captions; larger favours long ones.
    """

    width: Annotated[int, Range(1, 256)] = 4
    length_penalty: Annotated[float, Range(0, 100, hint="; 0 is none, 0.6 is usual")] = 0.6

    def choose(self, log_p: jax.Array, found: Hypotheses, rows: jax.Array, at: jax.Array) -> Any:
        b, w, vocabulary = log_p.shape
        each = min(w, vocabulary)
        steps = found.steps + jnp.where(found.ended, 0, 1)
        best, token = jax.lax.top_k(found.log_p[..., None] + log_p, each)
        flat = jax.lax.top_k(self.score(best, steps[..., None]).reshape(b, w * each), w)[1]
        return flat // each, jnp.take_along_axis(token.reshape(b, w * each), flat, axis=1)

    def score(self, log_p: jax.Array, steps: jax.Array | int) -> jax.Array:
        return log_p / ((5.0 + jnp.asarray(steps, jnp.float32)) / 6.0) ** self.length_penalty


DECODERS: dict[str, Any] = {"greedy": Greedy, "beam": Beam, "nucleus": Nucleus}


class Tokens(NamedTuple):
    """Ids that have a meaning; see :class:`vit_jax.data.tokenizer.Tokenizer`."""

    start: int
    end: int
    pad: int


def special_ids(tokenizer: Any) -> dict[str, int]:
    """The arguments ``start_id``, ``end_id`` and ``pad_id`` of :func:`generate`.

    Raises:
      UserError: no token starts a text, so that there is nothing to begin with.
    """
    if tokenizer.start_id is None:
        raise UserError("captions cannot be generated: this tokenizer has no token that starts a text.")
    return {name: getattr(tokenizer, name) for name in ("start_id", "end_id", "pad_id")}


def generate(
    apply: Any,
    params: Params,
    image: jax.Array,
    *,
    start_id: int,
    end_id: int,
    pad_id: int,
    length: int,
    decoder: SearchStrategy,
    rows: jax.Array | None = None,
) -> Captions:
    """Captions of prepared images: pure and traceable, one pass over the images and one over each token.

    Args:
      apply: a :class:`~vit_jax.models.Captioner` such as CoCa as a function of its parameters.
      params: its parameters.
      image: float32 ``[B, H, W, 3]``.
      start_id: the token that begins a caption; never generated.
      end_id: the token that ends it.
      pad_id: the token that fills up; never generated, unless it is the end token.
      length: L, most tokens of a caption, start and end included.
      decoder: the search strategy, an instance of a row of :data:`DECODERS`.
      rows: int32 ``[B]``, names of the images that nucleus sampling draws by; by default their numbers in the batch.

    Raises:
      UserError: the model has no caption decoder, or L is not between 2 and what its text tower takes.
    """
    tokens = Tokens(start_id, end_id, pad_id)

    def run(model: Any, image: jax.Array) -> Captions:
        if not isinstance(model, Captioner):
            raise UserError(f"a {type(model).__name__} has no caption decoder; captions need a CoCa, coca_vit_b32 say.")
        most = model.caption_length
        if not 2 <= length <= most:
            raise UserError(
                f"captions of {length} tokens are not possible with this text tower; choose between 2 and {most}."
            )
        return _generate(model, image, tokens, length, decoder, rows)

    return apply(params, image, method=run)


def _generate(
    bound: Any, image: jax.Array, tokens: Tokens, length: int, decoder: SearchStrategy, rows: jax.Array | None
) -> Captions:
    memory = bound.encode(image)[1]
    model, variables = bound.unbind()
    params = bound.decoding_params(variables["params"])

    def read(last: jax.Array, at: jax.Array | int, kept: Kept) -> tuple[jax.Array, Kept]:
        new: Any = ["cache"] if kept else ["cache", "memory"]
        logits, changed = model.apply(
            {"params": params, **kept},
            last[:, None],
            memory,
            start=at,
            length=length - 1,
            method="next_logits",
            mutable=new,
        )
        return logits[:, 0], {**kept, **changed}

    rows = jnp.arange(len(image), dtype=jnp.int32) if rows is None else rows.astype(jnp.int32)
    return search(read, tokens, length, decoder, rows)


def search(read: Read, tokens: Tokens, length: int, decoder: SearchStrategy, rows: jax.Array) -> Captions:
    """The loop over the tokens of B captions; it ends when all of them have.

    Args:
      read: the tokens int32 ``[R]`` at a position and what is kept of those before -> logits ``[R, V]`` of the next and
        what is kept now. At first nothing is, and R is B; then it is B * W. What is kept in "cache" has R rows, which
        follow the hypotheses; what is in "memory" stays as the first call made it.
      tokens: ids that have a meaning.
      length: L, most tokens of a caption, start and end included.
      decoder: the search strategy, an instance of a row of :data:`DECODERS`.
      rows: int32 ``[B]``, names of the images that nucleus sampling draws by.
    """
    b, w = len(rows), decoder.width

    def step(at: Any, logits: jax.Array, found: Hypotheses, cache: Any) -> tuple[Hypotheses, Any]:
        log_p = _log_p(logits.reshape(b, w, -1), found.ended, tokens)
        parent, token = decoder.choose(log_p, found, rows, at)
        own = jnp.arange(w)[None] if parent is None else parent
        gain = jax.vmap(lambda of, i, t: of[i, t])(log_p, jnp.broadcast_to(own, token.shape), token)
        if parent is not None:
            found, cache = _pick((found, cache), parent)
        return _extend(found, gain, token, at, tokens), cache

    def more(carry: tuple[Any, Hypotheses, Any]) -> jax.Array:
        at, found, _ = carry
        return (at < length) & ~jnp.all(_decided(found, decoder, length))

    def body(carry: tuple[Any, Hypotheses, Any]) -> tuple[Any, Hypotheses, Any]:
        at, found, cache = carry
        last = jax.lax.dynamic_index_in_dim(found.tokens, at - 1, axis=2, keepdims=False)
        logits, kept = read(last.reshape(b * w), at - 1, {**first, "cache": cache})
        return at + 1, *step(at, logits, found, kept["cache"])

    logits, first = read(jnp.full(b, tokens.start, jnp.int32), 0, {})
    logits, cache = jax.tree.map(lambda x: jnp.repeat(x, w, axis=0), (logits, first["cache"]))
    one = jnp.int32(1)
    found = jax.lax.while_loop(more, body, (one + 1, *step(one, logits, _start(b, w, length, tokens), cache)))[1]
    return Captions(found.tokens[:, 0], found.log_p[:, 0])


def _start(b: int, w: int, length: int, tokens: Tokens) -> Hypotheses:
    """One hypothesis for each image; the others, impossible ones, make room for its W continuations."""
    text = jnp.full((b, w, length), tokens.pad, jnp.int32).at[..., 0].set(tokens.start)
    log_p = jnp.where(jnp.arange(w) == 0, 0.0, -jnp.inf).astype(jnp.float32)
    found = Hypotheses(
        text, jnp.broadcast_to(log_p[None], (b, w)), jnp.zeros((b, w), jnp.int32), jnp.zeros((b, w), bool)
    )
    return jax.tree.map(lambda x: sharding.constrain(x, "batch", *[None] * (x.ndim - 1)), found)


def _log_p(logits: jax.Array, ended: jax.Array, tokens: Tokens) -> jax.Array:
    """Log-probabilities float32 ``[B, W, V]`` of the next token among those that may follow."""
    ids = jnp.arange(logits.shape[-1])
    banned = (ids == tokens.start) | ((ids == tokens.pad) & (tokens.pad != tokens.end))
    free = jax.nn.log_softmax(jnp.where(banned[None, None], -jnp.inf, logits), axis=-1)
    padding = jnp.where(ids == tokens.pad, 0.0, -jnp.inf).astype(free.dtype)
    return jnp.where(ended[..., None], padding[None, None], free)


def _pick(tree: Any, parent: jax.Array) -> Any:
    """Rows ``parent [B, W]`` of the W of each image, in arrays ``[B, W, ...]`` and ``[B * W, ...]``."""
    b, w = parent.shape

    def one(x: jax.Array) -> jax.Array:
        picked = jax.vmap(lambda rows, i: rows[i])(x.reshape(b, w, -1), parent)
        return picked.reshape(x.shape)

    return jax.tree.map(one, tree)


def _extend(found: Hypotheses, gain: jax.Array, token: jax.Array, at: Any, tokens: Tokens) -> Hypotheses:
    """Each hypothesis with its ``token [B, W]``, of log-probability ``gain [B, W]``, at position ``at``."""
    return Hypotheses(
        jax.lax.dynamic_update_index_in_dim(found.tokens, token, at, axis=2),
        found.log_p + gain,
        found.steps + jnp.where(found.ended, 0, 1),
        found.ended | (token == tokens.end),
    )


def _decided(found: Hypotheses, decoder: SearchStrategy, length: int) -> jax.Array:
    """bool ``[B]``: the best has ended, and no other would be better if all it had yet to say were certain."""
    best = decoder.score(found.log_p, found.steps)[:, :1]
    hopeless = decoder.score(found.log_p, length - 1) <= best
    return found.ended[:, 0] & jnp.all(found.ended | hopeless, axis=1)
