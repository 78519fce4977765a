import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

from vit_jax.data.sources import open_source
from vit_jax.data.sources.fake import Fake
from vit_jax.types import UserError


def test_images_are_a_pure_function_of_the_index():
    a, b = Fake(100, 16, 5), Fake(200, 16, 5)
    for i in (99, 3, 3):
        assert np.array_equal(a[i]["image"], b[i]["image"]) and a[i]["label"] == i % 5
    assert not np.array_equal(a[0]["image"], a[5]["image"])
    assert a[0]["image"].shape == (16, 16, 3) and a[0]["image"].dtype == np.uint8
    with pytest.raises(IndexError):
        a[100]


def test_a_model_can_learn_them():
    """Stripes have a random phase, so their autocorrelation tells the class, and a linear model on pixels would not."""
    source = Fake(300, 12, 4)
    grey = np.array([source[i]["image"].mean(-1) for i in range(300)])
    spectrum = np.abs(np.fft.fft2(grey - grey.mean((1, 2), keepdims=True))).reshape(300, -1)
    labels = np.arange(300) % 4
    model = RidgeClassifier().fit(spectrum[:200], labels[:200])
    assert model.score(spectrum[200:], labels[200:]) > 0.9


def test_path():
    train, val = open_source("fake:50x7x3"), open_source("fake:50x7x3", "val")
    assert (len(train), len(val), train.info.num_classes) == (45, 5, 3)
    assert open_source("fake:50")[0]["image"].shape == (32, 32, 3)


@pytest.mark.parametrize("rest", ["", "x", "0", "10x", "10x8x3x4", "-5"])
def test_unreadable_path(rest):
    with pytest.raises(UserError, match="write fake:EXAMPLES"):
        open_source(f"fake:{rest}")


def test_more_classes_than_examples():
    with pytest.raises(UserError, match=r"more classes \(10\) than examples \(5\)"):
        open_source("fake:5x8x10")


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("10000000000", "more examples than 16,777,216"),
        ("9" * 5000, "more examples than 16,777,216"),
        ("10x100000x2", "more pixels than 4,096"),
        ("9999999x8x2000000", "more classes than 1,048,576"),
    ],
)
def test_what_no_memory_holds(rest, says):
    with pytest.raises(UserError, match=says) as e:
        open_source(f"fake:{rest}")
    assert len(str(e.value)) < 200
