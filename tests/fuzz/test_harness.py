"""The judge of fuzzing: what it lets pass, and what it does not."""

import pytest
from hypothesis import strategies as st

from tests.fuzz import harness
from tests.fuzz.harness import Case, Outcome

START = "Traceback (most recent call last):\n"


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [
        (Outcome(0, 1, 1, "", "fine", ""), ""),
        (Outcome(1, 1, 1, "", "", "vit_jax data: it is not there.\n"), ""),
        (Outcome(2, 1, 1, "", "", "usage: vit_jax data\n  [-h]\nvit_jax data: error: no\n"), ""),
        (Outcome(-9, 1, 1, "hang", "", ""), "hang"),
        (Outcome(-9, 1, 1, "memory", "", ""), "memory"),
        (Outcome(-11, 1, 1, "", "", "Segmentation fault"), "traceback at ?: Segmentation fault"),
        (Outcome(1, 1, 1, "", "", ""), "no sentence"),
        (Outcome(1, 1, 1, "", "", "a line\n" * 9), "9 lines: a line"),
        (
            Outcome(70, 1, 1, "", "", f'{START}  File "/x/vit_jax/a.py", line 3\nKeyError: 1'),
            "traceback at vit_jax/a.py:3: KeyError: 1",
        ),
    ],
)  # fmt: skip
def test_how_a_command_may_end(outcome, problem):
    assert outcome.problem == problem


def test_files_and_limits(server, tmp_path):
    files = {"a": b"x", "b": harness.Link("a"), "c": harness.Sparse(10), "d": harness.FIFO, "e/f": harness.FOLDER}
    Case((), files).write(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "c", "d", "e", "f"]
    assert (
        (tmp_path / "c").stat().st_size == 10 and (tmp_path / "d").is_fifo() and (tmp_path / "b").read_bytes() == b"x"
    )
    fine = server.run(Case(("data", "check", "fake:20x8x2")))
    assert (fine.code, fine.problem) == (0, "") and fine.out.startswith("20 examples of 2 classes")
    refused = server.run(Case(("data", "check", "folder:nowhere")))
    assert refused.code == 1 and "vit_jax data:" in refused.err and not refused.problem
    long = Case(("data", "check", "fake:2000000x64x2"))
    assert server.run(long, seconds=0.3).problem == "hang" and server.run(long, memory=2**20).problem == "memory"


def test_a_run_is_seeded_and_counts(server):
    words = st.sampled_from(["fake:20x8x2", "fake:0", "zebra:", "fake:20x8x30"])
    cases = words.map(lambda word: Case(("data", "check", word)))
    first, second = (harness.fuzz(server, cases, 8) for _ in range(2))
    assert first.ends == second.ends and 1 <= sum(first.ends.values()) <= 8
