"""README and docs: every block runs, every command line is accepted, every key of a configuration is explained.

Blocks run from top to bottom, those of a page in one folder and one namespace, with runs made short and models small.
A block below ``<!-- not run: reason -->`` is only read.
"""

from __future__ import annotations

import functools
import importlib.util
import pathlib
import re
import shlex
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from sybil import Example
from sybil.document import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

import vit_jax
from vit_jax import api, cli, config
from vit_jax.report import keys
from vit_jax.sharding import make_mesh
from vit_jax.train import setup, start
from vit_jax.train.config import TrainConfig

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXTEND = ROOT / "docs" / "extend.md"
NOT_RUN = re.compile(r"<!-- not run: (.+) -->\s*\Z")
MOST_NOT_RUN = 12
PROGRAMS = ("vit_jax", "pip", "pytest", "python", "pre-commit", "ruff", "mypy", "mkdocs")

SIZES = {"width": 32, "depth": 3, "heads": 2, "mlp_dim": 32, "token_dim": 16}
BENCH = {
    "forward": "--model vit_ti16 --size 32 --batch 2 --rounds 1",
    "train": "--model vit_ti16 --size 32 --batch 2 --rounds 1",
    "loss": "--batch 32 --chunk 16 --dim 8 --rounds 1",
    "kernels": "--inputs 32 --outputs 32 --rows 8,16 --rounds 1",
    "input": "--rounds 2 --batch 4",
}
"""What makes a benchmark short."""


def examples(page: pathlib.Path, evaluate: Any = None) -> Iterator[Example]:
    """The blocks of a page in Python and for the shell."""
    parsers = [CodeBlockParser(language, evaluate) for language in ("python", "bash")]
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


def small(argv: list[str]) -> list[str]:
    """A ``vit_jax`` command line with the arguments that make it short."""
    args = cli.parse(argv)
    if args.command == "bench":
        return [*argv, *BENCH[args.kind].split()]
    if args.command != "train":
        return argv
    raw = config.load(args.config or args.workdir, [("data.path", "digits"), *args.overrides])
    changes = shrunk(config.parse(TrainConfig, start.with_model(raw)))
    if args.config is None:  # it is short as it is
        return argv
    return [*argv, *(f"--config.{key}={value}" for key, value in changes.items())]


def shrunk(c: TrainConfig) -> dict[str, Any]:
    """Keys that make a run short and its model small."""
    side = min(32, c.augment.size)
    duration = "4 steps" if c.resume_from else "2 steps"
    out: dict[str, Any] = {"duration": duration, "eval_every": "2 steps", "batch_size": 8, "plots": False}
    out |= {"augment.size": side, "data.canvas": min(side, c.data.canvas), "eval_batch_size": 64, "optim.warmup": 0}
    towers = [f"model.{part}." for part in ("image_tower", "text_tower", "decoder") if hasattr(c.model, part)]
    for tower in towers or ["model."]:
        fields = config.hints(type(functools.reduce(getattr, tower.split(".")[1:-1], c.model)))
        out |= {f"{tower}{name}": value for name, value in SIZES.items() if name in fields}
    if towers:
        out["model.embed_dim"] = SIZES["width"]
    return out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_command_is_accepted(page, monkeypatch):
    """Also those that are not run: the parser takes them, and every key of a configuration exists."""
    monkeypatch.chdir(ROOT)
    shell = [e for e in examples(page) if e.region.lexemes["arguments"] == "bash"]
    found = [words for example in shell for words in commands(example.parsed)]
    if page.stem == "README":
        assert len(wanted()) >= 15
        found += wanted()
    for words in found:
        assert words[0] in PROGRAMS, shlex.join(words)
        if words[0] == "vit_jax":
            args = cli.parse(words[1:])
            if args.command in ("train", "config") and args.config:
                stored = re.match(r"runs/|.+\.json$", args.config)
                named = [pair for pair in args.overrides if pair != ("model", "init")]  # weights that are not here
                raw = config.load("digits" if stored else args.config.replace(":init", ""), named)
                config.parse(TrainConfig, {**raw, "data": {"path": "", **raw["data"]}})


