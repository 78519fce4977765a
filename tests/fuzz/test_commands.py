"""Overrides, configuration files, metadata and command lines: each ends in a result or in a sentence."""

from __future__ import annotations

import argparse
import dataclasses
import json
import typing
from collections.abc import Callable
from typing import Any, Literal

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.fuzz import harness
from tests.fuzz.harness import Case
from vit_jax import checkpoint, cli, config
from vit_jax.checks import ranges
from vit_jax.train.config import TrainConfig
from vit_jax.types import UserError

MODEL = {"name": "vit", "patch": 4, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
TINY: dict[str, Any] = {
    "model": MODEL,
    "data": {"path": "fake:24x8x3", "canvas": 8, "holdout": 8},
    "augment": {"size": 8, "train": ("flip",)},
    "optim": {"optimizer": "adamw(b2=0.95)", "schedule": "rsqrt", "sam": None},
    "batch_size": 8,
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


DURATIONS = (
    "1 epoch",
    "3 steps",
    "50%",
    "1e99 epochs",
    "0 steps",
    "-1 steps",
    "1e9 examples",
    "nan epochs",
    "5",
    "1e30",
)


def mostly(usual: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Four in five times the one."""
    return st.sampled_from([1, 1, 0, 1, 1]).flatmap(lambda n: usual if n else odd)


def rows(hint: Any) -> dict[str, Any]:
    """Name -> class of what a choice offers."""
    marks = [mark for part in (hint, *typing.get_args(hint)) for mark in typing.get_args(part)]
    tables = [mark.table for mark in marks if isinstance(mark, config.Choice)]
    return {name: getattr(row, "cls", row) for table in tables for name, row in table.items()}


def written(hint: Any, depth: int = 0) -> st.SearchStrategy[str]:
    """What a user may write for a field of this type: mostly right, at the ends of its range or beyond."""
    found: list[st.SearchStrategy[str]] = []
    for limit in ranges(hint):
        whole = isinstance(limit.least, int) and isinstance(limit.most, int)
        ends = [limit.least, 1 if whole else 0.5, *([limit.most] if limit.most < 2**12 else [])]
        found.append(st.sampled_from([repr(end) for end in ends]))
    if named := rows(hint) if depth < 2 else {}:
        spec = st.builds("{}({}={})".format, st.sampled_from(sorted(named)), st.sampled_from(NAMES), VALUES)
        exact = [
            written(inner, depth + 1).map(f"{name}({key}={{}})".format)
            for name, cls in list(named.items())[:8]
            for key, inner in config.hints(cls).items()
        ]
        found += [st.sampled_from(sorted(named)), spec, *[st.one_of(exact)] * bool(exact)]
    literals = [
        repr(a) for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) is Literal for a in part.__args__
    ]
    found += [st.sampled_from(literals)] * bool(literals) + [st.sampled_from(["True", "False"])] * (hint is bool)
    found += [st.sampled_from(DURATIONS)] * (hint is config.Duration)
    found += [st.sampled_from(("2:3", "3:2", "1:2", "2:", "2:9999"))] * (config.StepRange in typing.get_args(hint))
    return mostly(st.one_of(found), VALUES) if found else VALUES


def fields(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted key -> type of the fields of a configuration and of the dataclasses in it."""
    found = {}
    for name, hint in config.hints(type(value)).items():
        found[path + name] = hint
        if dataclasses.is_dataclass(inner := getattr(value, name)) and not isinstance(inner, config.Duration):
            found |= fields(inner, f"{path}{name}.")
    return found


VALUES = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.text(max_size=12))
FIELDS = fields(config.parse(TrainConfig, TINY))
NAMES = (
    "rho",
    "lr",
    "b1",
    "width",
    "m",
    "k",
    "p",
    "scale",
    "prob",
    "x",
    "name",
    "size",
    "end",
    "data",
    "crop",
    "nblocks",
)
ODD_KEYS = ("", ".", "a", "model.", ".model", "model..width", "model.x.y", "model.decoder.depth", ".".join("a" * 2000))
RIGHT = st.sampled_from(sorted(FIELDS)).flatmap(lambda key: st.tuples(st.just(key), written(FIELDS[key])))
CHANGES = mostly(RIGHT, mostly(RIGHT, st.tuples(st.sampled_from(ODD_KEYS), VALUES)))


@hypothesis.settings(max_examples=400, derandomize=True, database=None, deadline=None)
@hypothesis.given(st.lists(CHANGES, min_size=1, max_size=2))
def test_overrides_are_read_or_refused_in_a_sentence(changes):
    try:
        config.parse(TrainConfig, config.override(config.plain(TINY), changes))
    except UserError as e:
        assert len(str(e)) < 2000


def overrides(*more: str) -> st.SearchStrategy[Case]:
    """A training with keys changed."""
    flags = st.lists(CHANGES.map(lambda c: f"--config.{c[0]}={c[1]}"), min_size=1, max_size=2)
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
    good = st.sampled_from([FILE, FILE + "x = 1", FILE.replace("arg=''", "arg"), FILE.replace("1", "0")]).map(
        str.encode
    )
    faulty = harness.damaged(good)
    text = st.sampled_from([made, made, faulty, faulty, good, st.binary(max_size=40)]).flatmap(
        lambda strategy: strategy
    )
    spec = mostly(
        st.just("c.py"), st.sampled_from(["c.py:", "c.py::", "c.py:sam", "c.py:\udcff", ".", "c", "/dev/null"])
    )
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


def signed(meta: Any) -> Any:
    """With a checksum that is right, as somebody makes it who knows how."""
    if not (isinstance(meta, dict) and "checksum" in meta):
        return meta
    rest = {k: v for k, v in meta.items() if k != "checksum"}
    return {**rest, "checksum": checkpoint.text_sum(rest)}


def metadata(files: dict[str, bytes], commands: tuple[tuple[str, ...], ...]) -> st.SearchStrategy[Case]:
    """A run of which one file of JSON was changed."""
    names = [name for name in files if name.endswith(("config.json", "meta/metadata"))]

    def case(name: str, content: bytes, argv: tuple[str, ...]) -> Case:
        return Case(argv, {**files, name: content})

    def made(name: str) -> st.SearchStrategy[Case]:
        changed = harness.json_texts(tampered(json.loads(files[name])).map(signed))
        return st.builds(case, st.just(name), changed, st.sampled_from(commands))

    return st.sampled_from(names).flatmap(made)


SMALL = {
    "bench forward": "--model vit_ti16 --batch 1 --size 16 --rounds 1",
    "bench train": "--model vit_ti16 --batch 1 --size 16 --rounds 1",
    "bench loss": "--batch 4 --dim 4 --chunk 2 --rounds 1",
    "bench kernels": "--inputs 16 --outputs 16 --rows 2 --rounds 1",
    "bench input": "--data fake:8x8x2 --batch 2 --canvas 8 --rounds 1", "models": "vit_ti16",
    "config": "digits", "data check": "fake:4x4x2",
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
        elif command != "models":  # all of them take long
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
    ("convert", "m", "n", "--to", "timm"), ("evaluate", "--workdir", "m", "--config.data.path=fake:24x8x3"),
)  # fmt: skip


def test_a_few_of_each(server, run_files):
    harness.fuzz(server, st.one_of(overrides("--dry_run"), config_files()), 4)
    harness.fuzz(server, st.one_of(metadata(run_files, COMMANDS[:1]), command_lines(run_files)), 4)


@pytest.mark.slow
def test_many_overrides(server):
    assert harness.fuzz(server, overrides("--dry_run"), harness.LONG).ends["accepted"]


@pytest.mark.slow
def test_many_trainings(server):
    assert harness.fuzz(server, overrides(), harness.LONG // 4).ends["accepted"]


@pytest.mark.slow
def test_many_configuration_files(server):
    assert harness.fuzz(server, config_files(), harness.LONG).ends["accepted"]


@pytest.mark.slow
def test_many_metadata(server, run_files):
    assert harness.fuzz(server, metadata(run_files, COMMANDS), harness.LONG).ends["accepted"]


@pytest.mark.slow
def test_many_command_lines(server, run_files):
    assert harness.fuzz(server, command_lines(run_files), harness.LONG, seconds=120).ends["accepted"]
