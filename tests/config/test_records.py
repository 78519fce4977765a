"""What files show of values of Python."""

import dataclasses
import json
from typing import Annotated, Any

import numpy as np

from vit_jax import config
from vit_jax.config import Choice
from vit_jax.layers.linear import Spec
from vit_jax.layers.linear.monarch import Monarch


@dataclasses.dataclass(frozen=True)
class Halved:
    by: float = 2.0


@dataclasses.dataclass(frozen=True)
class Once:
    pass


@dataclasses.dataclass(frozen=True)
class Twice(Once):
    pass


def test_a_class_of_a_row_comes_back_from_its_record():
    field = Annotated[Any, Choice({"unit": Twice, "dense": Once, "focal": config.Variant(Halved, {"by": 5.0})})]
    record = json.loads(json.dumps({"x": Halved(3.0), "y": Twice()}, default=config.record))
    assert config.parse(field, record["x"]) == Halved(3.0) and config.parse(field, record["y"]) == Twice()
    moved = {
        "python": "vit_jax.layers.monarch.Monarch",
        "nblocks": 8,
        "implementation": None,
    }  # where it was once
    assert config.parse(Spec, moved) == Monarch(8)


def test_records_of_values():
    values = {
        "array": np.arange(6, dtype=np.int32).reshape(2, 3),
        "number": np.float32(0.5),
        "duration": config.Duration(3, "epochs"),
        "class": Halved,
    }
    found = json.loads(json.dumps(values, default=config.record))
    about = {"python": "numpy.ndarray", "shape": [2, 3], "dtype": "int32"}
    assert found["array"] == {**about, "crc32": found["array"]["crc32"]}
    assert (
        found["number"] == 0.5
        and found["duration"] == "3 epochs"
        and found["class"] == {"python": f"{__name__}.Halved"}
    )
    other = json.loads(json.dumps(values["array"][:, ::-1], default=config.record))
    assert other["crc32"] != found["array"]["crc32"]
