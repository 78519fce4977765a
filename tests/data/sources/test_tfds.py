import io
import json
import pickle
import shutil
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


def test_tensorflow_is_not_needed(prepared, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert open_source(f"tfds:{prepared}")[0]["image"] in IMAGES


@pytest.mark.slow
def test_tensorflow_is_never_imported(prepared):
    code = (
        "import sys; from vit_jax.data.sources import open_source; "
        "assert 'tensorflow_datasets' not in sys.modules; "
        f"open_source('tfds:{prepared}')[0]; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module", params=["dictionaries", "texts", "one", "labelled"])
def captioned(request, tmp_path_factory):
    """(kind, place) of images with captions: like coco_captions, as a list, one each, or one beside a label."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    kind = request.param
    features = {
        "dictionaries": {"captions": tfds.features.Sequence({"id": np.int64, "text": text}), "objects": text},
        "texts": {"captions": tfds.features.Sequence(text)},
        "one": {"caption": text},
        "labelled": {"text": text, "label": tfds.features.ClassLabel(names=["x", "y"])},
    }[kind]

    def example(i):
        texts = [f"käse {i}.{k}" for k in range(1 + i % 7)]
        return {
            "dictionaries": {"captions": [{"id": k, "text": t} for k, t in enumerate(texts)], "objects": "no"},
            "texts": {"captions": texts},
            "one": {"caption": texts[0]},
            "labelled": {"text": texts[0], "label": i % 2},
        }[kind]

    class Captions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            image = {"image": tfds.features.Image(shape=(None, None, 3))}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({**image, **features}))

        def _split_generators(self, download_manager):
            return {"train": self._generate_examples(0, 20), "val": self._generate_examples(20, 30)}

        def _generate_examples(self, start, stop):
            for i in range(start, stop):
                yield i, {"image": io.BytesIO(IMAGES[i]), **example(i)}

    builder = Captions(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return kind, builder.data_dir


def test_captions(captioned):
    kind, place = captioned
    listed = kind in ("dictionaries", "texts")
    for split, numbers in (("train", range(20)), ("val", range(20, 30))):
        source = open_source(f"tfds:{place}", split)
        assert source.info.captions == (5 if listed else 1)
        assert source.info.class_names == (("x", "y") if kind == "labelled" else ())
        assert len(source.info.notes) == listed and len(source) == len(numbers)
        seen = {}
        for k in range(len(source)):
            i = IMAGES.index(source[k]["image"])
            texts = tuple(f"käse {i}.{k}" for k in range(1 + i % 7))
            assert source[k]["captions"] == (texts[:5] if listed else texts[:1])
            assert source[k]["label"] == (i % 2 if kind == "labelled" else 0)
            seen[i] = k
        assert sorted(seen) == list(numbers)


def nested(value, old, new):
    """``value`` with the first string that contains ``old`` replaced by ``new``, wherever it is; and whether."""
    if isinstance(value, str):
        return (new, True) if old in value else (value, False)
    items = (
        list(value.items() if isinstance(value, dict) else enumerate(value)) if isinstance(value, dict | list) else []
    )
    for key, inner in items:
        found, done = nested(inner, old, new)
        if done:
            value[key] = found
            return value, True
    return value, False


@pytest.mark.parametrize(
    "where", ["features_dict.FeaturesDict", "image_feature.Image", "class_label_feature.ClassLabel"]
)
def test_what_a_folder_names_is_not_imported(prepared, tmp_path, monkeypatch, where):
    """A data set of a stranger's with a module beside it: the library would import it, and so run it."""
    shutil.copytree(prepared, tmp_path / "data")
    (tmp_path / "evilmod.py").write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "data/features.json"
    value, done = nested(json.loads(path.read_text()), where, "evilmod.X")
    assert done
    for changed in (value, {"type": "evilmod.X", "content": {}}, {"python_class_name": "evilmod.X"}):
        path.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"cannot be opened \(it names the feature 'evilmod.X', which is none of"):
            open_source(f"tfds:{tmp_path}/data")
    assert not (tmp_path / "ran").exists() and "evilmod" not in sys.modules


def test_other_metadata_of_a_folder_import_nothing(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "data")
    (tmp_path / "evilmod.py").write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "data/dataset_info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "moduleName": "evilmod"}))
    assert len(open_source(f"tfds:{tmp_path}/data")) == 23
    assert not (tmp_path / "ran").exists() and "evilmod" not in sys.modules


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 9_999, "null", '{"pythonClassName": "x"}', '{"type": 5, "content": 1}']
)
def test_damaged_metadata(prepared, tmp_path, text):
    shutil.copytree(prepared, tmp_path / "data")
    for name in ("features.json", "dataset_info.json"):
        kept = (tmp_path / "data" / name).read_text()
        (tmp_path / "data" / name).write_text(text)
        with pytest.raises(UserError, match="cannot be opened"):
            open_source(f"tfds:{tmp_path}/data")
        (tmp_path / "data" / name).write_text(kept)
