"""What files of papers' own code share: they are read alone."""

import pytest

from vit_jax import models
from vit_jax.convert.authors import FORMAT
from vit_jax.convert.format import check
from vit_jax.convert.formats import FORMATS, TARGETS
from vit_jax.types import UserError


def test_they_are_read_alone():
    assert FORMATS["authors"] is FORMAT and "authors" not in TARGETS
    for codec, paper in zip(FORMAT.codecs, ("HorNet", "Vim"), strict=True):
        assert codec.kinds == ()
        with pytest.raises(UserError, match=f"^{paper}'s code is no package .* nothing to compare with"):
            codec.peer(None, None)
    with pytest.raises(UserError, match=r"their authors' code has no Vim; write --to vit_jax\."):
        check(models.create("vim_ti16"), FORMAT, ())
