"""Who runs: the named implementation, or the first that supports the arguments."""

import logging

import pytest

from vit_jax.kernels import dispatch
from vit_jax.kernels.dispatch import Implementation, choose
from vit_jax.types import UsageError, UserError

TABLE = {
    "fused": Implementation(lambda n: "fused", unsupported_reason=lambda n: None if n % 2 == 0 else f"{n} is odd"),
    "plain": Implementation(lambda n: "plain", slower_reason=lambda n: "8 rows are too few" if n == 8 else None),
    "slow": Implementation(lambda n: "slow", unsupported_reason=lambda n: "there is none for 7" if n == 7 else None),
}


@pytest.fixture(autouse=True)
def forget():
    dispatch.say.cache_clear()


@pytest.mark.parametrize(("n", "name", "runs"), [(4, None, "fused"), (3, None, "plain"), (8, "plain", "plain")])
def test_the_first_that_may_or_the_named_one(n, name, runs):
    assert choose("product", TABLE, name, n)(n) == runs


def test_who_stands_in_is_said_once(caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            choose("product", TABLE, None, 3)
    assert caplog.messages == ["product runs as 'plain'; not 'fused': 3 is odd."]


def test_what_is_unwise_yields_unless_named(caplog):
    table = {k: v for k, v in TABLE.items() if k != "fused"}
    with caplog.at_level(logging.WARNING):
        assert choose("product", table, None, 8)(8) == "slow"
    assert caplog.messages == ["product runs as 'slow'; not 'plain': 8 rows are too few."]


def test_a_name_that_cannot_run_or_is_unknown():
    with pytest.raises(UserError, match="'fused' does not run this product: 3 is odd; choose another"):
        choose("product", TABLE, "fused", 3)
    with pytest.raises(UsageError, match="unknown implementation of product 'fussed'; did you mean 'fused'"):
        choose("product", TABLE, "fussed", 3)


def test_nobody_runs():
    table = {k: v for k, v in TABLE.items() if k != "plain"}
    with pytest.raises(UserError, match=r"no implementation runs this product: not 'fused': 7 is odd; not 'slow'"):
        choose("product", table, None, 7)


def test_other_platforms_are_passed_over_in_silence_unless_named(caplog):
    table = {"chip": Implementation(lambda n: "chip", platform="tpu"), **TABLE}
    assert choose("product", table, None, 4)(4) == "fused"
    assert choose("product", table, "chip", 4)(4) == "chip"
    assert caplog.messages == []
