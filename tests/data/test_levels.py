"""Coarse classes from a table and from folders, and what is wrong with them."""

import numpy as np
import pytest

from vit_jax.data.levels import check, read
from vit_jax.types import UserError


def test_a_table_and_folders_say_the_same(tmp_path):
    table = tmp_path / "classes.csv"
    table.write_text("class,kingdom,family\nbee, animal, insect\noak,plant,tree\nant,animal,insect\n")
    found = read(str(table))
    assert found.classes == ("bee", "oak", "ant")
    assert found.names == (("animal", "plant"), ("insect", "tree"))
    np.testing.assert_array_equal(found.labels, [[0, 0], [1, 1], [0, 0]])
    for path in ("animal/insect/bee", "plant/tree/oak", "animal/insect/ant", "plant/tree/.hidden"):
        (tmp_path / "tree" / path).mkdir(parents=True)
    tree = read(str(tmp_path / "tree"))
    assert tree.classes == ("ant", "bee", "oak") and tree.names == found.names
    np.testing.assert_array_equal(tree.labels, [[0, 0], [0, 0], [1, 1]])
    check(tree, ["ant", "bee", "oak"], "tree")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("class,level\nbee,x\noak\n", "gives no coarse class for each class"),
        ("class\nbee\n", "gives no coarse class"),
        ("class,level\nbee,x\nbee,y\n", "two rows for 'bee'"),
    ],
)
def test_a_table_that_says_nothing(tmp_path, content, words):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=words):
        read(str(tmp_path / "a.csv"))


def test_rows_of_other_classes(tmp_path):
    (tmp_path / "a.csv").write_text("class,level\nbee,x\noak,y\n")
    found = read(str(tmp_path / "a.csv"))
    with pytest.raises(UserError, match="row 2 of levels='a' is 'oak', and class 1 of the data is 'ant'; put the rows"):
        check(found, ["bee", "ant"], "a")
    with pytest.raises(UserError, match="has 2 rows, and the data 3 classes"):
        check(found, ["bee", "oak", "yew"], "a")
