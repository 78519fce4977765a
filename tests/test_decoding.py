"""Decoders against enumeration and independent searches in NumPy, on a small recurrent language model and a CoCa."""

import functools
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models, sharding
from vit_jax.config import Choice, parse
from vit_jax.decoding import DECODERS, Beam, Greedy, Nucleus, Tokens, generate, search, special_ids
from vit_jax.types import UsageError, UserError

IDS = Tokens(start=1, end=2, pad=0)
V, D = 6, 5


def language_model(seed, b=3, v=V, end=0.0):
    """hidden = tanh(hidden A + E[token] + image); logits = hidden U, plus ``end`` for the end token."""
    rng = np.random.default_rng(seed)
    a, e, u, x = (rng.normal(size=s) for s in ((D, D), (v, D), (D, v), (b, D)))
    return 0.8 * a, 1.5 * e, 2.0 * u, x, end * np.eye(1, v, IDS.end)[0]


def reader(model):
    """The net as :func:`search` reads it: the hidden state is the cache, the image, shared by all beams, the memory."""
    a, e, u, x, bias = (jnp.asarray(m, jnp.float32) for m in model)

    def read(last, at, kept):
        hidden = kept.get("cache", jnp.zeros((len(last), D)))
        image = kept.get("memory", x)
        each = hidden.reshape(len(image), -1, D) @ a + image[:, None] + e[last].reshape(len(image), -1, D)
        hidden = jnp.tanh(each).reshape(-1, D)
        return hidden @ u + bias[None], {"cache": hidden, "memory": image}

    return read


def next_log_p(model, row, prefix):
    """float64 log-probabilities of the token after ``prefix``, never padding or start."""
    a, e, u, x, bias = model
    hidden = np.zeros(D)
    for token in prefix:
        hidden = np.tanh(hidden @ a + x[row] + e[token])
    logits = hidden @ u + bias
    logits[[t for t in (IDS.pad, IDS.start) if t != IDS.end]] = -np.inf
    return logits - np.logaddexp.reduce(logits)


def run(model, decoder, length, rows=None, ids=IDS):
    rows = jnp.arange(len(model[3])) if rows is None else jnp.asarray(rows)
    found = jax.jit(lambda: search(reader(model), ids, length, decoder, rows))()
    return np.asarray(found.tokens), np.asarray(found.log_p)


def padded(caption, length):
    return [*caption, *[IDS.pad] * (length - len(caption))]


def score(log_p, n, alpha):
    return log_p / ((5 + n) / 6) ** alpha


def beam_search(model, row, length, width, alpha):
    """The rule in Python lists: keep the best ``width`` continuations, ended captions continue as they are."""
    beams = [((IDS.start,), 0.0, 0)]
    for _ in range(length - 1):
        grown = []
        for text, total, n in beams:
            if text[-1] == IDS.end:
                grown.append((text, total, n))
                continue
            for token, p in enumerate(next_log_p(model, row, text)):
                if np.isfinite(p):
                    grown.append(((*text, token), total + p, n + 1))
        beams = sorted(grown, key=lambda g: -score(g[1], g[2], alpha))[:width]
    return beams[0][:2]


def every_caption(model, row, length):
    """(caption, log-probability, tokens behind the start) of all that are possible."""
    open_, done = [((IDS.start,), 0.0)], []
    for n in range(1, length):
        grown = []
        for text, total in open_:
            log_p = next_log_p(model, row, text)
            for token in range(V):
                if np.isfinite(log_p[token]):
                    item = (*text, token), total + log_p[token]
                    done.append((*item, n)) if token == IDS.end or n == length - 1 else grown.append(item)
        open_ = grown
    return done


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_beam_as_wide_as_the_tree_finds_the_best_caption(alpha):
    model, length = language_model(0, end=1.5), 5
    tokens, log_p = run(model, Beam(125, alpha), length)
    ends = set()
    for row in range(3):
        every = every_caption(model, row, length)
        np.testing.assert_allclose(np.logaddexp.reduce([p for _, p, _ in every]), 0, atol=1e-9)
        best = max(every, key=lambda c: score(c[1], c[2], alpha))
        assert tokens[row].tolist() == padded(best[0], length)
        np.testing.assert_allclose(log_p[row], best[1], rtol=1e-5)
        ends.add(best[2])
    assert alpha or len(ends) > 1  # short and long captions are among the best


@pytest.mark.parametrize(
    ("seed", "width", "alpha", "end"),
    [
        (1, 4, 2.0, -2.0),
        (5, 3, 0.0, 0.0),
        pytest.param(11, 4, 0.6, -2.0, marks=pytest.mark.slow),
        pytest.param(8, 2, 1.0, -2.0, marks=pytest.mark.slow),
    ],
)
def test_narrow_beams_against_python_lists(seed, width, alpha, end):
    model, length = language_model(seed, b=7, end=end), 9
    tokens, log_p = run(model, Beam(width, alpha), length)
    greedy = run(model, Greedy(), length)[0]
    for row in range(7):
        text, total = beam_search(model, row, length, width, alpha)
        assert tokens[row].tolist() == padded(text, length)
        np.testing.assert_allclose(log_p[row], total, rtol=1e-5)
    assert (tokens != greedy).any()


