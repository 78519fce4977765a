"""``tfds:NAME[:SPLIT]`` or ``tfds:/folder[:SPLIT]``: prepared TensorFlow Datasets, read without TensorFlow."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from vit_jax.config import suggest
from vit_jax.data.sources import splits
from vit_jax.data.sources.base import Info, Record, Source, as_captions, digest, take_split
from vit_jax.io.extras import needed
from vit_jax.types import UserError

CAPTION_KEYS = ("captions", "caption", "text")
MAX_CAPTIONS = 5
"""Of a list of captions the first five are taken, as evaluations on COCO do: only reading all would tell the most."""


class Tfds:
    """One split, in its own order, images left encoded; prepared as ArrayRecord or Parquet (TFRecord has no index).

    Images have a ``ClassLabel``, captions (``captions``, ``caption`` or ``text``: a ``Text``, or a sequence of texts or
    of dictionaries with ``text``, like ``coco_captions``), or both.
    """

    def __init__(self, builder: Any, split: str):
        import tensorflow_datasets as tfds

        features = dict(builder.info.features.items())
        self.image_key = _feature(features, tfds.features.Image, "image", builder.name)
        self.caption_key = next((key for key in CAPTION_KEYS if _holds_text(features.get(key))), None)
        optional = self.caption_key and not any(isinstance(f, tfds.features.ClassLabel) for f in features.values())
        self.label_key = None if optional else _feature(features, tfds.features.ClassLabel, "label", builder.name)
        try:
            decoders = {self.image_key: tfds.decode.SkipDecoding()}
            self.data = builder.as_data_source(split, decoders=decoders)
        except NotImplementedError:
            raise UserError(
                f"'tfds:{builder.name}' is not prepared for random access in {builder.data_dir}; "
                f"run: tfds build {builder.name} --file_format=array_record"
            ) from None
        except (ValueError, KeyError) as e:
            there = list(builder.info.splits)
            raise UserError(f"{split!r} is no split of {builder.name} ({str(e)[:80]}){suggest(split, there)}") from None
        self.name = f"{builder.name} {split}"
        names = tuple(features[self.label_key].names) if self.label_key else ()
        listed = self.caption_key and not isinstance(features[self.caption_key], tfds.features.Text)
        note = f"of the captions of an image in {self.name} the first {MAX_CAPTIONS} are taken, if it has more."
        captions = MAX_CAPTIONS if listed else int(self.caption_key is not None)
        known = digest(builder.info.full_name, split, names)
        self.info = Info(names, len(self.data), (note,) if listed else (), captions, digest=known)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Record:
        if not 0 <= i < len(self):
            raise IndexError(i)
        example = self.data[i]
        label = int(example[self.label_key]) if self.label_key else 0
        record: Record = {"image": example[self.image_key], "label": label, "name": f"{self.name}[{i}]"}
        if self.caption_key:
            texts = example[self.caption_key]
            record["captions"] = as_captions(texts["text"] if isinstance(texts, dict) else texts)[:MAX_CAPTIONS]
        return record


def open_tfds(rest: str, split: str, *, holdout: float | int, seed: int) -> Source:
    """Opens ``train`` or ``validation``; without the latter, or with SPLIT given, holds some out.

    The held-out examples are a seeded sample, not stratified: labels are known only after reading every example.
    """
    match = re.fullmatch(r"([^:]+(?::\d+\.\d+\.\d+)?)(?::(.+))?", rest)
    if not match:
        raise UserError(f"'tfds:{rest}' cannot be read; write tfds:NAME, tfds:NAME:SPLIT or tfds:/folder/of/a/version.")
    builder = _builder(match[1])
    if match[2] is None:
        val = splits.choose(builder.info.splits, "val")
        if val:
            return Tfds(builder, "train" if split == "train" else val)
    data = Tfds(builder, match[2] or "train")
    return take_split(data, np.zeros(len(data), np.int32), split, holdout, seed, f"tfds:{rest}")


def _builder(place: str) -> Any:
    with needed("a tfds: source", "tfds"):
        import array_record.python  # noqa: F401, which tfds misses only once it reads
        import tensorflow_datasets as tfds  # more than half a second

    try:
        with _only_known_features(tfds.features.FeatureConnector):
            if os.path.isdir(os.path.expanduser(place)):
                return tfds.builder_from_directory(os.path.expanduser(place))
            return tfds.builder(place)
    except tfds.core.DatasetNotFoundError:
        near = suggest(place, tfds.list_builders(with_community_datasets=False))
        raise UserError(f"no folder and no TensorFlow dataset is called {place!r}{near}") from None
    except Exception as e:  # a folder of something else, a builder whose own imports are absent
        why = (str(e) or type(e).__name__).splitlines()[0]
        raise UserError(f"'tfds:{place}' cannot be opened ({why[:200]}).") from None


@contextlib.contextmanager
def _only_known_features(base: Any) -> Iterator[None]:
    """Classes of features that a folder's ``features.json`` names are those of the library: no other is imported.

    The library would import any module of that name, from the current folder too, which runs its code.
    """
    original = base.__dict__["cls_from_name"]

    def known(cls: Any, name: str) -> Any:
        if name not in base._registered_features and not name.startswith("tensorflow_datasets."):
            raise ValueError(f"it names the feature {name[:80]!r}, which is none of tensorflow_datasets")
        return original.__func__(cls, name)

    base.cls_from_name = classmethod(known)
    try:
        yield
    finally:
        base.cls_from_name = original


def _feature(features: Any, kind: type, what: str, name: str) -> str:
    """The feature called ``what`` if it is of that kind, else the only one that is."""
    keys = [key for key, feature in features.items() if isinstance(feature, kind)]
    if what in keys or len(keys) == 1:
        return what if what in keys else keys[0]
    raise UserError(
        f"'tfds:{name}' has {len(keys)} features of kind {kind.__name__}, expected one, or one named {what!r}."
    )


def _holds_text(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Sequence | tfds.features.Dataset):
        feature = feature.feature
    if isinstance(feature, tfds.features.FeaturesDict):
        feature = dict(feature.items()).get("text")
    return isinstance(feature, tfds.features.Text)
