"""Steps from shapes alone."""

import jax
import numpy as np
import pytest

from vit_jax.config import parse
from vit_jax.plan import program
from vit_jax.train.config import TrainConfig


def test_data_that_is_not_here_is_taken_to_be_as_large_as_is_said(tiny):
    config = parse(TrainConfig, tiny(data={"path": "tar:/nowhere/{000..999}.tar"}))
    absent, notes = program.without_data(config, None, None)
    train, val = absent.data.open("train"), absent.data.open("val")
    assert len(train) == 1_281_167 and train.info.num_classes == val.info.num_classes == 1000
    assert "/nowhere" in notes[0] and "1,281,167 examples of 1,000 classes; --examples" in notes[1]
    absent, notes = program.without_data(config, 50, 7)
    info = absent.data.open("train").info
    assert (info.num_examples, info.num_classes) == (50, 7) and notes == ["50 examples of 7 classes."]


def test_what_is_here_tells_its_size_and_is_not_read(tiny):
    here, notes = program.without_data(parse(TrainConfig, tiny()), None, None)
    assert here.data.open("train").info.num_classes == 4 and len(here.data.open("train")) == 64 and notes == []
    assert program.without_data(parse(TrainConfig, tiny()), None, 9)[0].data.open("train").info.num_classes == 9


def test_captions_need_a_tokenizer_and_no_data(tiny):
    text = {"tokenizer": "bytes", "length": 12}
    raw = tiny(data={"path": "csv:/nowhere.csv", "text": text})
    info = program.without_data(parse(TrainConfig, raw), None, None)[0].data.open("train").info
    assert info.num_examples == 400_000_000 and info.num_classes == 0 and info.encoder.length == 12


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (65.5G) exceeds "
         "available HBM (15.75G).", int(65.5 * 2**30)),
        ("RESOURCE_EXHAUSTED: something else", 0),
        ("INTERNAL: temporaries (1G) exceeds", 0),
    ],
)  # fmt: skip
def test_what_the_compiler_refuses_as_too_large_is_told_from_other_refusals(message, size):
    assert program.refused(message) == size


def test_parts_of_a_state_add_up(tiny):
    config = program.without_data(parse(TrainConfig, tiny()), None, None)[0]
    setup = program.setup_for(config, jax.devices()[:1])
    parts = program.per_device(setup, None)
    weights = sum(np.prod(x.shape) for x in jax.tree.leaves(setup.shapes.params))
    assert parts["parameters"] == 4 * weights and parts["optimizer"] >= 8 * weights and parts["teacher"] == 0
    assert parts["average and other state"] == 4 * weights + 4 and parts["batch"] == 16 * (8 * 8 * 3 + 8 + 4 + 1 + 4)
