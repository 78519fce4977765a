"""Overrides, configuration files, metadata and command lines: each ends in a result or in a sentence."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.fuzz import harness
from tests.fuzz.harness import Case
from vit_jax import cli, config
from vit_jax.train.config import TrainConfig
from vit_jax.types import UserError

MODEL = {"name": "vit", "patch": 4, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
TINY: dict[str, Any] = {
    "model": MODEL,
    "data": {"path": "fake:12x8x3", "canvas": 8, "holdout": 4},
    "augment": {"size": 8, "train": ("flip",)},
    "optim": {"optimizer": "adamw(b2=0.95)", "schedule": "rsqrt", "sam": None},
    "batch_size": 4,
    "duration": 2,
    "plots": False,
}
FILE = f"def get_config(arg=''):\n    return {TINY!r}\n"

NUMBERS = (
    "-1", "0", "1", "2", "0.5", "1e-40", "1e999", "-1e999", "nan", "inf", "1e30", str(2**31), str(2**63),
    "1" + "0" * 400,
    "0x" + "f" * 5000, "9" * 5000, "1_0", "-0.0", "1j", "True", "None",
)  # fmt: skip
TEXTS = (
    "", " ", "x", "[]", "{}", "()", "[" * 3000, "{'a': {'b': {'c': 1}}}", "{1: 2}", "{'name': 1}", "{'name': ['x']}",
    "'a\\0b'",
    "a" * 300, "é" * 200, "/", "..", "../x", "/dev/null", "/dev/zero", "\udcff", "\ud800", "-", "vit_b16", "vit(",
    "vit()()",
    "vit(width=0)", "monarch(1)", "adamw(b1=2)", "name(a=1, a=2)", "topk(0)", "sam(rho=-1)", "beam(0)", "5%",
    "1e99 epochs",
    "0 steps", "-1 steps", "norm(std=(0,0,0))", "norm(std=(1,))", "flip(prob=nan)", "('flip', 'resize')", "fake:0",
    "fake:99999999999", "fake:10x100000x2", "fake:12x8x3", "digits", "mix:", "folder:", "tar:{0..99999999}.tar",
    "hf://../../x",
    "hf://a/b", "b'x'", "lambda: 1", "__import__('os')", "(1).__class__", "f'{1}'", "*", "**{}",
)  # fmt: skip


def keys(cls: Any = TrainConfig, path: str = "", depth: int = 0) -> Iterator[str]:
    """Dotted keys of a configuration, those of every row of its tables among them."""
    for name, hint in config.hints(cls).items():
        yield path + name
        if depth < 3:
            yield from (key for inner in _classes(hint) for key in keys(inner, f"{path}{name}.", depth + 1))


def _classes(hint: Any) -> set[Any]:
    import dataclasses
    import typing

    args = typing.get_args(hint)
    rows = [row for mark in args[1:] if isinstance(mark, config.Choice) for row in mark.table.values()]
    found = {getattr(row, "cls", row) for row in rows}
    if not rows:
        found = {cls for part in args for cls in _classes(part)}
    return found | ({hint} if isinstance(hint, type) and dataclasses.is_dataclass(hint) else set())


KEYS = sorted(set(keys()))
VALUES = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.text(max_size=12))
ANY_KEY = st.one_of(
    *[st.sampled_from(KEYS)] * 8,
    st.sampled_from(
        ["", ".", "a", "model.", ".model", "model..width", "model.x.y", "data.path.x", ".".join("a" * 2000)]
    ),
)


@hypothesis.settings(max_examples=400, derandomize=True, database=None, deadline=None)
@hypothesis.given(st.lists(st.tuples(ANY_KEY, VALUES), min_size=1, max_size=2))
def test_overrides_are_read_or_refused_in_a_sentence(changes):
    try:
        config.parse(TrainConfig, config.override(config.plain(TINY), changes))
    except UserError as e:
        assert len(str(e)) < 2000


def overrides(*more: str) -> st.SearchStrategy[Case]:
    """A training with keys changed."""
    flags = st.lists(st.builds("--config.{}={}".format, ANY_KEY, VALUES), min_size=1, max_size=2)
    return flags.map(
        lambda f: Case(("train", "--config", "c.py", "--workdir", "w", *more, *f), {"c.py": FILE.encode()})
    )


def config_files() -> st.SearchStrategy[Case]:
    """Files that are more or less configurations."""
    body = st.one_of(
        st.sampled_from(
            ["None", "5", "[]", "{}", "{'model': 'vit'}", "{1: 2}", "get_config", "get_config()", "1/0", "x", "("]
        ),
        st.sampled_from(
            ["{'a': " * 90 + "1" + "}" * 90, "dict.fromkeys(range(9))", "__import__('sys').exit(3)", "'x'*10**7"]
        ),
        harness.json_values().map(repr),
    )
    starts = ("arg=''", "arg", "", "*a", "a, b")
    heads = [f"def get_config({args}): return " for args in starts] + [
        "get_config = ",
        "import nothing; get_config = ",
        "",
    ]
    heads += ["class get_config(dict): pass\n", "get_config = lambda *a: ", "def get_config(arg=''):\n  raise "]
    head = st.sampled_from(heads)
    made = st.builds(lambda h, b: (h + b).encode("utf-8", "replace"), head, body)
    text = st.one_of(made, made, harness.damaged(st.just(FILE.encode())), st.binary(max_size=40))
    spec = st.sampled_from(["c.py"] * 6 + ["c.py:", "c.py::", "c.py:sam", "c.py:\udcff", ".", "c", "/dev/null", "C.PY"])
    argv = spec.map(lambda s: ("train", "--config", s, "--workdir", "w", "--dry_run"))
    return st.builds(lambda a, t: Case(a, {"c.py": t}), argv, text)


@st.composite
def tampered(draw: Callable[..., Any], value: Any) -> Any:
    """A JSON value with something in it replaced, left out or added."""
    value = json.loads(json.dumps(value))
    node, at = {"": value}, ""
    root = node
    while isinstance(node[at], dict | list) and node[at] and draw(st.integers(0, 3)):
        node = node[at]
        at = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else list(range(len(node)))))
    if draw(st.integers(0, 2)) or not at:
        odd = st.sampled_from(
            [-1, 0, 10**9, 2**31, 10**30, 1e308, "", "a\0b", "x" * 300, [], {}, None, True, [[]], "\ud800"]
        )
        node[at] = draw(st.one_of(odd, harness.json_values()))
    else:
        del node[at]
    return root.get("")


def metadata(files: dict[str, bytes], commands: tuple[tuple[str, ...], ...]) -> st.SearchStrategy[Case]:
    """A run of which one file of JSON was changed."""
    names = [name for name in files if name.endswith(("config.json", "meta/metadata"))]

    def case(name: str, content: bytes, argv: tuple[str, ...]) -> Case:
        return Case(argv, {**files, name: content})

    def made(name: str) -> st.SearchStrategy[Case]:
        changed = harness.json_texts(tampered(json.loads(files[name])))
        return st.builds(case, st.just(name), changed, st.sampled_from(commands))

    return st.sampled_from(names).flatmap(made)


SMALL = {
    "bench forward": "--model vit_ti16 --batch 1 --size 16 --rounds 1",
    "bench train": "--model vit_ti16 --batch 1 --size 16 --rounds 1",
    "bench loss": "--batch 4 --dim 4 --chunk 2 --rounds 1",
    "bench kernels": "--inputs 16 --outputs 16 --rows 2 --rounds 1",
    "bench input": "--data fake:8x8x2 --batch 2 --canvas 8 --rounds 1", "models": "vit_ti16",
    "data check": "fake:4x4x2",
    "data pack": "fake:4x4x2 s-{}.tar", "data tokenizer": "digits_pairs t.json --vocab_size 259",
    "predict": "--checkpoint m x.png", "embed": "--checkpoint m --output e.npy x.png", "evaluate": "--workdir m",
    "convert": "m n --to timm", "export": "--checkpoint m o --to stablehlo",
    "train": "--config c.py --workdir w --dry_run",
}  # fmt: skip
"""Command -> arguments that keep it short; what comes later replaces them."""


def actions(command: str) -> list[argparse.Action]:
    """The options of a command, ``bench forward`` for one."""
    parser: Any = cli.parsers()[0]
    for word in command.split():
        parser = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices[word]
    return [a for a in parser._actions if a.dest not in ("help", "verbose")]


@st.composite
def command_lines(draw: Callable[..., Any], files: dict[str, bytes]) -> Case:
    """A command with arguments replaced, left out or added."""
    command = draw(st.sampled_from(sorted(SMALL)))
    argv = SMALL[command].split()
    whole = [n for n in NUMBERS if n not in ("2",)]
    odd = st.one_of(st.sampled_from(whole), st.sampled_from(TEXTS), st.text(max_size=5))
    for _ in range(draw(st.integers(1, 2))):
        action = draw(st.sampled_from(actions(command)))
        if action.option_strings:
            argv += [action.option_strings[0], *([] if action.nargs == 0 else [draw(odd)])]
        elif argv and draw(st.booleans()):
            argv[draw(st.integers(0, len(argv) - 1))] = draw(odd)
        elif draw(st.booleans()):
            argv.append(draw(odd))
        else:
            argv = argv[:-1]
    return Case((*command.split(), *argv), {**files, "c.py": FILE.encode()})


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A run of an image-text model as files, with ``x.png`` beside it."""
    import numpy as np
    from PIL import Image

    import vit_jax as vj

    folder = tmp_path_factory.mktemp("fuzzed")
    found = {"m": MODEL}
    for name, model in found.items():
        made = vj.create(num_classes=3, size=8, **model)
        vj.convert(made, folder / name, to="vit_jax")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "x.png")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


COMMANDS = (
    ("predict", "--checkpoint", "m", "x.png"), ("embed", "--checkpoint", "m", "--output", "e.npy", "x.png"),
    ("convert", "m", "n", "--to", "timm"), ("evaluate", "--workdir", "m", "--config.data.path=fake:12x8x3"),
)  # fmt: skip


def test_a_few_of_each(server, run_files):
    harness.fuzz(server, st.one_of(overrides("--dry_run"), config_files()), 8)
    harness.fuzz(server, st.one_of(metadata(run_files, COMMANDS[:1]), command_lines(run_files)), 8)


@pytest.mark.slow
def test_many_overrides(server):
    harness.fuzz(server, overrides("--dry_run"), harness.LONG)


@pytest.mark.slow
def test_many_trainings(server):
    harness.fuzz(server, overrides(), harness.LONG // 4)


@pytest.mark.slow
def test_many_configuration_files(server):
    harness.fuzz(server, config_files(), harness.LONG)


@pytest.mark.slow
def test_many_metadata(server, run_files):
    harness.fuzz(server, metadata(run_files, COMMANDS), harness.LONG)


@pytest.mark.slow
def test_many_command_lines(server, run_files):
    harness.fuzz(server, command_lines(run_files), harness.LONG, seconds=120)
