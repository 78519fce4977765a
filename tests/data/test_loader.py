import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_jax.config import parse
from vit_jax.data.framing import Framing
from vit_jax.data.loader import DataConfig, eval_batches, eval_rows, train_batches, train_rows
from vit_jax.data.sources import open_source
from vit_jax.data.sources.base import Unreadable
from vit_jax.data.sources.fake import Fake
from vit_jax.types import Stuck, UsageError, UserError

KEYS = {"image", "size", "label", "mask", "index"}


class Broken(Fake):
    """Some images cannot be read."""

    def __init__(self, n, bad, size=4, classes=2):
        super().__init__(n, size, classes)
        self.bad = set(bad)

    def __getitem__(self, i):
        if i in self.bad:
            raise Unreadable(f"the image fake[{i}] is unreadable")
        return super().__getitem__(i)


def train(source, **options):
    return train_batches(source, **{"batch_size": 8, "seed": 0, "canvas": 4, "workers": 2, **options})


def equal(a, b):
    return set(a) == set(b) == KEYS and all(np.array_equal(a[k], b[k]) for k in a)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), batch_size=st.integers(1, 50), seed=st.integers(0, 9))
def test_every_epoch_is_a_permutation_and_nothing_is_dropped(n, batch_size, seed):
    steps = -(-3 * n // batch_size)
    stream = np.concatenate([train_rows(t, n=n, seed=seed, batch_size=batch_size) for t in range(steps)])
    epochs = stream[: 3 * n].reshape(3, n)
    assert (np.sort(epochs, axis=1) == np.arange(n)).all()
    if n > 12:
        assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])


@settings(max_examples=40, deadline=None)
@given(n=st.integers(4, 60), rows=st.integers(1, 7), hosts=st.sampled_from([1, 2, 4]), step=st.integers(0, 10**6))
def test_hosts_share_the_global_batch(n, rows, hosts, step):
    for f in (lambda **k: train_rows(step, n=n, seed=1, **k), lambda **k: eval_rows(step % 9, n=n, **k)):
        whole = f(batch_size=4 * rows)
        for places in (np.arange(p, 4 * rows, hosts) for p in range(hosts)):  # alternating, as on a torus of hosts
            assert np.array_equal(f(batch_size=4 * rows, places=places), whole[places])


def test_the_order_of_a_seed_never_changes():
    """A run that is resumed by a later version goes on where it was."""
    rows = [train_rows(step, n=10, seed=3, batch_size=10).tolist() for step in (0, 1)]
    assert rows == [[5, 0, 3, 1, 4, 6, 9, 2, 7, 8], [2, 7, 1, 0, 6, 3, 5, 9, 8, 4]]


def test_contents_are_the_examples():
    source = Fake(21, 6, 3)
    for batch in train(source, steps=4, canvas=6):
        assert set(batch) == KEYS and {k: v.dtype.name for k, v in batch.items()} == {
            "image": "uint8",
            "size": "int32",
            "label": "int32",
            "mask": "bool",
            "index": "uint32",
        }
        assert batch["image"].shape == (8, 6, 6, 3) and batch["mask"].all() and (batch["size"] == 6).all()
        for row, index in enumerate(batch["index"]):
            record = source[int(index)]
            assert np.array_equal(batch["image"][row], record["image"]) and batch["label"][row] == record["label"]


def test_any_step_can_be_the_first():
    source = open_source("fake:45x6x3", holdout=0)
    whole = list(train(source, steps=13))
    for start in (0, 1, 6, 12):
        resumed = list(train(source, steps=13, start_step=start))
        assert len(resumed) == 13 - start and all(map(equal, resumed, whole[start:]))
    assert not equal(whole[0], next(train(source, seed=1)))
    assert list(train(source, steps=13, start_step=13)) == []


@pytest.mark.parametrize("hosts", [2, 4])
def test_any_number_of_hosts_makes_the_same_batches(folder, hosts):
    source = open_source(f"folder:{folder}", holdout=0)
    for make in (
        lambda **k: train(source, steps=5, canvas=9, **k),
        lambda **k: eval_batches(source, batch_size=8, canvas=9, workers=2, **k),
    ):
        whole = list(make())
        parts = [list(make(places=places)) for places in np.split(np.arange(8), hosts)]
        joined = [{k: np.concatenate([b[k] for b in batch]) for k in KEYS} for batch in zip(*parts, strict=True)]
        assert all(map(equal, joined, whole)) and len(joined) == len(whole)


