import pytest

from vit_jax.data.sources import shards as shards_module
from vit_jax.data.sources.shards import expand_braces, find_shards
from vit_jax.types import UserError


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{008..010}.tar", ["a-008.tar", "a-009.tar", "a-010.tar"]),
        ("a-{8..10}", ["a-8", "a-9", "a-10"]),
        ("{x,y}/{0..1}", ["x/0", "x/1", "y/0", "y/1"]),
        ("{x}", ["{x}"]),
        ("{00..01}{,b}", ["00", "00b", "01", "01b"]),
    ],
)
def test_braces(pattern, expected):
    assert list(expand_braces(pattern)) == expected


def test_counting_backwards():
    with pytest.raises(UserError, match=r"'\{3..1\}' counts backwards; write '\{1..3\}'"):
        list(expand_braces("a{3..1}"))


@pytest.fixture
def shards(tmp_path):
    for name in ("train-1.tar", "train-0.tar", "val-0.tar", "trainer.txt", ".hidden.tar"):
        (tmp_path / name).touch()
    return tmp_path


def find(pattern, split="train"):
    paths, is_split = find_shards("tar", str(pattern), (".tar",), split)
    return [p.rpartition("/")[2] for p in paths], is_split


def test_folder_is_split_by_name(shards):
    assert find(shards) == (["train-0.tar", "train-1.tar"], True)
    assert find(shards, "val") == (["val-0.tar"], True)
    (shards / "val-0.tar").rename(shards / "valid_0.tar")
    assert find(shards, "val") == (["valid_0.tar"], True)
    (shards / "valid_0.tar").rename(shards / "validated-0.tar")  # begins with a longer word
    assert find(shards, "val") == (["train-0.tar", "train-1.tar"], False)


def test_patterns(shards):
    assert find(shards / "train-{1,0}.tar") == (["train-1.tar", "train-0.tar"], False)
    assert find(shards / "*.tar") == (["train-0.tar", "train-1.tar", "val-0.tar"], False)
    (shards / "a[1].tar").touch()
    assert find(shards / "a[1].tar") == (["a[1].tar"], False)


def test_missing(shards, tmp_path):
    with pytest.raises(UserError, match=r"train-2.tar' does not exist; did you mean '.*train-"):
        find(shards / "train-{0..2}.tar")
    with pytest.raises(UserError, match="does not exist"):
        find(shards / "x*.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \*\.tar files in the folder"):
        find(tmp_path / "empty")


def test_endless_patterns_stop_at_the_first_missing_file(shards, monkeypatch):
    for pattern in ("train-{0..99999999999}.tar", "{000..999}{000..999}{000..999}.tar", "x{0..9}" * 9):
        with pytest.raises(UserError, match="does not exist"):
            find(shards / pattern)
    monkeypatch.setattr(shards_module, "MAX_SHARDS", 5)
    with pytest.raises(UserError, match="means more than 5 files"):
        find(shards / "train-{0..0}{,,,,,,,}.tar")
    for pattern in ("{a,b}" * 1000, "{" * 5000, "a\0b", "{1..99999999999999999999999}"):
        with pytest.raises(UserError, match=r"is no pattern of files|does not exist"):
            find(pattern)


@pytest.mark.parametrize("place", ["data", "plain_text", "data/default"])
def test_folders_of_a_hub(tmp_path, place):
    (tmp_path / "repo" / place).mkdir(parents=True)
    (tmp_path / "repo/.git").mkdir()
    (tmp_path / "repo/README.md").touch()
    for name in ("train-00000-of-00001.TAR", "Validation-00000.tar", "test-0.tar"):
        (tmp_path / "repo" / place / name).touch()
    assert find(tmp_path / "repo") == (["train-00000-of-00001.TAR"], True)
    assert find(tmp_path / "repo", "val") == (["Validation-00000.tar"], True)


def test_folders_named_like_splits(tmp_path):
    for name in ("train/0000.tar", "train/0001.tar", "validation/0000.tar", "test/0000.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find(tmp_path) == (["0000.tar", "0001.tar"], True) and find(tmp_path, "val") == (["0000.tar"], True)
    assert find(tmp_path / "train") == (["0000.tar", "0001.tar"], False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/0.tar").touch()
    with pytest.raises(UserError, match=r"holds several data sets \(.*other, .*; name one of them"):
        find(tmp_path)
