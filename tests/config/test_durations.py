"""Lengths of training."""

import pytest

from vit_jax.config import Duration, StepRange, parse
from vit_jax.types import UsageError


@pytest.mark.parametrize(
    ("written", "steps"),
    [
        ("20 epochs", 200), ("1 epoch", 10), ("0.25 epochs", 2), ("1000 steps", 1000), ("1 step", 1), ("7steps", 7),
        ("1e6 examples", 10_000), ("1.5e3 examples", 15), ("1 example", 0), ("5%", 25), ("12.5 percent", 62),
        (" 5 % ", 25),
        (30, 30), (2.0, 2), (0, 0), (".5 epochs", 5),
    ],
)  # fmt: skip
def test_durations(written, steps):
    length = Duration.parse(written, "d")
    assert length.steps(batch_size=100, num_examples=1000, total=500) == steps
    assert Duration.parse(str(length), "d") == length


@pytest.mark.parametrize(
    "written",
    ["3 weeks", "", "epochs", "-1 epochs", -1, "1.2.3 steps", ". steps", "1e400 steps", float("inf"), float("nan"),
     True, None, "5 %%", {"value": 3}, "__import__('os')"],
)  # fmt: skip
def test_wrong_durations(written):
    with pytest.raises(UsageError) as e:
        parse(Duration, written, "d")
    assert str(e.value).startswith(f"d={written!r} is no duration; write '20 epochs'")


def test_a_percentage_of_nothing():
    with pytest.raises(UsageError, match="cannot be '5%': a percentage of itself"):
        Duration(5, "percent").steps(batch_size=1, num_examples=1)


@pytest.mark.parametrize("written", ["100:105", " 7 : 7 ", "1:2147483647"])
def test_ranges_of_steps(written):
    steps = parse(StepRange, written, "s")
    assert (steps.first, steps.last) == tuple(map(int, written.split(":")))
    assert parse(StepRange, str(steps), "s") == steps == parse(StepRange, steps, "s")


@pytest.mark.parametrize(
    ("written", "says"),
    [
        *((x, f"s={x!r} is no range of steps; write 'FIRST:LAST'") for x in (100, "100", "1:2:3", "a:b", "-1:2", None)),
        ("5:2", "steps '5:2' end before they begin; write '2:5'."), ("0:2", "StepRange.first=0 is not allowed"),
        ("1:9999999999", "StepRange.last=9999999999 is not allowed"),
    ],
)  # fmt: skip
def test_wrong_ranges_of_steps(written, says):
    with pytest.raises(UsageError) as e:
        parse(StepRange, written, "s")
    assert str(e.value).startswith(says)