def test_greedy_against_a_loop_and_a_beam_of_one():
    model, length = language_model(2, b=9, end=1.0), 12
    tokens, log_p = run(model, Greedy(), length)
    lengths = set()
    for row in range(9):
        text, total = [IDS.start], 0.0
        while len(text) < length and text[-1] != IDS.end:
            p = next_log_p(model, row, text)
            text.append(int(p.argmax()))
            total += p.max()
        assert tokens[row].tolist() == padded(text, length)
        np.testing.assert_allclose(log_p[row], total, rtol=1e-5)
        lengths.add(len(text))
    assert len(lengths) > 2 and length in lengths
    for alpha in (0.0, 3.0):
        same = run(model, Beam(1, alpha), length)
        np.testing.assert_array_equal(same[0], tokens)
        np.testing.assert_allclose(same[1], log_p, rtol=1e-6)


def test_padding_may_be_the_end_token():
    """Then it still ends captions, as in CLIP's tokenizer of Hugging Face."""
    model = language_model(2, b=9, end=1.0)
    ids = Tokens(start=1, end=2, pad=2)
    tokens, _ = run(model, Greedy(), 12, ids=ids)
    banned, _ = run(model, Greedy(), 12)
    ended = (tokens == 2).any(1)
    assert ended.any() and not ended.all() and (tokens == 0).any()  # 0 is a token like any other
    for row in tokens[ended]:
        assert (row[row.tolist().index(2) :] == 2).all()
    assert not (banned[:, 1:] == IDS.start).any()


def test_ties_go_to_the_lowest_id():
    a, e, u, x, bias = language_model(0)
    flat = (a, e, np.zeros_like(u), x, bias)
    assert run(flat, Greedy(), 5)[0].tolist() == [[1, 2, 0, 0, 0]] * 3
    same = [0, 1, 2, 3, 3, 3]
    tokens = run((a, e[same], u[:, same], x, bias - 9 * np.eye(6)[2]), Beam(3, 0.0), 4)[0]
    assert set(tokens[:, 1:].ravel()) == {3}


@pytest.mark.parametrize("rows", [[6, 2, 3], pytest.param([1], marks=pytest.mark.slow)], ids=str)
def test_nothing_depends_on_the_other_images_of_a_batch(rows):
    """Neither on which they are, nor on how long theirs take."""
    model = language_model(1, b=8, end=-2.0)
    for decoder in (Beam(4, 2.0), Nucleus(0.8, seed=3)):
        tokens, log_p = run(model, decoder, 10)
        part = (*model[:3], model[3][rows], model[4])
        some = run(part, decoder, 10, rows=rows)
        np.testing.assert_array_equal(some[0], tokens[rows])
        np.testing.assert_allclose(some[1], log_p[rows], rtol=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize(("p", "temperature"), [(0.7, 1.0), (0.95, 0.6), (1.0, 1.5), (1e-6, 1.0)])
def test_nucleus_draws_as_often_as_it_should(p, temperature):
    """Frequencies of the first token against the nucleus computed independently."""
    b, v = 4000, 17
    a, e, u, x, bias = language_model(8, b=1, v=v)
    model = (a, e, u, np.repeat(x, b, 0), bias)
    tokens, log_p = run(model, Nucleus(p, temperature, seed=5), 2)
    plain = next_log_p(model, 0, [IDS.start])
    np.testing.assert_allclose(log_p, plain[tokens[:, 1]], rtol=1e-4)
    q = np.exp(plain / temperature)
    q /= q.sum()
    nucleus, mass = [], 0.0
    for token in sorted(range(v), key=lambda t: -q[t]):
        if mass < p and q[token] > 0:
            nucleus.append(token)
            mass += q[token]
    drawn = np.bincount(tokens[:, 1], minlength=v) / b
    expected = np.where(np.isin(np.arange(v), nucleus), q, 0) / mass
    assert set(np.flatnonzero(drawn)) <= set(nucleus)
    assert np.abs(drawn - expected).max() < 4 * np.sqrt(0.25 / b)
    assert (len(nucleus) == 1) == (p < 0.01) and (len(nucleus) == v - 2) == (p == 1.0)


def test_nucleus_differs_by_seed_image_and_position():
    model = language_model(8, b=1, end=-9.0)
    model = (*model[:3], np.repeat(model[3], 50, 0), model[4])
    one, again, other = (run(model, Nucleus(1.0, 3.0, seed), 8)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any() and len({tuple(row) for row in one.tolist()}) > 25
    assert any(len(set(row[1:])) > 3 for row in one.tolist())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Beam(0), "width=0 is not allowed"),
        (lambda: Beam(2, -1.0), "length_penalty=-1.0 is not allowed"),
        (lambda: Nucleus(0.0), r"p=0.0 is not allowed; give a number in \(0, 1\]"),
        (lambda: Nucleus(1.5), "p=1.5"),
        (lambda: Nucleus(0.5, 0.0), "temperature=0.0 is not allowed; give a positive number; 'greedy' is its limit 0"),
    ],
)
def test_impossible_decoders(make, text):
    with pytest.raises(UserError, match=text):
        make()


