"""What is tried out is a run from its beginning."""

import pytest

from vit_jax.find import base
from vit_jax.types import UsageError


def test_the_configuration_of_what_is_tried_out():
    raw = base.resolved("digits", {"optim.lr": 0.5})
    assert raw["optim"]["lr"] == 0.5 and raw["data"]["path"] == "digits"
    with pytest.raises(UsageError, match="resume_from goes on in the middle of a schedule; name what to start from"):
        base.resolved("digits", {"resume_from": "runs/x"})
