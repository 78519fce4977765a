"""Packages that are not there."""

import pytest

from vit_jax.convert.peer import packages
from vit_jax.types import UserError


def test_packages_that_are_not_there():
    words = r"^proving takes .* \(No module named 'nobody_has_this'\): pip install"
    with pytest.raises(UserError, match=words), packages("proving"):
        import nobody_has_this  # noqa: F401
    with pytest.raises(UserError, match="operator torchvision::nms does not exist"), packages("proving"):
        raise RuntimeError("operator torchvision::nms does not exist\nmore")
    with packages("proving"):
        import json  # noqa: F401