def test_threads_and_read_ahead_do_not_matter(folder):
    source = open_source(f"folder:{folder}", holdout=0)
    runs = [list(train(source, steps=6, canvas=9, batch_size=40, workers=w, prefetch=p)) for w, p in ((1, 1), (5, 4))]
    assert all(map(equal, *runs))


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 17))
def test_evaluation_has_every_example_once(n, batch_size):
    batches = list(eval_batches(Fake(n, 2, 2) if n > 1 else Fake(1, 2, 1), batch_size=batch_size, canvas=2, workers=1))
    assert len(batches) == -(-n // batch_size) and all(len(b["mask"]) == batch_size for b in batches)
    mask = np.concatenate([b["mask"] for b in batches])
    index = np.concatenate([b["index"] for b in batches])
    assert np.array_equal(index[mask], np.arange(n)) and mask[:n].all()
    padding = {k: np.concatenate([b[k] for b in batches])[~mask] for k in ("image", "label", "index")}
    assert not any(v.any() for v in padding.values())


def test_evaluation_takes_the_centre_and_training_the_whole():
    class Wide(Fake):
        def __getitem__(self, i):
            image = np.zeros((4, 8, 3), np.uint8)
            image[:, 2:6] = 255
            return {"image": image, "label": 0, "name": "wide"}

    seen = next(eval_batches(Wide(2, 4, 2), batch_size=2, canvas=4))
    assert (seen["image"] == 255).all() and seen["size"].tolist() == [[4, 8]] * 2
    assert (next(train(Wide(2, 4, 2), batch_size=2))["image"][:, :, 0] < 30).all()
    squashed = next(eval_batches(Wide(2, 4, 2), batch_size=2, canvas=4, frame=Framing("squash")))
    assert (squashed["image"][:, :, 0] < 30).all()


@pytest.mark.parametrize("make", [train, lambda s, **k: eval_batches(s, batch_size=8, canvas=4, **k)])
def test_an_unreadable_image_is_an_error_that_names_it(make):
    batches = make(Broken(40, [11]))
    with pytest.raises(UserError, match=r"fake\[11\] is unreadable; repair or remove it, or set data.on_error='skip'"):
        list(itertools.islice(batches, 9))
    assert not alive()


def test_skipping_in_training_takes_the_next_readable_example():
    source = Broken(300, [5, 6, 299])
    batches = train(source, steps=75, on_error="skip")
    whole = list(batches)
    assert batches.skipped == 3 and set(batches.unreadable) == {5, 6, 299}
    clean = list(train(Fake(300, 4, 2), steps=75))
    for got, want in zip(whole, clean, strict=True):
        substitute = {5: 7, 6: 7, 299: 0}
        assert got["index"].tolist() == [substitute.get(i, i) for i in want["index"].tolist()] and got["mask"].all()
        assert all(np.array_equal(got["image"][r], source[int(i)]["image"]) for r, i in enumerate(got["index"]))
    assert all(map(equal, train(source, steps=75, start_step=30, on_error="skip"), whole[30:]))


def test_skipping_in_evaluation_masks_the_row():
    batches = eval_batches(Broken(150, [11]), batch_size=8, canvas=4, on_error="skip")
    seen = np.concatenate([b["index"][b["mask"]] for b in batches])
    assert seen.tolist() == [i for i in range(150) if i != 11] and batches.skipped == 1


@pytest.mark.parametrize(("n", "bad", "fine"), [(300, 3, True), (300, 4, False), (5, 1, True), (5, 2, False)])
def test_more_than_one_percent_unreadable_is_an_error(n, bad, fine):
    source = Broken(n, range(bad))
    for batches in (
        train(source, steps=3 * n // 8, on_error="skip"),
        eval_batches(source, batch_size=8, canvas=4, on_error="skip"),
    ):
        if fine:
            assert sum(1 for _ in batches) and batches.skipped == bad  # seen again in later epochs, counted once
        else:
            with pytest.raises(UserError, match=rf"at least {bad} of {n} examples are unreadable, more than 1%"):
                list(batches)


@pytest.mark.parametrize("n", [1, 2, 300])
def test_nothing_readable_ends(n):
    with pytest.raises(UserError, match="examples are unreadable"):
        next(train(Broken(n, range(n), classes=1), on_error="skip"))


def test_other_errors_are_never_skipped():
    class Mislabelled(Fake):
        def __getitem__(self, i):
            return {**super().__getitem__(i), "label": 3}

    with pytest.raises(UserError, match=r"the label 3 of fake\[\d+\] is outside 0\.\.1"):
        next(train(Mislabelled(9, 4, 2), on_error="skip"))


def alive():
    return [t for t in threading.enumerate() if t.name.startswith("vit_jax_data")]


def test_close_stops_the_threads_and_read_ahead_is_bounded():
    read = []

    class Counting(Fake):
        def __getitem__(self, i):
            read.append(i)
            return super().__getitem__(i)

    batches = train(Counting(1000, 4, 2), prefetch=2)
    next(batches)
    batches.close()
    assert len(read) <= 3 * 8 and not alive()
    with pytest.raises(StopIteration):
        next(batches)
    batches.close()
    assert len(list(train(Fake(99, 4, 2), steps=3))) == 3 and not alive()


def test_close_does_not_wait_for_what_has_not_begun():
    started = threading.Event()
    read = []

    class Slow(Fake):
        def __getitem__(self, i):
            started.set()
            read.append(i)
            time.sleep(0.001)
            return super().__getitem__(i)

    batches = train(Slow(4000, 4, 2), batch_size=1000, workers=1)
    started.wait()
    batches.close()
    assert len(read) < 200


@pytest.mark.parametrize("impatient", [True, False])
def test_a_read_that_never_ends_ends_the_batches(monkeypatch, impatient):
    """With a sentence; closing does not wait for it either, whether it took too long or somebody was impatient."""
    begun, end = threading.Event(), threading.Event()

    class Hung(Fake):
        def __getitem__(self, i):
            if i == 6:
                begun.set()
                end.wait()
            return super().__getitem__(i)

    monkeypatch.setattr("vit_jax.data.loader._GRACE", 0.05)
    batches = eval_batches(Hung(8, 4, 2), batch_size=8, canvas=4, workers=2, timeout=300 if impatient else 0.1)
    try:
        if not impatient:
            with pytest.raises(Stuck, match=r"^example 6 is being read for more than 0\.1 s \(data\.timeout\); look"):
                next(batches)
        begun.wait()
        batches.close()
        assert alive()
    finally:
        end.set()
    for thread in alive():
        thread.join()


def test_more_hosts_than_examples():
    parts = [list(eval_batches(Fake(5, 4, 2), batch_size=8, canvas=4, places=np.array([p]))) for p in range(8)]
    assert [int(part[0]["mask"].sum()) for part in parts] == [1] * 5 + [0] * 3
    assert {len(part) for part in parts} == {1}


def test_config_opens_both_splits(folder):
    config = parse(DataConfig, {"path": f"folder:{folder}", "holdout": 6})
    assert config.holdout == 6 and (len(config.open("train")), len(config.open("val"))) == (32, 6)
    assert len(parse(DataConfig, {"path": f"folder:{folder}", "holdout": 0.5}).open("val")) == 19
    other = DataConfig(path=f"mix:1*folder:{folder}+1*fake:9x4x2", val=f"folder:{folder}")
    train_source, val_source = other.open("train"), other.open("val")
    assert len(train_source) == 76 and len(val_source) == 38  # with a source of its own, nothing is held out
    assert val_source.info.class_names == train_source.info.class_names == ("ant", "cat", "dog", "0", "1")
    with pytest.raises(UserError, match=r"data.val='digits' holds class '0', unknown in training"):
        DataConfig(path=f"folder:{folder}", val="digits").open("val")


@pytest.mark.parametrize("field", ["canvas", "prefetch", "workers"])
def test_config_mistakes(field):
    with pytest.raises(UserError, match=f"{field}=0 is not allowed; give a number from 1"):
        parse(DataConfig, {"path": "digits", field: 0})
    with pytest.raises(UsageError, match=r"'ignore' is not allowed; allowed: raise, skip"):
        parse(DataConfig, {"path": "digits", "on_error": "ignore"})


@pytest.mark.parametrize(("make", "seed"), [(train_batches, {"seed": 0}), (eval_batches, {})])
def test_batches_that_the_machine_cannot_hold(monkeypatch, make, seed):
    """Four of them, those made ahead and the one in use, in bytes of uint8 images."""
    monkeypatch.setattr("vit_jax.data.loader.physical_memory", lambda: 4 * 8 * 16 * 3)
    make(Fake(8, 4, 2), batch_size=8, canvas=4, prefetch=3, **seed).close()
    with pytest.raises(UserError, match=r"^5 batches of 8 images of 4 px take 0 GiB; .*lower batch_size"):
        make(Fake(8, 4, 2), batch_size=8, canvas=4, prefetch=4, **seed)
