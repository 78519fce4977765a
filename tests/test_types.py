"""The two errors a user may see."""

import pytest

from vit_jax.types import UsageError, UserError


def test_errors_are_value_errors_and_usage_is_the_narrower():
    assert issubclass(UserError, ValueError)
    assert issubclass(UsageError, UserError)
    with pytest.raises(ValueError, match=r"^one sentence$"):
        raise UsageError("one sentence")
