"""The search, with a compiler that answers by a formula."""

import dataclasses
import functools

import jax
import pytest

from vit_jax.config import parse
from vit_jax.plan import program
from vit_jax.plan.report import Memory, Plan, Time
from vit_jax.plan.search import Search, Searcher, Try
from vit_jax.plan.topology import Topology
from vit_jax.train.config import TrainConfig

SLOWER = {"none": 1.0, "dots_no_batch": 1.08, "full": 4 / 3}
SMALLER = {"none": 1.0, "dots_no_batch": 0.5, "full": 0.1}


@dataclasses.dataclass(frozen=True)
class Devices(Topology):
    """Devices with another memory."""

    room: int = 0

    @property
    def memory(self) -> int:
        return self.room


@pytest.fixture(scope="module")
def setup(tiny):
    """Runs on 8 devices, each built once."""

    @functools.cache
    def build(sam):
        optim = {"optim": {"sam": sam}} if sam else {}
        return program.setup_for(parse(TrainConfig, tiny(batch_size=256, **optim)), jax.devices())

    return build


@pytest.fixture
def searcher(setup):
    """``searcher(room, each)``: a search on 8 devices with so much memory, of which an example takes ``each`` bytes."""

    def make(room, each, exchange=0.5, sam=None):
        run = setup(sam)
        devices = Devices("v5e:2x4", None, jax.devices(), 2, room)
        asked = []

        def planned(changes):
            asked.append(changes)
            remat = changes.get("model.remat", "none")
            mesh = [changes.get(f"mesh.{axis}", run.mesh.shape[axis]) for axis in ("replica", "fsdp", "tensor")]
            parts = changes.get("accumulate", 1)
            needed = int(program.state_bytes(run, tuple(mesh)) + each * SMALLER[remat] * 256 / 8 / parts)
            compute, sent = SLOWER[remat], exchange * parts * (0.5 if mesh[1] == 1 else 1)
            memory = Memory({"parameters": 0, "batch": 0}, {}, needed, room, needed <= room)
            time = Time(compute, sent, 0, max(compute, sent), compute + sent) if memory.fits else None
            return Plan(
                "v5e:2x4", 8, 2, {}, {}, memory, 0.0, 0.0, (), {}, {}, time, None, None, None, 0, ()
            )  # fmt: skip

        return Searcher(run, devices, planned, lambda _: None), asked

    return make


def test_the_nearest_that_fits_is_found_from_the_size_of_the_first(searcher):
    search, asked = searcher(room=2**20, each=2**17)
    found = search.run(nearest=True)
    assert found.best.changes == {"accumulate": 8} and asked == [{}, {"accumulate": 8}]
    assert found.tries[0].reason == "does not fit" and found.best.words == "--config.accumulate=8"
    assert "The nearest that fits: --config.accumulate=8" in found.text()


def test_the_fastest_recomputes_only_if_that_saves_exchanges(searcher):
    search, asked = searcher(room=2**20, each=2**17)
    found = search.run(nearest=False)
    times = {tuple(t.changes.items()): t.plan.time.most for t in found.tries if t.plan and t.plan.fits}
    assert found.best.plan.time.most == min(times.values()) and found.best.changes["model.remat"] == "full"
    assert all(t.reason for t in found.tries if t.plan is None)
    cheap, asked = searcher(room=2**20, each=2**17, exchange=0.001)
    found = cheap.run(nearest=False)
    assert found.best.changes == {"accumulate": 8} and len(asked) <= 3, asked
    assert any("recomputes more than was needed" in t.reason for t in found.tries)
    assert any("no other split can gain more" in t.reason for t in found.tries)


def test_what_cannot_fit_is_not_tried(searcher):
    search, asked = searcher(room=1000, each=2**17)
    found = search.run(nearest=True)
    assert found.best is None and asked == [{}] and "None of them fits" in found.text()
    assert any("parameters, gradients and optimizer alone take" in t.reason for t in found.tries)


def test_a_configuration_that_is_best_stays(searcher):
    search, _ = searcher(room=2**40, each=1, exchange=0.001)
    assert "as it is is the fastest" in search.run(nearest=False).text()


def test_a_batch_is_not_divided_into_what_does_not_divide_it(searcher):
    search, _ = searcher(room=2**20, each=2**17, sam="sam(rho=0.05, m=64)")
    found = search.run(nearest=True)
    for t in found.tries:
        assert 256 % (t.changes.get("accumulate", 1) * 8) == 0


def test_a_search_is_json(searcher):
    found = Search((Try({}, None, "left out"),))
    assert found.summary() == {"best": None, "tries": [{"changes": {}, "reason": "left out", "plan": None}]}
