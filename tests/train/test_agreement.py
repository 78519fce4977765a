"""What hosts hear of each other, several of them played by one process."""

import json

import jax
import numpy as np
import pytest

from vit_jax import hosts, sharding
from vit_jax.sharding import MeshConfig, make_mesh
from vit_jax.train import agreement
from vit_jax.train.agreement import SLOTS, Agreement, Part, check_same
from vit_jax.types import UsageError


def quiet(**change):
    return Part(**{"stop": False, "waited": 0.0, "busy": 0.0, "unreadable": [], "truncated": 0, **change})


@pytest.fixture
def three(monkeypatch):
    """``said(part, part, part)`` makes three hosts tell of a step; the first is an :class:`Agreement`, ``said.one``."""
    told: list[np.ndarray] = []
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(hosts, "count", lambda: 3)
    monkeypatch.setattr(sharding, "gather_hosts", lambda mesh: lambda row: told.append(row) or row)
    mesh = make_mesh(MeshConfig())
    many = [Agreement(mesh, 0) for _ in range(3)]
    one = Agreement(mesh, 2)

    def said(*parts):
        told.clear()
        for host, part in zip(many, parts, strict=True):
            host._hear = lambda _: None
            host.tell(part)
        rows = np.stack(told)
        one._gather = lambda _: rows
        one.tell(parts[0])

    said.one = one
    return said


def test_a_stop_is_heard_two_steps_later_by_everyone(three):
    three(quiet(), quiet(stop=True), quiet())
    three(quiet(), quiet(stop=True), quiet(stop=True))
    assert three.one.stop == []
    three(quiet(), quiet(), quiet())
    assert three.one.stop == [1] and three.one.asked() == " (host 2 of 3 was asked to)"
    three.one.drain()
    assert three.one.stop == [1, 2]


def test_unreadable_examples_are_counted_once_however_many_hosts_meet_them(three):
    many = list(range(100, 100 + 2 * SLOTS + 3))
    three(quiet(unreadable=[5, 2**32 - 2], truncated=1), quiet(unreadable=many), quiet(truncated=3))
    for _ in range(3):
        three(quiet(), quiet(unreadable=[5]), quiet(unreadable=[7]))
    three.one.drain()
    assert set(three.one.unreadable) == {5, 2**32 - 2, 7, *many} and three.one.truncated == 4
    assert three.one.unreadable[5] == 0 and three.one.unreadable[many[-1]] == 1


def test_the_host_that_holds_the_run_up_is_named_once(three, capsys):
    for _ in range(4):
        three(quiet(busy=0.1), quiet(busy=0.9, waited=0.75), quiet(busy=0.2))
    three.one.drain()
    row = three.one.times()
    assert row == pytest.approx({"speed/hosts/busy_s": 0.2, "speed/hosts/slowest_s": 0.9, "speed/hosts/slowest": 1})
    three(quiet(busy=0.1), quiet(busy=0.9), quiet(busy=0.2))
    three.one.times()
    said = capsys.readouterr().out
    assert said.count("host 2 of 3 takes 0.9 s of a step for itself, 0.75 of them waiting for its input") == 1


def test_one_host_hears_itself_at_once():
    alone = Agreement(make_mesh(MeshConfig()), 2)
    alone.tell(Part(True, 0.5, 1.0, [3], 2))
    assert alone.stop == [0] and alone.asked() == "" and alone.times() == {}
    assert alone.unreadable == {3: 0} and alone.truncated == 2


def test_what_differs_between_hosts_is_named(monkeypatch):
    monkeypatch.setattr(hosts, "count", lambda: 2)
    facts = {"config": {"seed": 0, "optim": {"lr": 0.1}}, "data": {"training": {"examples": 40}}}

    def share(what, text):
        return [text, json.dumps(other)]

    monkeypatch.setattr(agreement.hosts, "share", share)
    other = facts
    check_same(facts)
    other = {"config": {"seed": 5, "optim": {"lr": 0.1}}, "data": {"training": {"examples": 39}}}
    sentence = (
        r"host 2 of 2 has not the same run as host 1 of 2 \(config.seed: 0 -> 5; data.training.examples: 40 -> 39\)"
    )
    with pytest.raises(UsageError, match=sentence):
        check_same(facts)
