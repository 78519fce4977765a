"""Pages that mkdocs makes from the code when it builds the site: the models, the command line, all keys of a
configuration and all sentences of errors.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import inspect
import math
import pathlib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import griffe
import jax

from vit_jax import architectures, cli, config, models
from vit_jax.convert import formats
from vit_jax.convert.format import check
from vit_jax.models.base import abstract_init
from vit_jax.report import keys
from vit_jax.train.config import TrainConfig
from vit_jax.types import UserError

HEADER = """\
`configs/x.py` returns these keys; `--config.KEY=VALUE` on the command line changes one. A key without a default must be
set. Where a key takes **a row** of a table, write `name`, `name(a=1)` or a dictionary with the key `name`; from Python
an object of your own is accepted, too ([Extend](extend.md)). A Duration is written `20 epochs`, `1000 steps`,
`1e6 examples`, `5%` of the training, or a number of steps.
"""


MODELS_HEADER = """\
# Models

Every model trains on any mesh, with SAM, layer decay and remat, is evaluated, planned and exported. **Weights** come
from and go to the formats of these projects ([Convert](convert.md)), besides our own; a format may say sizes that its
project has no name for. **Fewer tokens**: it takes [`reduce`](images.md#fewer-tokens). **Tower**: it may be the image
tower of CLIP and CoCa. Parameters are those for 224 pixels and 1,000 classes, of image-text models those of all
towers.

| model | called elsewhere | parameters | weights | fewer tokens | tower |
|---|---|---|---|---|---|"""

PACKAGE = pathlib.Path(cli.__file__).parents[1]
ERRORS = (
    "UserError", "UsageError", "Stopped", "Unreadable", "Unsuitable", "NothingHeldOut", "NewerSchema",
    "ArgumentTypeError", "refused", "_unsupported",
)  # fmt: skip
"""Classes of errors, and functions that raise one, whose first argument is a sentence for the user."""
TOPICS = {
    "Configurations": "config configfile imports checks architectures models layers",
    "Data": "data augment",
    "Training": "train find plan objectives losses optim sharding loggers checkpoint",
    "Several hosts": "hosts launch",
    "Evaluation and prediction": "evals score predict decoding explain report metrics",
    "Weights of others": "convert create compress",
    "Files and downloads": "io",
    "Export": "export publish",
    "Kernels and benchmarks": "kernels bench",
    "Commands and functions": "cli api",
}
"""Heading of :func:`sentences` -> units of the package."""


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs: adds the generated pages, and the tables and pictures of the experiments."""
    from mkdocs.structure.files import File  # not there where tests look at what the pages say

    made = {"models.md": model_table, "cli.md": command_line, "config.md": configuration, "sentences.md": sentences}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text()))
    for path in sorted(pathlib.Path("experiments").rglob("*")):
        if path.suffix in (".md", ".png"):
            files.append(File(path.as_posix(), ".", config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs: what is beside ``docs/`` in the repository is below it in the site."""
    return re.sub(r"\]\(((?:\.\./)*)\.\./experiments/", r"](\1experiments/", markdown)


class Roles(griffe.Extension):
    """Shows Sphinx's cross-references in docstrings as code, and examples under their heading."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for everything that has a docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", plain(obj.docstring.value), flags=re.MULTILINE)


def plain(text: str) -> str:
    """Markdown of a docstring: cross-references of Sphinx become code, double backticks single ones."""
    return keys.plain(text).replace("``", "`")


def model_table(names: Iterable[str] = ()) -> str:
    """The page of all models, or of those of ``names``."""
    lines = [MODELS_HEADER]
    for name in names or (name for name in models.MODELS if name not in models.FAMILIES):
        model = models.replace_in_towers(models.create(name), scan=True)  # as many parameters, sooner
        shapes = jax.tree.leaves(abstract_init(model, model.inputs(224))["params"])
        weights = [fmt.name for fmt in formats.FORMATS.values() if _stores(fmt, models.create(name))]
        cells = (
            f"`{name}`", " ".join(f"`{alias}`" for alias in architectures.aliases(name)),
            f"{sum(math.prod(x.shape) for x in shapes):,d}", ", ".join(weights) or "ours",
            "yes" if hasattr(model, "reduce") else "", "yes" if isinstance(model, models.ImageModel) else "",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _stores(fmt: formats.Format, model: Any) -> bool:
    try:
        check(model, fmt, formats.FORMATS.values())
    except UserError:
        return False
    return True


def command_line() -> str:
    """The page of all commands, from their parsers."""
    lines = ["# Command line", ""]
    commands = cli.parsers()[1]
    lines += [f"- [`{name}`](#vit_jax-{name}): {parser.description}" for name, parser in commands.items()]
    lines += [
        "",
        "Exit status: 0 ok, 1 failed, 2 wrong usage. A mistake gets a sentence; `--verbose` adds the traceback.",
    ]
    for parser in commands.values():
        lines += _command(parser, 2)
    return "\n".join(lines) + "\n"


def _command(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    formatter = argparse.HelpFormatter(parser.prog, width=100)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, "")
    yield from ("", f"{'#' * level} {parser.prog}", "", _sentence(parser.description or ""), "")
    yield from ("```text", formatter.format_help().strip(), "```", "", "| argument | what it is |", "|---|---|")
    below: list[argparse.ArgumentParser] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {a.dest: a.help for a in action._choices_actions}
            for name, sub in action.choices.items():
                sub.description = helps[name]
                yield f"| `{name}` | {_literal(sub.description)} |"
                below.append(sub)
        elif action.dest != "help":
            names = ", ".join(action.option_strings) or action.metavar or action.dest
            value = (
                "" if action.nargs == 0 or not action.option_strings else f" {action.metavar or action.dest.upper()}"
            )
            yield f"| `{names}{value}` | {_literal(action.help or '')} |"
    if parser.epilog:
        yield from ("", _literal(_sentence(parser.epilog)))
    for sub in below:
        yield from _command(sub, level + 1)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _literal(text: str) -> str:
    """Plain text as Markdown."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def _cell(text: str) -> str:
    """One cell of a table."""
    return " ".join(plain(text).split()).replace("|", "\\|")


def configuration() -> str:
    """The page of every key of a configuration, from the dataclasses."""
    lines = ["# Configuration", "", HEADER, "", "## The run", ""]
    found = sections()
    anchors = {id(part): _anchor(path) for path, part in found}
    lines += _fields(TrainConfig, anchors)
    shown: set[Any] = set()
    for path, part in found:
        lines += ["", f"## {path} {{ #{_anchor(path)} }}", ""]
        if isinstance(part, type):
            lines += [_first(part), "", *_fields(part, anchors)]
            continue
        lines += [*_rows(part)]
        classes = [cls for cls in dict.fromkeys(map(_class, part.values())) if cls not in shown]
        shown.update(classes)
        for cls in classes:
            names = [name for name, row in part.items() if _class(row) is cls]
            name = names[0] if len(names) == 1 else cls.__name__
            lines += ["", f"### {path}: {name}", "", _first(cls), "", *_fields(cls, anchors)]
    return "\n".join(lines) + "\n"


def sections() -> list[tuple[str, Any]]:
    """Every dataclass and every table that the keys of a configuration lead to, by key: ``optim.sam``."""
    found: list[tuple[str, Any]] = []
    todo = [("", TrainConfig)]
    while todo:
        path, cls = todo.pop(0)
        for name, hint in config.hints(cls).items():
            for part in _parts(hint):
                if not any(part is other for _, other in found):
                    key = f"{path}{name}"
                    found.append((key, part))
                    classes = [part] if isinstance(part, type) else map(_class, part.values())
                    todo += [(f"{key}.", c) for c in dict.fromkeys(classes)]
    return sorted(found, key=lambda pair: pair[0].count("."))


def _parts(hint: Any) -> Iterator[Any]:
    """The tables and dataclasses within a type."""
    args = typing.get_args(hint)
    if tables := [a.table for a in args if isinstance(a, config.Choice)]:
        yield from tables
    else:
        for a in args:
            yield from _parts(a)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint not in (config.Duration, config.StepRange):
        yield hint


def _anchor(path: str) -> str:
    return path.replace(".", "-")


def _class(row: Any) -> Any:
    return row.cls if isinstance(row, config.Variant) else row


def _rows(table: Mapping[str, Any]) -> list[str]:
    """The lines that list a table's rows; several names of one row are counted."""
    lines = ["| row | builds | with |", "|---|---|---|"]
    names: dict[int, str] = {}
    for name, row in table.items():
        names.setdefault(id(row), name)
    for name in names.values():
        row = table[name]
        fields = row.fields if isinstance(row, config.Variant) else {}
        with_ = ", ".join(f"`{k}={_short(v)}`" for k, v in fields.items())
        lines.append(f"| `{name}` | `{_class(row).__name__}` | {with_} |")
    if aliases := [name for name, row in table.items() if names[id(row)] != name]:
        lines += ["", f"{len(aliases)} other names are understood, such as `{aliases[0]}` and `{aliases[-1]}`."]
    return lines


def _first(cls: Any) -> str:
    """The first paragraph of a class's docstring."""
    return plain(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0])


def _fields(cls: Any, anchors: Mapping[int, str]) -> list[str]:
    said, hints = keys.descriptions(cls), config.hints(cls)

    def linked(part: Any, text: str) -> str:
        text = text if isinstance(part, type) else "a row"
        return f"[{text}](#{anchors[id(part)]})" if id(part) in anchors else text

    lines = [
        f"| `{f.name}` | {keys.kind(hints[f.name], linked)} | {_default(f)} | {_cell(said.get(f.name, ''))} |"
        for f in dataclasses.fields(cls)
        if f.name in hints
    ]
    return ["| key | type | default | what it is |", "|---|---|---|---|", *lines] if lines else ["It has no keys."]


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    return "" if value is dataclasses.MISSING else f"`{_short(value)}`".replace("|", "\\|")


def _short(value: Any) -> str:
    """A value in a word: of a dataclass the fields that differ from their defaults, of a function its name."""
    if isinstance(value, config.Duration | config.StepRange):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = [
            f"{f.name}={_short(getattr(value, f.name))}"
            for f in dataclasses.fields(value)
            if f.init and f.name not in ("parent", "name") and getattr(value, f.name) != f.default
        ]
        return f"{type(value).__name__}({', '.join(changed)})"
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    return value.__qualname__.partition(".")[0] if callable(value) else repr(value)


def sentences() -> str:
    """The page of all sentences that errors are made of, from the code; what varies is in braces."""
    lines = ["# All sentences", "", "What varies stands in braces. [Troubleshooting](troubleshooting.md) has the rest."]
    for topic, units in TOPICS.items():
        found = {text for unit in units.split() for text in raised(unit)}
        lines += ["", f"## {topic}", "", *(f"- {_literal(text)}" for text in sorted(found, key=str.lower))]
    return "\n".join(lines) + "\n"


def raised(unit: str) -> Iterator[str]:
    """The sentences of a module or package directly below ``vit_jax``: ``"no such file or folder: {path}."``"""
    for path, module in _modules().items():
        if path.relative_to(PACKAGE).parts[0].removesuffix(".py") == unit:
            for node in ast.walk(module):
                match node:
                    case ast.Call(func=ast.Name(id=name), args=[text, *_]) if name in ERRORS:
                        yield from (t for t in _templates(text) if re.search("[a-z]{4}", re.sub("{.*?}", "", t)))


@functools.cache
def _modules() -> dict[pathlib.Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def _returned() -> dict[str, list[ast.expr]]:
    """What the functions of the package return, by their name."""
    found: dict[str, list[ast.expr]] = {}
    for module in _modules().values():
        for function in (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)):
            values = (node.value for node in ast.walk(function) if isinstance(node, ast.Return))
            found.setdefault(function.name, []).extend(filter(None, values))
    return found


def _templates(node: ast.expr) -> Iterator[str]:
    """The texts that an expression may be, with names in the place of values; nothing for what is no text."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(p.value if isinstance(p, ast.Constant) else f"{{{_name(p.value)}}}" for p in parts)
        case ast.IfExp(body=body, orelse=other):
            yield from (*_templates(body), *_templates(other))
        case ast.Call(func=ast.Name(id=name)):
            for value in _returned().get(name, ()):
                yield from () if isinstance(value, ast.Call) else _templates(value)


def _name(node: ast.expr) -> str:
    """What to call the value of an expression: its last name."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_").lower()
        case ast.Call(args=[first, *_]) | ast.Subscript(value=first) | ast.BinOp(left=first):
            return _name(first)
    return "…"
