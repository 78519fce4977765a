"""The metadata is in ``pyproject.toml``; here is only that the recipes of ``configs/`` are part of the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["vit_jax", "vit_jax.*"]), "vit_jax.configs"],
    package_dir={"vit_jax.configs": "configs"},
)
