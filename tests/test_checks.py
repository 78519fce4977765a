"""Ranges, their ends, and the sentences."""

import re

import pytest

from vit_jax import checks
from vit_jax.types import UserError

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("check", "allowed", "refused", "says"),
    [
        (lambda x: checks.positive("rho", x), (1e-9, 3), (0, -1, INF, NAN), "give a positive number."),
        (lambda x: checks.positive("rho", x, ", 8 is usual"), (1,), (0,), "give a positive number, 8 is usual."),
        (lambda x: checks.nonnegative("rho", x), (0, 3.5), (-1e-9, INF, NAN), "give zero or a positive number."),
        (lambda x: checks.within("rho", x, 0.5, 1), (0.5, 0.9), (1, 0.4, NAN), "give a number in [0.5, 1)."),
    ],
)
def test_ranges(check, allowed, refused, says):
    for value in allowed:
        check(value)
    for value in refused:
        with pytest.raises(UserError, match=f"^{re.escape(f'rho={value} is not allowed; {says}')}$"):
            check(value)


def test_label_smoothing():
    checks.label_smoothing(0.0)
    checks.label_smoothing(0.99)
    for value in (1.0, -0.1, NAN):
        with pytest.raises(UserError, match=rf"label_smoothing={value} is outside \[0, 1\); 0.1 is usual"):
            checks.label_smoothing(value)