def test_the_front_page_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_key_of_a_configuration_is_explained():
    pages = module(ROOT / "docs" / "pages.py")
    silent = set()
    for _, part in [("", TrainConfig), *pages.sections()]:
        for cls in [part] if isinstance(part, type) else map(pages._class, part.values()):
            silent |= {f"{cls.__name__}.{key}" for key in config.hints(cls) if not keys.descriptions(cls).get(key)}
    assert silent == set()


def test_the_generated_pages_name_every_command_and_option():
    pages = module(ROOT / "docs" / "pages.py")
    text = pages.command_line()
    assert all(f"## vit_jax {name}\n" in text for name in cli.COMMANDS)
    assert "### vit_jax bench kernels" in text and "| `--dry_run` |" in text and "| `--config RECIPE[:ARG]` |" in text
    text = pages.configuration()
    assert "| `batch_size` | integer from 1 to 1,048,576 | `128` | examples per optimizer step" in text
    assert "| `optimizer` | [a row](#optim-optimizer) | `AdamW()` |" in text and "### optim.optimizer: lion" in text
    assert pages.plain("see :func:`~vit_jax.config.load`, ``x``") == "see `vit_jax.config.load`, `x`"


def test_few_blocks_are_not_run():
    reasons = [reason(example) for page in PAGES for example in examples(page)]
    assert len(reasons) > 40
    assert len([r for r in reasons if r]) <= MOST_NOT_RUN


@pytest.fixture
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """The folder that a page's blocks run in, with configurations, images and captions, under JAX's usual promotion."""
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    shorten(monkeypatch)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield tmp_path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of the first command, made short."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        shorten(patch)
        assert cli.main(small(["train", "--config", "configs/digits.py", "--workdir", str(folder)])) == 0
    return folder


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


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Runs take one device unless their mesh asks for more, and those started from Python are short, too."""

    def few(mesh: Any, devices: Any = None) -> Any:
        sizes = (mesh.replica, mesh.fsdp, mesh.tensor)
        return make_mesh(mesh, devices or jax.devices()[: abs(int(np.prod(sizes)))])

    patch.setattr(setup, "make_mesh", few)
    real = api.train

    def train(config_: Any, workdir: Any, hooks: Any = (), *, changes: Any = None) -> Any:
        raw = config.load(config_) if isinstance(config_, str) else config.plain(config_)
        raw = config.change(raw, (changes or {}).items())
        return real(raw, workdir, hooks, changes=shrunk(config.parse(TrainConfig, start.with_model(raw))))

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
        for words in commands(example.parsed):
            if words[0] == "vit_jax":
                assert cli.main(small(words[1:])) == 0, f"{page.name}, line {example.line}: {shlex.join(words)}"

    there = place / page.name
    there.write_text(re.sub(r"(?<![\w/])/(?=(my|other)/)", f"{place}/", page.read_text(encoding="utf-8")))
    for example in examples(there, evaluate):
        example.evaluate()


def heading(example: Example) -> str | None:
    """The section that a block is in."""
    found = re.findall(r"^## (.+)$", example.document.text[: example.start], re.MULTILINE)
    return found[-1] if found else None


@pytest.mark.parametrize("section", [s for s in dict.fromkeys(map(heading, examples(EXTEND))) if s])
def test_own_parts_run(section, place, digits, monkeypatch):
    monkeypatch.setitem(SIZES, "depth", 1)
    shutil.copytree(digits, place / "runs" / "digits")
    run(EXTEND, place, section)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if p != EXTEND], ids=lambda p: p.stem)
def test_every_block_runs(page, place, digits):
    if page.stem == "convert":
        shutil.copytree(digits, place / "runs" / "digits")
    run(page, place)
    for words in wanted() if page.stem == "README" else ():
        words = [word.replace("/my/", f"{place}/my/").replace("/other/", f"{place}/other/") for word in words]
        assert cli.main(small(words[1:])) == 0, shlex.join(words)
