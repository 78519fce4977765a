"""How the blocks of README and docs are read, made short and run. Fixtures and checks are in the tests beside it."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import pathlib
import re
import shlex
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from sybil import Example, Region
from sybil.document import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

import vit_jax
from vit_jax import api, cli, config, score
from vit_jax.sharding import make_mesh
from vit_jax.train import inherit, setup
from vit_jax.train.config import TrainConfig

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXTEND = ROOT / "docs" / "extend.md"
JOURNEYS = sorted((ROOT / "docs" / "journeys").glob("*.md"))
NOT_RUN = re.compile(r"<!-- not run: (.+) -->\s*\Z")

SIZES = {"width": 32, "depth": 2, "heads": 2, "mlp_dim": 32, "token_dim": 16}
WHOLE = os.environ.get("VIT_JAX_DOCS") == "whole"
"""Whether commands run as they are written, which takes hours, instead of short."""

BENCH = {
    "forward": "--model vit_ti16 --size 32 --batch 2 --rounds 1",
    "train": "--model vit_ti16 --size 32 --batch 2 --rounds 1",
    "compile": "--model vit_ti16 --size 32 --batch 2 --layers 1",
    "memory": "--model vit_ti16 --size 32 --batch 2 --rounds 0",
    "loss": "--batch 32 --chunk 16 --dim 8 --rounds 1",
    "kernels": "--inputs 32 --outputs 32 --rows 8,16 --rounds 1",
    "input": "--rounds 2 --batch 4",
}
"""What makes a benchmark short."""

FIND = {"lr": "--steps 10", "batch": "--most 16"}
"""What makes a search short."""


STEPS = {ROOT / "docs" / "journeys" / name: 16 for name in ("images.md", "devices.md")}
"""Page -> steps of its runs, of which it shows curves; those of other pages take two."""
DRAWN = (ROOT / "docs" / "journeys" / "images.md",)
"""Pages whose runs draw pictures, but for those that go on from other runs."""
KILLED = 6
"""Step at which a run ends that is killed on a page."""


class FileParser(CodeBlockParser):
    """Blocks with a title, the name of the file that they are."""

    language = "title"

    def __call__(self, document: Document) -> Iterator[Region]:
        for region in self.lexers(document):
            if name := re.fullmatch(r'\w+ title="(.+)"', region.lexemes["arguments"]):
                region.parsed, region.evaluator = (name[1], region.lexemes["source"]), self._evaluator
                yield region


def examples(page: pathlib.Path, evaluate: Any = None) -> Iterator[Example]:
    """The blocks of a page in Python, for the shell, and of files that the reader writes."""
    parsers = [*(CodeBlockParser(language, evaluate) for language in ("python", "bash")), FileParser(None, evaluate)]
    yield from Document.parse(str(page), *parsers).examples()


def module(path: pathlib.Path) -> Any:
    """A Python file that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def reason(example: Example) -> str | None:
    """Why a block is not run; None for all others."""
    found = NOT_RUN.search(example.document.text[: example.start])
    return found[1] if found else None


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command of a shell block."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]


def wanted() -> list[list[str]]:
    """The commands of README's table "I want to"."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("## I want to")[1].split("\n## ")[0]
    return [shlex.split(command) for command in re.findall(r"\| `(vit_jax .+)` \|$", table, re.MULTILINE)]


def small(argv: list[str], page: pathlib.Path | None = None) -> list[str]:
    """A ``vit_jax`` command line of a page with the arguments that make it short."""
    args = cli.parse(argv)
    if WHOLE:
        return argv
    if args.command == "bench":
        return [*argv, *BENCH[args.kind].split()]
    if args.command not in ("train", "find"):
        return argv
    raw = config.load(args.config or args.workdir, [("data.path", "digits"), *args.overrides])
    changes = shrunk(config.parse(TrainConfig, inherit.resolved(raw)), page)
    if args.config is None:  # it is short as it is
        return argv
    if args.command == "find":
        argv = [*argv, *FIND[args.action].split()]
    return [*argv, *(f"--config.{key}={value}" for key, value in changes.items())]


def shrunk(c: TrainConfig, page: pathlib.Path | None = None) -> dict[str, Any]:
    """Keys that make a run of a page short and its model small."""
    side, steps = min(32, c.augment.size), STEPS.get(page or ROOT, 2)
    length, every = f"{steps + 2 * bool(c.resume_from)} steps", f"{max(2, steps // 4)} steps"
    drawn = page in DRAWN and not (c.resume_from or str(c.init).startswith("runs/"))
    out: dict[str, Any] = {"duration": length, "eval_every": every, "batch_size": 8, "plots": drawn}
    out |= {"augment.size": side, "data.canvas": min(side, c.data.canvas), "eval_batch_size": 64, "optim.warmup": 0}
    towers = [f"model.{part}." for part in ("image_tower", "text_tower", "decoder") if hasattr(c.model, part)]
    for tower in towers or ["model."]:
        fields = config.hints(type(functools.reduce(getattr, tower.split(".")[1:-1], c.model)))
        out |= {f"{tower}{name}": value for name, value in SIZES.items() if name in fields}
    if hasattr(c.model, "embed_dim"):
        out["model.embed_dim"] = SIZES["width"]
    return out


@contextlib.contextmanager
def working(folder: pathlib.Path, page: pathlib.Path | None = None) -> Iterator[None]:
    """For a page in ``folder``, which holds what the pages take for granted, under JAX's usual promotion."""
    fill(folder)
    with (
        pytest.MonkeyPatch.context() as patch,
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        patch.chdir(folder)
        shorten(patch, page)
        yield


def fill(folder: pathlib.Path) -> None:
    """Writes what the pages take for granted."""
    (folder / "configs").symlink_to(ROOT / "configs")
    rng = np.random.default_rng(0)
    for whose in ("my", "other"):
        for label, name in enumerate(("ant", "bee", "cat")):
            (folder / whose / "images" / name).mkdir(parents=True)
            for i in range(10):
                pixels = rng.integers(0, 128, (16, 16, 3)) + 60 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / whose / "images" / name / f"{i}.png")
    files = sorted((folder / "my" / "images").rglob("*.png"))
    (folder / "my" / "pairs.csv").write_text("path,caption\n" + "".join(f"{p},a {p.parent.name}\n" for p in files))
    for name, path in zip(("a.png", "b.png", "a.jpg"), files, strict=False):
        Image.open(path).save(folder / name)
    written(EXTEND, folder)  # parts.py, which other pages name


