"""Small data sets, made on the spot."""

import pathlib

import pytest

from tests.data.helpers import encode, random_image


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test touches the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vit_jax"


@pytest.fixture
def folder(tmp_path, rng) -> pathlib.Path:
    """Three classes of 17, 12 and 9 images of odd sizes, in several formats, one in a nested folder."""
    root = tmp_path / "images"
    for name, count in (("cat", 17), ("ant", 12), ("dog", 9)):
        (root / name / "deeper").mkdir(parents=True)
        for i in range(count):
            suffix, kind = [(".jpg", "JPEG"), (".PNG", "PNG"), (".jpeg", "JPEG"), (".webp", "WEBP"), (".bmp", "BMP")][
                i % 5
            ]
            place = root / name / ("deeper" if i == 3 else "") / f"{name}.{i}{suffix}"
            place.write_bytes(encode(random_image(rng, 5 + i, 9 + i % 3), kind))
    return root
