"""Two towers of a few numbers, written without any module, with dropout and a caption decoder."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.two_tower import Embedded

WORDS, LENGTH, SIZE, WIDTH, END = 11, 6, 5, 4, 1


def unit(x):
    return x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True))


def tower(params, image, text, *, train, rngs):
    """Image features and mean word vectors, one linear map each, dropout on both inputs."""
    words = params["words"][text]
    end = jnp.asarray(text == END).astype(jnp.int32)
    real = jnp.cumsum(end, 1) - end == 0
    sentence = jnp.mean(words, 1)
    if train and "dropout" in rngs:
        keys = jax.random.split(rngs["dropout"])
        image = image * jax.random.bernoulli(keys[0], 0.7, image.shape).astype(image.dtype) / 0.7
        sentence = sentence * jax.random.bernoulli(keys[1], 0.7, sentence.shape).astype(image.dtype) / 0.7
    x, y = unit(jnp.tanh(image @ params["image"])), unit(sentence @ params["text"])
    hidden = jnp.tanh(words @ params["decoder"] + (image @ params["image"])[:, None])
    return Embedded(x, y, jnp.exp(params["logit_scale"]), params["logit_bias"], hidden, params["vocabulary"], real)


def silent(*args, **kwargs):
    """The same without a decoder."""
    return tower(*args, **kwargs)._replace(hidden=None, vocabulary=None, real=None)


def make(rng, size=16, dtype="float32"):
    shapes = {
        "image": (SIZE, WIDTH), "words": (WORDS, WIDTH), "text": (WIDTH, WIDTH), "decoder": (WIDTH, WIDTH),
        "vocabulary": (WIDTH, WORDS),
    }  # fmt: skip
    params = {k: rng.normal(size=s).astype(dtype) for k, s in shapes.items()}
    params |= {"logit_scale": np.array(1.2, dtype), "logit_bias": np.array(-1.0, dtype)}
    text = rng.integers(2, WORDS, (size, LENGTH)).astype(np.int32)
    ends = rng.integers(2, LENGTH, size)
    text[np.arange(size), ends] = END
    text[np.arange(LENGTH) > ends[:, None]] = 0
    mask = np.ones(size, bool)
    mask[[2, 3, 11]] = False
    return params, {"image": rng.normal(size=(size, SIZE)).astype(dtype), "text": text, "mask": mask}


@pytest.fixture(scope="session")
def towers():
    return types.SimpleNamespace(apply=tower, silent=silent, make=make, length=LENGTH, words=WORDS, end=END)
