"""One form of the model at a step: that of the seed and the step, its loss and gradient, and resumed the same."""

import functools
import math
import types
from typing import Annotated

import jax
import numpy as np
import pytest

from vit_jax import models
from vit_jax.config import Choice, parse
from vit_jax.models import ImageModel, ModelFn
from vit_jax.models.base import Features
from vit_jax.objectives import OBJECTIVES, Annealed, Classify, Contrast, Distill, Drawn, Objective, Teacher
from vit_jax.types import UserError

FACTORS = (1.0, -2.0, 0.5)


class Scaled(ImageModel):
    """A linear map of ``image [B, 4]``, which each form scales otherwise."""

    factor: float = 1.0
    others: bool = True

    def forms(self):
        return {f"times_{f}": self.clone(factor=f, others=False) for f in FACTORS} if self.others else {}

    def encode(self, image, train):
        return Features(image[:, None], image * self.factor)


@pytest.fixture
def case(rng):
    params = {"head": {"kernel": rng.normal(size=(4, 3)).astype(np.float32), "bias": np.zeros(3, np.float32)}}
    batch = {
        "image": rng.normal(size=(8, 4)).astype(np.float32),
        "label": rng.integers(0, 3, 8).astype(np.int32),
        "mask": np.arange(8) != 5,
    }
    return ModelFn(Scaled(num_classes=3)), params, batch


def test_a_step_has_loss_and_gradient_of_one_form(case):
    apply, params, batch = case
    run = lambda o, fn, rngs: (  # noqa: E731
        o.value_and_grad(fn, params, batch, rngs, 2),
        o(fn, params, batch, rngs, train=True)[0],
        o(fn, params, batch, rngs, train=False)[0],
    )
    drawn = jax.jit(lambda form: run(Drawn(), apply, {"dropout": jax.random.key(3), "form": form}))

    @jax.jit
    def alone():
        return [run(Classify(), ModelFn(m), {"dropout": jax.random.key(3)}) for m in apply.model.forms().values()]

    forms = alone()
    seen = [int(jax.random.randint(jax.random.key(i), (), 0, 3)) for i in range(12)]
    assert set(seen) == {0, 1, 2}
    for i, form in enumerate(seen):
        *training, evaluation = drawn(jax.random.key(i))
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), training, list(forms[form][:2])
        )
        np.testing.assert_allclose(evaluation, forms[0][2], rtol=1e-6)  # of the model as it is


def test_it_is_what_it_draws_for():
    o = parse(Annotated[Objective, Choice(OBJECTIVES, Objective)], "drawn(contrast)", "objective")
    assert isinstance(o, Drawn) and isinstance(o.objective, Contrast)
    assert (o.min_batch_size, o.views, o.state_metrics) == (2, 1, ())
    assert o.rng_streams == ("dropout", "form") and o.output_activation == Contrast().output_activation
    sigmoid = Drawn(Classify("sigmoid"))
    assert sigmoid.output_activation == "sigmoid"
    teacher = Teacher({}, lambda: None)
    assert Drawn(Distill("x")).frozen_inputs(lambda _: teacher) is teacher
    assert Drawn(Distill("x")).bind(teacher, ()).objective.teacher is teacher
    assert o.update_state(o.init_state({}), {}, {}) == ()


def test_a_model_of_one_form_is_evaluated_and_not_trained(case):
    _, params, batch = case
    one = ModelFn(Scaled(num_classes=3, others=False))
    rngs = {"dropout": jax.random.key(0), "form": jax.random.key(0)}
    with pytest.raises(UserError, match="this one has no other; give a ViT several patches"):
        jax.eval_shape(lambda p: Drawn().value_and_grad(one, p, batch, rngs), params)
    jax.eval_shape(lambda p: Drawn()(one, p, batch, rngs, train=False), params)
    info = types.SimpleNamespace(num_classes=3, captions=0, class_names="abc")
    assert Drawn().fit_model(models.create("vit_ti16", patches=(8,)), info).num_classes == 3


def test_forms_of_a_tower_are_forms_of_the_model():
    model = models.create("clip_vit_b32", image_tower={"name": "vit_ti16", "patches": (8, 16)})
    forms = model.forms()
    assert list(forms) == ["patch_8", "patch_16"]
    assert forms["patch_8"].image_tower.patches == (8,) and forms["patch_8"].text_tower == model.text_tower


def keep_rate(step, begin, end, keep):
    """Of EViT's ``adjust_keep_rate``."""
    if step < begin:
        return 1
    if step >= end:
        return keep
    return keep + (1 - keep) * (math.cos((step - begin) / (end - begin) * math.pi) + 1) * 0.5


def test_shares_of_tokens_follow_the_schedule_of_their_authors(case):
    """To the nearest level, as the steps are counted that were made; evaluation is of the first."""
    apply, params, batch = case
    o = Annealed(begin=2, end=9)
    rngs = {"dropout": jax.random.key(3)}

    @jax.jit
    def step(state):
        now = o.bind(None, state)
        losses = [now(apply, params, batch, rngs, train=train)[0] for train in (True, False)]
        return now.form(3, rngs), losses, o.update_state(state, params, {})

    @jax.jit
    def alone():
        return [Classify()(ModelFn(m), params, batch, rngs, train=True)[0] for m in apply.model.forms().values()]

    forms = alone()
    levels, state, seen = np.array([0.6, 0.8, 1.0]), o.init_state(params), []
    for t in range(11):
        form, losses, state = step(state)
        assert form == np.argmin(np.abs(levels - keep_rate(t, 2, 9, 0.6)))
        np.testing.assert_allclose(losses, [forms[form], forms[0]], rtol=1e-6)
        seen.append(int(form))
    assert seen == [2, 2, 2, 2, 2, 1, 1, 0, 0, 0, 0] and state == {"step": 11, "inner": ()}
    assert o.rng_streams == ("dropout",)
    with pytest.raises(UserError, match="end=2 is not after begin=3"):
        parse(Annotated[Objective, Choice(OBJECTIVES, Objective)], "annealed(classify, 3, 2)", "objective")


def test_shares_of_tokens_and_patches_are_forms_of_a_vit():
    model = models.create("vit", patch=4, depth=2, reduce="attentive(0.5, (1,), levels=(0.75, 1.0))")
    forms = model.forms()
    assert [(name, form.reduce.keep, form.reduce.levels) for name, form in forms.items()] == [
        ("keep_0.5", 0.5, ()), ("keep_0.75", 0.75, ()), ("keep_1", 1.0, ()),
    ]  # fmt: skip
    assert not forms["keep_1"].forms()
    both = model.clone(patches=(4, 2)).forms()
    assert len(both) == 6 and both["patch_2_keep_0.75"] == forms["keep_0.75"].clone(patches=(2,))
    with pytest.raises(UserError, match=r"3 forms, keep_0\.5 to keep_1, and a step trains one of them; set objective="):
        jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32), train=True))
