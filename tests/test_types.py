"""The errors a user may see."""

import pytest

from vit_jax.types import Stopped, Stuck, UsageError, UserError


def test_errors_are_value_errors_and_usage_is_the_narrower():
    assert issubclass(UserError, ValueError)
    assert issubclass(UsageError, UserError) and issubclass(Stopped, UserError)
    with pytest.raises(ValueError, match=r"^one sentence$"):
        raise UsageError("one sentence")


def test_errors_say_with_which_status_a_command_ends():
    assert [error.status for error in (UserError, UsageError, Stopped, Stuck)] == [1, 2, 75, 75]
