"""How configurations differ."""

import dataclasses

from vit_jax import config
from vit_jax.config import resumable


def test_difference():
    old = {"a": 1, "b": {"c": 2, "d": 3}, "e": [1], "same": {"x": 1}, "gone": 1}
    new = {"a": 2, "b": {"c": 2, "d": "3"}, "e": [1, 2], "same": {"x": 1}, "new": {"y": 1}}
    assert list(config.difference(old, new)) == [
        ("a", 1, 2), ("b.d", 3, "3"), ("e", [1], [1, 2]), ("gone", 1, None), ("new", None, {"y": 1}),
    ]  # fmt: skip
    assert list(config.difference(old, old)) == []
    assert list(config.difference({}, {"clip": None})) != []  # None is a value: it need not be the default


@dataclasses.dataclass(frozen=True)
class Inner:
    workers: int = resumable(1)
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Outer:
    keep: int = resumable(2)
    inner: Inner = dataclasses.field(default=Inner())


def test_keys_that_may_differ():
    assert list(config.resumable_keys(Outer())) == ["keep", "inner.workers"]
