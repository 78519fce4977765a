"""What is missing is named, with a command that brings it."""

import pathlib

import pytest

from vit_jax.io.extras import command, needed
from vit_jax.io.installation import Installation
from vit_jax.types import UserError


def test_packages_that_are_not_there():
    words = (
        r"^proving takes the extra 'torch' \(No module named 'nobody_has_this'\): pip install '.*\[torch\]', or not\.$"
    )
    with pytest.raises(UserError, match=words), needed("proving", "torch", ", or not"):
        import nobody_has_this  # noqa: F401
    with pytest.raises(UserError, match="operator torchvision::nms does not exist"), needed("proving", "torch"):
        raise RuntimeError("operator torchvision::nms does not exist\nmore")
    with pytest.raises(UserError, match=r"takes what comes with this package .*: pip install"), needed("a picture", ""):
        raise ImportError
    with needed("proving", "torch"):
        import json  # noqa: F401


@pytest.mark.parametrize(
    ("folder", "editable", "requirement", "expected"),
    [
        (None, False, "vit_jax", "pip install 'vit_jax[wandb]'"),
        (None, False, "vit_jax @ git+https://x.org/v@1", "pip install 'vit_jax[wandb] @ git+https://x.org/v@1'"),
        ("/a b/c", False, "vit_jax", "pip install '/a b/c[wandb]'"),
        ("/a", True, "vit_jax", "pip install -e '/a[wandb]'"),
        (".", False, "vit_jax", "pip install '.[wandb]'"),
    ],
)
def test_the_command_is_that_of_the_installation(folder, editable, requirement, expected):
    place = None if folder is None else pathlib.Path(folder).absolute()
    assert command("wandb", Installation(place, editable, requirement, None, None)) == expected


def test_without_an_extra():
    assert command("", Installation(None, False, "vit_jax", None, None)) == "pip install vit_jax"
