"""Sources that a class of one's own makes."""

import numpy as np
import pytest

from vit_jax.config import known
from vit_jax.data.sources import Info, open_source
from vit_jax.imports import Import
from vit_jax.types import UsageError


class Shapes:
    def __init__(self, num_examples, first=0):
        self.first, self.info = first, Info(class_names=("a",), num_examples=num_examples // 1)

    def __len__(self):
        return self.info.num_examples

    def __getitem__(self, i):
        return {"image": np.zeros((2, 2, 3), np.uint8), "label": 0, "name": f"shape {self.first + i}"}


class Mute(Shapes):
    def __init__(self):
        pass


PARTS = Import("/my/parts.py", "ab", {"Shapes": Shapes, "Mute": Mute, "fake": Shapes, "Info": Info})


def test_a_class_opens_a_source():
    with known([PARTS]):
        assert len(open_source("Shapes:40", holdout=0)) == 40
        found = open_source("Shapes(30, first=7)", "val", holdout=10)
        assert len(found) == 10 and found[0]["name"].startswith("shape ")
        assert "the 30 examples of 'Shapes(30, first=7)'" in found.info.notes[0]
        assert len(open_source("mix:1*Shapes:4+1*Shapes:4", holdout=0)) == 8
        assert open_source("digits", holdout=0).info.class_names == tuple("0123456789")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("Shaps:4", "unknown source 'Shaps'; did you mean 'Shapes'?"),
        ("Shapes", "/my/parts.py: TypeError: "),
        ("Shapes:x", "/my/parts.py: TypeError: unsupported operand"),
        ("Shapes(x", "the source='Shapes(x' cannot be read"),
        ("Mute", "the source 'Mute': Mute has no attribute 'info' that tells of its examples."),
        (
            "fake:80x8x4",
            "the source 'fake:80x8x4': 'fake' is a class of /my/parts.py, and a kind of sources with",
        ),
        ("Info:3", "unknown source 'Info'"),
    ],
)
def test_wrong_sources(path, text):
    with known([PARTS]), pytest.raises(UsageError) as e:
        open_source(path, holdout=0)
    assert text in str(e.value)


def test_nobody_else_knows_it():
    with pytest.raises(UsageError, match="unknown source 'Shapes'"):
        open_source("Shapes:40")
