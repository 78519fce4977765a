"""PyTorch's models as functions of arrays."""

import numpy as np

from vit_jax.convert.peer import torch_peer


def test_arrays_in_and_out(torch, rng):
    images, texts = rng.normal(size=(2, 4, 5, 3)).astype(np.float32), np.array([[1, 2], [3, 4]], np.int32)
    np.testing.assert_array_equal(torch_peer(lambda x: 2 * x)(images), 2 * images.transpose(0, 3, 1, 2))
    found = torch_peer(lambda x, t: {"image": x[:, 0], "text": t + torch.ones(2, dtype=torch.int64)})(images, texts)
    np.testing.assert_array_equal(found["image"], images[..., 0])
    np.testing.assert_array_equal(found["text"], texts + 1)
