"""A side is a program whose argument describes its model."""

import json
import sys

from vit_jax import models
from vit_jax.bench import rivals
from vit_jax.bench.rivals import Rival
from vit_jax.models.describe import describe

SMALL = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "num_classes": 3, "mlp_linear": "low_rank(2)"}


def test_the_program_makes_the_model_of_its_argument(monkeypatch):
    model = models.create("vit", **SMALL)
    rival = Rival("vit_jax", "forward", describe(model), "float32", 2, 8)
    program, *module, argument = rival.command()
    assert (program, module) == (sys.executable, ["-m", "vit_jax.bench.rivals"])
    assert models.create(**json.loads(argument)["model"]) == model
    said = []

    def serve(make, facts):
        run, wait = make()
        said.append((wait(run()).shape, facts()))

    monkeypatch.setattr(rivals, "serve", serve)
    rivals.main(argument)
    shape, facts = said[0]
    assert shape == (2, 3) and facts["parameters"] > 0 and facts["threads"] > 0
