"""Where examples come from: ``kind:rest`` strings, one row of :data:`SOURCES` per kind."""

from __future__ import annotations

from collections.abc import Callable

from vit_jax.config import lookup
from vit_jax.data.sources.base import Info, Record, Source
from vit_jax.data.sources.digits import open_digits
from vit_jax.data.sources.fake import open_fake
from vit_jax.data.sources.folder import open_folder
from vit_jax.data.sources.mixture import open_mixture
from vit_jax.data.sources.parquet import open_parquet
from vit_jax.data.sources.tar import open_tar, write_tar
from vit_jax.data.sources.tfds import open_tfds
from vit_jax.types import UserError

SOURCES: dict[str, Callable[..., Source]] = {
    "digits": open_digits,
    "fake": open_fake,
    "folder": open_folder,
    "mix": open_mixture,
    "parquet": open_parquet,
    "tar": open_tar,
    "tfds": open_tfds,
}


def open_source(path: str, split: str = "train", *, holdout: float | int = 0.1, seed: int = 0) -> Source:
    """Opens ``kind:rest``, for example ``"folder:/my/images"`` or ``"digits"``.

    Args:
      path: kind and place; see the module of each kind.
      split: ``"train"`` or ``"val"``; where the data has no split of its own, a seeded stratified one is made.
      holdout: fraction (below 1) or number of examples for ``"val"``; 0 trains on everything.
      seed: names the seeded split. It is not the seed of training.

    Raises:
      UserError: unknown kind, missing path, no examples, or one class only.
    """
    assert split in ("train", "val"), split
    if not path:
        raise UserError("data.path is empty; name the images, for example --config.data.path=folder:/my/images")
    kind, _, rest = path.partition(":")
    if kind not in SOURCES and kind.startswith(("/", ".", "~")):
        raise UserError(f"the path {path!r} does not say what it holds; write for example 'folder:{path}'.")
    source = lookup(SOURCES, kind, "source")(rest, split, holdout=holdout, seed=seed)
    if source.info.num_classes < 2:
        raise UserError(f"{path!r} has one class only ({', '.join(source.info.class_names)}); to classify takes two.")
    return source


__all__ = ["SOURCES", "Info", "Record", "Source", "open_source", "write_tar"]
