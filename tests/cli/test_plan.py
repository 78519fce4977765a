"""``vit_jax plan``"""

import dataclasses
import json

import pytest

import vit_jax as vj
from vit_jax import cli
from vit_jax.plan import report, search


@pytest.fixture
def answer(monkeypatch):
    """What is planned, and what was asked."""
    memory = report.Memory({"parameters": 2**30}, {}, 2**35, 2**34, False)
    bare = dict(exchanges=(), cycles={}, kernels={}, time=None, mfu=None, images_per_host=None, bytes_per_host=None)
    found = report.Plan(
        "v5e:4x4", 16, 4, {"fsdp": 16}, {}, memory, 1e12, 0.0, checkpoint=0, notes=("Assumed.",), **bare
    )
    asked = []

    def plan(raw, where, **options):
        asked.append((raw, where, options))
        return found

    monkeypatch.setattr(vj, "plan", plan)
    tried = search.Try(
        {"accumulate": 2}, dataclasses.replace(found, memory=dataclasses.replace(memory, compiled=True, needed=1)), ""
    )
    monkeypatch.setattr(search, "search", lambda *_, nearest, **__: search.Search((tried,), nearest))
    return asked


def test_what_does_not_fit_ends_with_status_1(answer, capsys, tmp_path):
    words = ["plan", "--config", "digits", "--topology", "v5e:4x4", "--examples", "9", "--config.batch_size=8"]
    assert cli.main([*words, "--json", str(tmp_path / "p.json")]) == 1
    out = capsys.readouterr().out
    assert "does not fit" in out and "The nearest that fits: --config.accumulate=2" in out
    written = json.loads((tmp_path / "p.json").read_text())
    assert written["fits"] is False and written["search"]["best"] == {"accumulate": 2}
    assert answer[0][1:] == ("v5e:4x4", {"examples": 9, "classes": None}) and answer[0][0]["batch_size"] == 8


def test_a_search_that_finds_something_ends_with_status_0(answer, capsys):
    assert cli.main(["plan", "--config", "digits", "--topology", "v5e:4x4", "--search"]) == 0
    assert "The fastest that fits: --config.accumulate=2" in capsys.readouterr().out


def test_a_topology_that_does_not_exist_is_wrong_usage(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(["plan", "--config", "digits", "--topology", "v5e:7x7"]) == 2
    assert "no topology of v5e; there are 1x1, 2x2" in capsys.readouterr().err