def timm_file(folder: pathlib.Path) -> None:
    """Writes ``vit_tiny.safetensors``, as timm saves the weights of a ViT, small as the pages' runs."""
    fields = {k: v for k, v in SIZES.items() if k != "token_dim"}
    model = vit_jax.create("vit_ti16", size=32, num_classes=7, **fields)
    vit_jax.convert(model, folder / "vit_tiny.safetensors", to="timm")


def written(page: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the files of a page."""
    for example in examples(page):
        if example.region.lexemes["arguments"] not in ("python", "bash"):
            name, text = example.parsed
            (folder / name).write_text(text, encoding="utf-8")


def shorten(patch: pytest.MonkeyPatch, page: pathlib.Path | None = None) -> None:
    """Runs take one device unless their mesh asks for more, and those started from Python are short, too."""

    def few(mesh: Any, devices: Any = None) -> Any:
        sizes = (mesh.replica, mesh.fsdp, mesh.tensor)
        return make_mesh(mesh, devices or jax.devices()[: abs(int(np.prod(sizes)))])

    patch.setattr(setup, "make_mesh", few)
    patch.setattr(score, "make_mesh", few)
    real = api.train

    def train(config_: Any, workdir: Any, hooks: Any = (), *, changes: Any = None) -> Any:
        raw = config.load(config_) if isinstance(config_, str) else config.plain(config_)
        raw = config.change(raw, (changes or {}).items())
        if WHOLE:
            return real(raw, workdir, hooks)
        return real(raw, workdir, hooks, changes=shrunk(config.parse(TrainConfig, inherit.resolved(raw)), page))

    patch.setattr(vit_jax, "train", train)


def run(page: pathlib.Path, place: pathlib.Path, section: str | None = None) -> None:
    """Runs the blocks of a page in ``place``, as a user does.

    Args:
      page: README or one of ``docs/``.
      place: the working directory.
      section: run those before the first heading and those below this one; None runs all.
    """
    python = PythonEvaluator()

    def evaluate(example: Example) -> None:
        if reason(example) or (section and heading(example) not in (None, section)):
            return
        if example.region.lexemes["arguments"] == "python":
            python(example)
            return
        if example.region.lexemes["arguments"] != "bash":
            name, text = example.parsed
            (place / name).write_text(text, encoding="utf-8")
            return
        for words in commands(example.parsed):
            if words[0] == "timeout":
                killed(small(words[words.index("vit_jax") + 1 :], page))
            elif words[0] == "vit_jax":
                assert cli.main(small(words[1:], page)) == 0, f"{page.name}, line {example.line}: {shlex.join(words)}"

    there = place / page.name
    there.write_text(re.sub(r"(?<![\w/])/(?=(my|other)/)", f"{place}/", page.read_text(encoding="utf-8")))
    for example in examples(there, evaluate):
        example.evaluate()


class Killed(BaseException):
    """The end of a process, as far as a test can play it."""


def killed(argv: list[str]) -> None:
    """Runs a training that ends at step :data:`KILLED`."""
    train = vit_jax.train

    def end(event: Any) -> None:
        if event.step == KILLED:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(vit_jax, "train", lambda raw, workdir: train(raw, workdir, [end]))
        cli.main(argv)


def heading(example: Example) -> str | None:
    """The section that a block is in."""
    found = re.findall(r"^## (.+)$", example.document.text[: example.start], re.MULTILINE)
    return found[-1] if found else None
