"""What our models compute, each in one program."""

import jax
import numpy as np


def both(model, image, *, train=False):
    """Features and logits of an image model, as a ``method`` of ``Module.apply``."""
    found = model.features(image, train=train)
    return found, model.classify(found) if model.num_classes else found.pooled


def captured(stored, *inputs, also=(), **options):
    """The model's result, and by name what its encoder's blocks (and modules in ``also``) give.

    ``options`` are of ``Module.apply``.
    """

    def wanted(module, method):
        name = str(module.name)
        return method == "__call__" and (name.startswith("block_") or name in also)

    @jax.jit
    def run(params, *inputs):
        return stored.model.apply(
            {"params": params}, *inputs, capture_intermediates=wanted, mutable=["intermediates"], **options
        )

    result, state = run(stored.tree(), *inputs)
    seen = state["intermediates"]["encoder"]
    return jax.tree.map(np.asarray, result), {name: np.asarray(value["__call__"][0]) for name, value in seen.items()}
