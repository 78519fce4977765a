"""Vision and image-text Transformers in JAX: train, evaluate, compress, explain and ship."""

__version__ = "0.2.0"
