import dataclasses

import numpy as np
import pytest

from vit_jax.data.check import check
from vit_jax.data.sources import open_source
from vit_jax.data.sources.fake import Fake
from vit_jax.types import UserError


def test_every_unreadable_image_is_found(folder):
    broken = folder / "ant/ant.0.jpg"
    broken.write_bytes(broken.read_bytes()[:-30])
    (folder / "dog/zero.png").touch()
    source = open_source(f"folder:{folder}", holdout=0)
    report = check(source, workers=2)
    assert [source[i]["name"].rpartition("/")[2] for i in report.unreadable] == ["ant.0.jpg", "zero.png"]
    assert report.counts.tolist() == [11, 17, 9]
    assert all("unreadable or truncated" in reason for reason in report.unreadable.values())


def test_many_parts():
    report = check(Fake(333, 4, 3))
    assert report.unreadable == {} and np.array_equal(report.counts, [111, 111, 111])


def test_labels_outside_the_classes():
    class Mislabelled(Fake):
        def __getitem__(self, i):
            return {**super().__getitem__(i), "label": -1}

    with pytest.raises(UserError, match=r"the label -1 of fake\[0\] is outside 0\.\.1"):
        check(Mislabelled(5, 4, 2))


def test_captions_are_measured_and_bad_ones_found():
    class Titled(Fake):
        def __getitem__(self, i):
            captions = {3: ("",), 70: (), 100: ("ä\udcff",), 101: ("ääääää",)}.get(i, ("four", "x"))
            return {**super().__getitem__(i), "label": 0, "captions": captions}

    source = Titled(130, 4, 1)
    source.info = dataclasses.replace(source.info, class_names=(), captions=2)
    report = check(source, workers=2)
    assert list(report.unreadable) == [3, 70, 100] and report.counts.tolist() == []
    assert report.captions == 2 * 126 + 1 and report.longest == 12
    assert "is empty" in report.unreadable[3] and "no caption" in report.unreadable[70]


def test_captions_that_are_not_wanted_are_not_judged():
    report = check(Fake(20, 4, 2))
    assert (report.captions, report.longest) == (0, 0)
