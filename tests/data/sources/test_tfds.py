import io
import pickle
import subprocess
import sys

import numpy as np
import pytest

from tests.data.helpers import encode
from vit_jax.data.sources import open_source
from vit_jax.types import UserError

IMAGES = [encode(np.full((4, 5, 3), 7 * i, np.uint8), "PNG") for i in range(30)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A real ArrayRecord data set with its metadata, prepared by tfds itself, which takes no TensorFlow."""
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # tfds would look for this file through a package it does not declare

        def _info(self):
            label = tfds.features.ClassLabel(names=["x", "y", "z"])
            features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3)), "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, download_manager):
            return {"train": self._generate_examples(0, 23), "validation": self._generate_examples(23, 30)}

        def _generate_examples(self, start, stop):
            for i in range(start, stop):
                yield i, {"image": io.BytesIO(IMAGES[i]), "label": i % 3}

    builder = Tiny(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir


def contents(source):
    return [(source[i]["label"], source[i]["image"]) for i in range(len(source))]


def test_own_splits(prepared):
    train, val = open_source(f"tfds:{prepared}"), open_source(f"tfds:{prepared}", "val")
    assert train.info.class_names == ("x", "y", "z") and (len(train), len(val)) == (23, 7)
    assert sorted(contents(train)) == sorted((i % 3, image) for i, image in enumerate(IMAGES[:23]))  # shuffled by tfds
    assert sorted(contents(val)) == sorted((i % 3, image) for i, image in enumerate(IMAGES) if i >= 23)
    assert contents(pickle.loads(pickle.dumps(val))) == contents(val)
    with pytest.raises(IndexError):
        val[7]


def test_named_split_is_held_out_by_seed(prepared):
    train, val = (open_source(f"tfds:{prepared}:train[:20]", split, holdout=5) for split in ("train", "val"))
    assert (len(train), len(val)) == (15, 5)
    whole = contents(open_source(f"tfds:{prepared}:train[:20]", holdout=0))
    assert sorted(contents(train) + contents(val)) == sorted(whole)


def test_mistakes(prepared, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"'trian' is no split of tiny .*did you mean 'train'"):
        open_source(f"tfds:{prepared}:trian")
    with pytest.raises(UserError, match="no TensorFlow dataset is called 'cifra10'; did you mean 'cifar10'"):
        open_source("tfds:cifra10")
    with pytest.raises(UserError, match=r"cannot be opened .*dataset_info\.json"):
        open_source(f"tfds:{tmp_path}")
    with pytest.raises(UserError, match="write tfds:NAME"):
        open_source("tfds:")


def test_not_prepared(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    builder = tfds.builder
    monkeypatch.setattr(tfds, "builder", lambda name: builder(name, data_dir=str(tmp_path)))
    with pytest.raises(UserError, match="run: tfds build mnist --file_format=array_record"):
        open_source("tfds:mnist")


def test_tensorflow_is_never_imported(prepared):
    code = (
        "import sys; from vit_jax.data.sources import open_source; "
        "assert 'tensorflow_datasets' not in sys.modules; "
        f"open_source('tfds:{prepared}')[0]; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