def test_decoders_in_a_configuration():
    kind = Annotated[object, Choice(DECODERS)]
    assert parse(kind, "beam(6, length_penalty=1.0)") == Beam(6, 1.0)
    assert parse(kind, "nucleus(0.5, seed=7)") == Nucleus(0.5, 1.0, 7)
    assert parse(kind, {"name": "greedy"}) == Greedy() and hash(Beam(2)) == hash(Beam(2))
    with pytest.raises(UsageError, match="did you mean 'beam'"):
        parse(kind, "bean(3)")


# --- a CoCa ---

FIELDS = {
    "image_tower": {"name": "vit", "patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "num_classes": 0},
    "text_tower": {"vocab_size": 20, "length": 9, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "pool": "cls"},
    "decoder": {"depth": 1, "heads": 2, "mlp_dim": 32},
    "embed_dim": 16, "queries": 3, "pool_heads": 2,
}  # fmt: skip
CAPTION = {"start_id": 1, "end_id": 2, "pad_id": 0, "length": 10}


def apply(params, *inputs, **options):
    return coca().apply({"params": params}, *inputs, **options)


@functools.cache
def coca():
    return models.create("coca", **{**FIELDS, "text_tower": FIELDS["text_tower"] | {"end_id": 2, "pad_id": 0}})


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(coca().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 9), jnp.int32))
    rng = np.random.default_rng(1)

    def one(path, s):
        scale = "scale" in jax.tree_util.keystr(path)
        return jnp.asarray(scale + rng.normal(scale=0.3, size=s.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(one, nn.unbox(shapes["params"]))


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(1).normal(size=(16, 8, 8, 3)), jnp.float32)


@pytest.fixture(scope="module")
def logits():
    return jax.jit(lambda p, image, text: apply(p, text, apply(p, image, method="encode")[1], method="caption_logits"))


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits[..., [0, 1]] = -np.inf
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


@functools.partial(jax.jit, static_argnums=2)
def captions(params, image, decoder):
    return generate(apply, params, image, **CAPTION, decoder=decoder)


@pytest.fixture(scope="module")
def searched(params, image):
    return captions(params, image, Beam(3))


def test_a_coca_decodes_as_without_a_cache(params, image, logits, searched):
    """Greedy decoding token by token through the whole model; the log-probability of a beam's caption likewise."""
    greedy, beam = captions(params, image, Greedy()), searched
    text = np.zeros((16, 10), np.int32)
    text[:, 0] = 1
    for at in range(1, 10):
        step = log_softmax(logits(params, image, text[:, :9]))[:, at - 1].argmax(-1)
        text[:, at] = np.where((text[:, :at] == 2).any(1), 0, step)
    np.testing.assert_array_equal(greedy.tokens, text)
    assert len({tuple(row) for row in text.tolist()}) > 8
    for found in (greedy, beam):
        tokens = np.asarray(found.tokens)
        each = np.take_along_axis(log_softmax(logits(params, image, tokens[:, :9])), tokens[:, 1:, None], -1)[..., 0]
        said = np.cumsum(np.pad(tokens, ((0, 0), (1, 0)))[:, 1:-1] == 2, axis=1) == 0
        np.testing.assert_allclose(found.log_p, np.where(said, each, 0).sum(1), rtol=1e-4)
    better = np.asarray(beam.log_p) - np.asarray(greedy.log_p)
    assert (np.asarray(beam.tokens) != text).any() and better.max() > 0.01


@pytest.mark.thorough
def test_eight_devices_write_the_same(params, image, searched):
    mesh = sharding.make_mesh(sharding.MeshConfig(replica=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        split = captions(params, sharding.put({"image": np.asarray(image)}, mesh)["image"], Beam(3))
    np.testing.assert_array_equal(split.tokens, searched.tokens)
    np.testing.assert_allclose(split.log_p, searched.log_p, rtol=1e-4)
    assert split.tokens.sharding.shard_shape((16, 10))[0] == 4


def test_mistakes(params, image):
    with pytest.raises(UserError, match=r"captions of 11 tokens .* choose between 2 and 10\."):
        generate(apply, params, image, **CAPTION | {"length": 11}, decoder=Greedy())
    with pytest.raises(UserError, match=r"captions of 1 tokens"):
        generate(apply, params, image, **CAPTION | {"length": 1}, decoder=Greedy())
    tower = models.create("vit", patch=4, width=16, depth=1, heads=2, mlp_dim=32, num_classes=0)
    with pytest.raises(UserError, match="a ViT has no caption decoder; captions need a CoCa"):
        generate(lambda p, *a, **k: tower.apply({"params": p}, *a, **k), {}, image, **CAPTION, decoder=Greedy())
    tokenizer = type("T", (), {"start_id": None})
    with pytest.raises(UserError, match="this tokenizer has no token that starts a text"):
        special_ids(tokenizer)
