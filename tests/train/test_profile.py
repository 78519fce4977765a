"""A trace has the steps that were asked for, however a run begins and ends."""

import types

import jax
import jax.numpy as jnp
import pytest

from vit_jax.config import StepRange
from vit_jax.train import profile
from vit_jax.types import UsageError, UserError


def traced(folder):
    """Numbers of the steps that a trace marks."""
    (file,) = folder.rglob("*.xplane.pb")
    events = (
        event
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes
        for line in plane.lines
        for event in line.events
    )
    return {dict(event.stats)["step_num"] for event in events if event.name == "train"}


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("calls", "found"),
    [((1, 2, 3, 4, 5, 6), {3, 4}), ((3, 4, 5), {4}), ((1, 2), {3})],  # a whole run, one that goes on, one that ends
    ids=str,
)
def test_steps_are_marked_and_no_others(calls, found, tmp_path, capsys):
    with profile.hooks(StepRange(3, 4), tmp_path) as (hook,):
        for step in calls:
            assert hook(types.SimpleNamespace(step=step, state=jnp.float32(step))) is None
    folder = tmp_path / "profile"
    assert traced(folder) == found
    said = capsys.readouterr().out
    last = min(calls[-1], 4)
    assert said.startswith(f"{folder} has the trace of steps {min(found)} to {last}; look at it with xprof --logdir")


def test_nothing_is_asked_for_or_it_is_past(tmp_path, capsys):
    with profile.hooks(None, tmp_path) as none:
        assert none == []
    with profile.hooks(StepRange(3, 4), tmp_path) as (hook,):
        hook(types.SimpleNamespace(step=4, state=0))
    assert not (tmp_path / "profile").exists() and not capsys.readouterr().out


def test_hosts_write_beside_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(profile.hosts, "count", lambda: 2)
    monkeypatch.setattr(profile.hosts, "index", lambda: 1)
    with profile.hooks(StepRange(2, 2), tmp_path) as (hook,):
        for step in (1, 2):
            hook(types.SimpleNamespace(step=step, state=0))
    assert traced(tmp_path / "profile" / "host_1") == {2}


def test_one_trace_at_a_time(tmp_path):
    with (
        jax.profiler.trace(tmp_path / "mine"),
        profile.hooks(StepRange(2, 2), tmp_path) as (hook,),
        pytest.raises(UserError, match=r"^profile='2:2': this process is being traced already"),
    ):
        hook(types.SimpleNamespace(step=1, state=0))


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ((1, 5), "profile='1:5' begins with the step that compiles; begin at step 2 or later."),
        ((2, 150), "profile='2:150' are 149 steps; a trace has at most 100, such as '2:101', and 5 say the same."),
        ((998, 1001), "profile='998:1001' ends after the run, which has 1,000 steps."),
    ],
)
def test_wrong_ranges(steps, says):
    with pytest.raises(UsageError) as e:
        profile.check(StepRange(*steps), 1000)
    assert str(e.value) == says


def test_right_ranges():
    for steps in (None, StepRange(2, 2), StepRange(901, 1000)):
        profile.check(steps, 1000)
