"""Made-up files and command lines, and what became of them.

A strategy of Hypothesis makes a :class:`Case`; :func:`fuzz` writes its files into an empty folder, runs its command
line there (in a child of :mod:`tests.fuzz.server`) and judges how it ended: accepted, or refused in a sentence; never
by a traceback, a hang or with too much memory. How many cases: ``VIT_JAX_FUZZ``, for the long runs marked ``slow``.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import hypothesis
from hypothesis import strategies as st

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 30.0
MEMORY = 2 * 2**30
LINES = 6
"""Lines that a refusal may have, apart from argparse's usage."""
LONG = int(os.environ.get("VIT_JAX_FUZZ", "200"))
"""Cases of a long run."""


@dataclasses.dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclasses.dataclass(frozen=True)
class Sparse:
    """A file of so many zeros that take no room."""

    size: int


FIFO, FOLDER = "a pipe that nobody writes to", "an empty folder"
Content = bytes | str | Link | Sparse


@dataclasses.dataclass(frozen=True)
class Case:
    """A command line and the files of the folder that it runs in.

    Attributes:
      argv: arguments of ``vit_jax``; paths are relative to the folder.
      files: relative path -> content: bytes, a :class:`Link`, :class:`Sparse`, :data:`FIFO` or :data:`FOLDER`.
    """

    argv: tuple[str, ...]
    files: Mapping[str, Content] = dataclasses.field(default_factory=dict)

    def write(self, folder: pathlib.Path) -> None:
        """Makes the files; names that the file system refuses are left out."""
        for name, content in self.files.items():
            path = folder / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    path.write_bytes(content)
                elif isinstance(content, Link):
                    path.symlink_to(content.target)
                elif isinstance(content, Sparse):
                    with path.open("wb") as f:
                        f.truncate(content.size)
                elif content == FIFO:
                    os.mkfifo(path)
                else:
                    path.mkdir(exist_ok=True)
            except (OSError, ValueError):
                continue


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended: exit status, seconds, bytes of memory, the limit it met if any, and what it said."""

    code: int
    seconds: float
    memory: int
    why: str
    out: str
    err: str

    @property
    def problem(self) -> str:
        """Empty for a command that did what it should: one word, and where it happened."""
        if self.why:
            return self.why
        if "Traceback (most recent call last)" in self.err or self.code not in (0, 1, 2):
            ours = re.findall(r'File "[^"]*/(vit_jax/[^"]+)", line (\d+)', self.err)
            last = self.err.strip().splitlines()[-1:] or [f"exit status {self.code}"]
            return f"traceback at {':'.join(ours[-1]) if ours else '?'}: {last[0][:100]}"
        said = [line for line in self.err.splitlines() if line.strip() and not line.startswith(("usage:", " "))]
        if self.code and not said and not self.out.strip():
            return "no sentence"
        if len(said) > LINES:
            return f"{len(said)} lines: {said[0][:60]}"
        return ""


class Server:
    """A process that runs command lines; started when it is needed."""

    def __init__(self) -> None:
        self.place = pathlib.Path(tempfile.mkdtemp(prefix="vit_jax-fuzz-"))
        env = {**os.environ, "XDG_CACHE_HOME": str(self.place / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
        command = [sys.executable, "-m", "tests.fuzz.server"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, text=True, **pipes)  # type: ignore[call-overload]
        assert self.process.stdout.readline() == "ready\n"

    def run(self, case: Case, *, seconds: float = SECONDS, memory: int = MEMORY) -> Outcome:
        """Runs a case in a folder of its own, which is removed afterwards."""
        folder = pathlib.Path(tempfile.mkdtemp(dir=self.place))
        out, err = (self.place / name for name in ("out", "err"))
        try:
            case.write(folder)
            for path in (out, err):
                path.unlink(missing_ok=True)
            limits = {"seconds": seconds, "memory": memory}
            ask = {"argv": case.argv, "folder": str(folder), "out": str(out), "err": str(err), **limits}
            print(json.dumps(ask), file=self.process.stdin, flush=True)
            found = json.loads(self.process.stdout.readline())
            texts = {p.name: p.read_text("utf-8", "replace") if p.exists() else "" for p in (out, err)}
            return Outcome(**found, **texts)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        shutil.rmtree(self.place, ignore_errors=True)


@dataclasses.dataclass
class Tally:
    """What became of the cases of one run: how many were accepted and refused, and the problems with a case of each."""

    ends: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    problems: dict[str, tuple[Case, Outcome]] = dataclasses.field(default_factory=dict)
    slowest: float = 0.0
    largest: int = 0

    def add(self, case: Case, outcome: Outcome) -> None:
        problem = outcome.problem
        end = re.split(r"[ :]", problem)[0] if problem else "refused" if outcome.code else "accepted"
        self.ends[end] += 1
        self.slowest, self.largest = max(self.slowest, outcome.seconds), max(self.largest, outcome.memory)
        if problem:
            self.problems.setdefault(problem, (case, outcome))

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {end}" for end, n in sorted(self.ends.items()))
        text = f"{counts}; slowest {self.slowest:.1f} s, most memory {self.largest / 2**30:.2f} GiB"
        for problem, (case, outcome) in self.problems.items():
            text += f"\n{problem}\n  {' '.join(map(repr, case.argv))}\n  {str(dict(case.files))[:600]}\n"
            text += f"  {outcome.err[-300:]}"
        return text


def fuzz(server: Server, cases: st.SearchStrategy[Case], count: int, **limits: Any) -> Tally:
    """Runs ``count`` cases, the same ones every time, and fails if one of them ended as none may."""
    tally = Tally()

    @hypothesis.settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(cases)
    def each(case: Case) -> None:
        tally.add(case, server.run(case, **limits))

    each()
    print(tally)
    assert not tally.problems, str(tally)
    assert tally.ends["refused"], "nothing was refused: these cases try nothing"
    return tally


@st.composite
def damaged(draw: Callable[..., Any], data: st.SearchStrategy[bytes]) -> bytes:
    """Bytes of a good file with up to four faults: bytes changed, cut out, doubled, filled in, or the end missing."""
    out = bytearray(draw(data))
    for _ in range(draw(st.integers(0, 4))):
        at, length = draw(st.integers(0, max(len(out) - 1, 0))), draw(st.sampled_from([1, 1, 1, 2, 4, 8, 64, 512]))
        kind = draw(st.sampled_from(["set", "set", "set", "cut", "double", "fill", "end"]))
        if kind == "set":
            edge = [b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"9", b"{"]
            new = draw(st.one_of(st.sampled_from(edge), st.binary(min_size=1, max_size=8)))
            out[at : at + len(new)] = new
        elif kind == "cut":
            del out[at : at + length]
        elif kind == "double":
            out[at:at] = out[at : at + length]
        elif kind == "fill":
            out[at:at] = draw(st.sampled_from([b"\0", b"[", b"9", b"\xff"])) * length
        else:
            del out[at:]
    return bytes(out)


def json_values() -> st.SearchStrategy[Any]:
    """Whatever JSON can hold, odd numbers and lone surrogates among it."""
    numbers = st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 1e300, float("nan"), float("inf"), 0.5])
    texts = st.sampled_from(["", "a", "\ud800", "\udcff", "\0", "x" * 300, "1", "../..", "\u2028", "[", "é"])
    leaves = st.one_of(st.none(), st.booleans(), numbers, texts, st.text(max_size=8))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)),
        max_leaves=6,
    )


RAW_JSON = (
    "[" * 100_000,
    "9" * 5000,
    '{"a":' * 50_000,
    "",
    "null",
    "NaN",
    "\ufeff{}",
    '"\\ud800"',
    "{",
    "[1]",
    "-0",
    "1e999",
)
"""Texts that break careless readers of JSON."""


def json_texts(values: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[bytes]:
    """JSON as a file holds it: now and then deep, endless, in another encoding, or none."""
    good = (json_values() if values is None else values).map(json.dumps)
    text = st.one_of(good, good, good, st.sampled_from(RAW_JSON))
    encodings = st.sampled_from(["utf-8"] * 6 + ["utf-16", "utf-8-sig", "latin-1"])
    return st.builds(lambda t, e: t.encode(e, "replace"), text, encodings)
