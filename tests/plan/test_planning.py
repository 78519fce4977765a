"""Plans of whole runs."""

import pytest

import vit_jax as vj
from vit_jax import config
from vit_jax.io import cache
from vit_jax.plan import planning
from vit_jax.types import UserError

SPLIT = {"mesh": {"replica": 1, "fsdp": 2}}


def test_a_plan_for_cpus_is_made_without_data_and_kept(tiny, monkeypatch):
    raw = tiny(data={"path": "tar:/nowhere.tar"}, model={"depth": 1}, **SPLIT)
    found = vj.plan(raw, "cpu:2", examples=500, classes=10)
    assert found.fits and found.mesh == {"replica": 1, "fsdp": 2, "tensor": 1} and found.time is None
    assert found.settings == {"batch_size": 16, "accumulate": 1, "model.scan": False, "model.remat": "none"}
    kinds = {e.kind: e.bytes for e in found.exchanges}
    assert kinds["all-reduce"] >= found.memory.parts["parameters"] and all(e.seconds is None for e in found.exchanges)
    memory = found.memory.compiler
    assert found.memory.needed == memory["argument"] + memory["temp"] + memory["generated_code"] + max(
        0, memory["output"] - memory["alias"]
    )
    monkeypatch.setattr(planning, "compiled", None)
    assert vj.plan(raw, "cpu:2", examples=500, classes=10) == found
    with pytest.raises(TypeError):  # another question
        vj.plan(raw, "cpu:2", examples=501, classes=10)


def test_what_is_kept_is_of_one_version_of_all_files(tiny, monkeypatch):
    raw = config.plain(tiny())
    place = planning.kept(raw, "cpu:8", None, None)
    assert place.parent == cache.folder("plans") and planning.kept(raw, "cpu:4", None, None) != place
    assert planning.kept({**raw, "imports": ("own.py",)}, "cpu:8") is None
    assert planning.kept({**raw, "data": {"path": object()}}, "cpu:8") is None
    monkeypatch.setattr(cache, "code", lambda: "other")
    assert planning.kept(raw, "cpu:8", None, None) != place


def test_a_damaged_plan_is_made_again():
    place = cache.folder("plans")
    place.mkdir(parents=True)
    (place / "a.json").write_text("{")
    (place / "b.json").write_text('{"topology": 1}')
    assert planning._read(place / "a.json") is planning._read(place / "b.json") is None


def test_a_mistake_is_a_sentence(tiny):
    with pytest.raises(UserError, match="does not fill the 8 devices"):
        vj.plan(tiny(mesh={"fsdp": 3}), "cpu:8")
    with pytest.raises(UserError, match="no topology of v5e"):
        vj.plan(tiny(), "v5e:5x5")
