"""Names and shapes of others' files, written down from the projects' own code."""

import itertools
import json
import pathlib
import re

import numpy as np
import pytest

from vit_jax.io.tensors import Tensor

GOLDEN = pathlib.Path(__file__).parent / "golden"


def expand(pattern):
    """``"a{0-2}/{b,c}"`` -> all names that it stands for, as a shell would."""
    parts = re.split(r"\{(.*?)\}", pattern)
    choices = [[part] if i % 2 == 0 else alternatives(part) for i, part in enumerate(parts)]
    return ["".join(names) for names in itertools.product(*choices)]


def alternatives(text):
    if match := re.fullmatch(r"(\d+)-(\d+)", text):
        return [str(i) for i in range(int(match[1]), int(match[2]) + 1)]
    return text.split(",")


def golden(file, name):
    """Name -> shape."""
    tree = json.loads((GOLDEN / f"{file}.json").read_text())[name]
    return {name: tuple(shape) for pattern, shape in tree.items() for name in expand(pattern)}


def unread(shapes):
    """Tensors of these shapes that must not be read."""
    return {name: Tensor(shape, np.dtype("float32"), lambda: pytest.fail("was read")) for name, shape in shapes.items()}
