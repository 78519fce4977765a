"""README and docs: every block runs, every command line is accepted, every key of a configuration is explained.

Blocks run from top to bottom, those of a page in one folder and one namespace, with runs made short and models small.
A block below ``<!-- not run: reason -->`` is only read.
"""

from __future__ import annotations

import ast
import pathlib
import re
import shlex
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests import documentation
from tests.documentation import EXTEND, JOURNEYS, PAGES, ROOT, SIZES, examples, heading, reason, run, small, wanted
from vit_jax import cli, config
from vit_jax.report import keys
from vit_jax.train.config import TrainConfig

MOST_NOT_RUN = 15
PROGRAMS = (
    "vit_jax",
    "pip",
    "pytest",
    "python",
    "pre-commit",
    "ruff",
    "mypy",
    "mkdocs",
    "cat",
    "ls",
    "export",
    "timeout",
)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_command_is_accepted(page, monkeypatch, tmp_path):
    """Also those that are not run: the parser takes them, and every key of a configuration exists."""
    documentation.fill(tmp_path)
    documentation.written(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    shell = [e for e in examples(page) if e.region.lexemes["arguments"] == "bash"]
    found = [words for example in shell for words in documentation.commands(example.parsed)]
    if page.stem == "README":
        assert len(wanted()) >= 15
        found += wanted()
    for words in found:
        assert words[0] in PROGRAMS, shlex.join(words)
        words = words[words.index("vit_jax") :] if words[0] == "timeout" else words
        if words[0] == "vit_jax":
            args = cli.parse(words[1:])
            if args.command in ("train", "config") and args.config:
                stored = re.match(r"runs/|.+\.json$", args.config)
                named = [pair for pair in args.overrides if pair != ("model", "init")]  # weights that are not here
                recipe = {"finetune_clip": "clip"}.get(args.config, args.config.replace(":init", ""))
                raw = config.load("digits" if stored else recipe, named)
                config.parse(TrainConfig, {**raw, "data": {"path": "", **raw["data"]}})


@pytest.fixture(scope="module")
def pages() -> Any:
    """The module that makes pages of the code."""
    return documentation.module(ROOT / "docs" / "pages.py")


def test_the_front_page_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_key_of_a_configuration_is_explained(pages):
    silent = set()
    for _, part in [("", TrainConfig), *pages.sections()]:
        for cls in [part] if isinstance(part, type) else map(pages._class, part.values()):
            silent |= {f"{cls.__name__}.{key}" for key in config.hints(cls) if not keys.descriptions(cls).get(key)}
    assert silent == set()


def test_the_table_of_models(pages):
    names = ("vit_ti16", "mixer_s32", "hornet_tiny_7x7", "clip_vit_b32")
    rows = [row[2:-2].split(" | ") for row in pages.model_table(names).splitlines() if row.startswith("| `")]
    assert [row[0] for row in rows] == [f"`{name}`" for name in names]
    assert [row[2] for row in rows] == ["5,717,416", "19,104,624", "22,409,512", "151,277,313"]
    assert [row[3:] for row in rows] == [
        ["timm, hf, npz, big_vision", "yes", "yes"],
        ["timm, npz, big_vision", "", "yes"],
        ["ours", "", "yes"],
        ["open_clip, hf", "", ""],
    ]


def test_the_generated_pages_name_every_command_and_option(pages):
    text = pages.command_line()
    assert all(f"## vit_jax {name}\n" in text for name in cli.COMMANDS)
    assert "### vit_jax bench kernels" in text and "| `--dry_run` |" in text and "| `--config RECIPE[:ARG]` |" in text
    text = pages.configuration()
    assert "| `batch_size` | integer from 1 to 1,048,576 | `128` | examples per optimizer step" in text
    assert "| `optimizer` | [a row](#optim-optimizer) | `AdamW()` |" in text and "### optim.optimizer: lion" in text
    assert pages.plain("see :func:`~vit_jax.config.load`, ``x``") == "see `vit_jax.config.load`, `x`"


@pytest.fixture(scope="module")
def templates(pages) -> list[re.Pattern[str]]:
    """The sentences of the generated page, what stands in braces being anything."""
    lines = [line[2:] for line in pages.sentences().splitlines() if line.startswith("- ")]
    unescaped = [re.sub(r"\\(.)", r"\1", line) for line in lines]
    return [re.compile(".*".join(map(re.escape, re.split(r"\{[^{}]*\}", line))), re.DOTALL) for line in unescaped]


@pytest.mark.parametrize(
    "command",
    [
        "train --config digit --workdir w",
        "train --config digits --workdir w --config.optim.lrr=1",
        "train --config digits --workdir w --config.duration=long",
        "train --config digits --workdir w --config.data.path=folder:/nowhere",
        "train --workdir nothing",
        "models vit_b17",
        "predict --checkpoint nowhere a.png",
        "evaluate --checkpoint nowhere --data digits",
        "data check csv:nowhere.csv",
    ],
)
def test_the_page_of_sentences_has_what_a_mistake_is_told(command, templates, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(command.split()) in (1, 2)
    said = capsys.readouterr().err.strip().partition(": ")[2]
    found = [p.pattern for p in templates if p.fullmatch(said)]
    assert found and max(len(re.sub(r"\.\*", "", pattern)) for pattern in found) >= 8, said


def test_every_sentence_has_a_topic(pages):
    placed = " ".join(pages.TOPICS.values()).split()
    units = {path.stem for path in pages.PACKAGE.iterdir()}
    assert len(placed) == len(set(placed))
    assert {unit for unit in units - set(placed) if any(pages.raised(unit))} == set()
    assert len(pages.sentences().splitlines()) > 400


def test_few_blocks_are_not_run():
    reasons = [reason(example) for page in PAGES for example in examples(page)]
    assert len(reasons) > 40
    assert len([r for r in reasons if r]) <= MOST_NOT_RUN


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder that a page's blocks run in."""
    with documentation.working(tmp_path):
        yield tmp_path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of the first command, made short."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        documentation.shorten(patch)
        assert cli.main(small(["train", "--config", "digits", "--workdir", str(folder)])) == 0
    return folder


def test_a_block_with_a_title_is_a_file_and_the_shell_runs_what_follows(tmp_path):
    page = tmp_path / "page.md"
    page.write_text('```python title="parts.py"\nX = 1\n```\n\n```bash\nvit_jax config digits --json c.json\n```\n')
    place = tmp_path / "place"
    place.mkdir()
    with documentation.working(place):
        run(page, place)
    assert (place / "parts.py").read_text() == "X = 1\n" and (place / "c.json").exists()


SECTIONS = [section for section in dict.fromkeys(map(heading, examples(EXTEND))) if section]
SOON = ("In a file of your own",)
"""Sections that are run in every suite; what the others show has tests of its own."""


@pytest.mark.parametrize("section", [pytest.param(s, marks=() if s in SOON else pytest.mark.slow) for s in SECTIONS])
def test_own_parts_run(section, place, digits, monkeypatch):
    monkeypatch.setitem(SIZES, "depth", 1)
    shutil.copytree(digits, place / "runs" / "digits")
    run(EXTEND, place, section)


@pytest.mark.slow
def test_own_parts_run_by_name(place, monkeypatch):
    """The classes of all sections in one file, named as the page's table says."""
    monkeypatch.setitem(SIZES, "depth", 1)
    code = [example.parsed for example in examples(EXTEND) if example.region.lexemes["arguments"] == "python"]
    kept = (ast.ImportFrom, ast.Import, ast.FunctionDef, ast.ClassDef)
    nodes = [node for text in code for node in ast.parse(text).body if isinstance(node, kept)]
    (place / "parts.py").write_text("\n\n".join(map(ast.unparse, nodes)))
    table = EXTEND.read_text(encoding="utf-8").partition("| part |")[2].partition("\n\n")[0]
    words = [word for text in re.findall("`(--config.+?)`", table) for word in shlex.split(text)]
    words = [word for word in words if "MyModel" not in word]
    assert len(words) == 8 and words[0] == "--config.imports=parts.py"
    train = ["train", "--config", "digits", "--workdir", "runs/all", *words]
    assert cli.main(small(train)) == 0
    assert cli.main(["predict", "--workdir", "runs/all", "a.png"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if p != EXTEND and p not in JOURNEYS], ids=lambda p: p.stem)
def test_every_block_runs(page, place, digits):
    if page.stem == "convert":
        shutil.copytree(digits, place / "runs" / "digits")
    run(page, place)
    for words in wanted() if page.stem == "README" else ():
        words = [word.replace("/my/", f"{place}/my/").replace("/other/", f"{place}/other/") for word in words]
        assert cli.main(small(words[1:])) == 0, shlex.join(words)
