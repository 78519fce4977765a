"""Packages that are not there, and PyTorch's models as functions of arrays."""

import numpy as np
import pytest

from vit_jax.convert.peer import packages, torch_peer
from vit_jax.types import UserError


def test_packages_that_are_not_there():
    words = r"^proving takes .* \(No module named 'nobody_has_this'\): pip install"
    with pytest.raises(UserError, match=words), packages("proving"):
        import nobody_has_this  # noqa: F401
    with pytest.raises(UserError, match="operator torchvision::nms does not exist"), packages("proving"):
        raise RuntimeError("operator torchvision::nms does not exist\nmore")
    with packages("proving"):
        import json  # noqa: F401


def test_arrays_in_and_out(torch, rng):
    images, texts = rng.normal(size=(2, 4, 5, 3)).astype(np.float32), np.array([[1, 2], [3, 4]], np.int32)
    np.testing.assert_array_equal(torch_peer(lambda x: 2 * x)(images), 2 * images.transpose(0, 3, 1, 2))
    found = torch_peer(lambda x, t: {"image": x[:, 0], "text": t + torch.ones(2, dtype=torch.int64)})(images, texts)
    np.testing.assert_array_equal(found["image"], images[..., 0])
    np.testing.assert_array_equal(found["text"], texts + 1)
