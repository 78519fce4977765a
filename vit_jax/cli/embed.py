"""``vit_jax embed``"""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import vit_jax as vj
from vit_jax.cli import options

HELP = "write the embeddings of images and texts to a file"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.set_defaults(takes_overrides=True)
    options.weights(parser)
    text = "a new file: .npy, float32[N,E] with a .json beside it that names the rows, or .parquet"
    parser.add_argument("--output", type=options.path, required=True, metavar="FILE", help=text)
    parser.add_argument(
        "--text", type=options.filled, nargs="+", default=[], metavar="T", help="texts, or .txt files with one a line"
    )
    options.max_pixels(parser)
    text = "images, folders of images, or a source such as csv:/my/pairs.csv, whose captions are embedded too"
    parser.add_argument("paths", type=options.path, nargs="*", metavar="PATH", help=text)
    parser.epilog = "Unit length for image-text models; the pooled features, as they are, for models of images alone."


def run(args: argparse.Namespace) -> int:
    """Writes images, then their captions, then texts. Exit status 1 if an image could not be read and was left out."""
    import sys

    import numpy as np

    from vit_jax import api, config
    from vit_jax.cli import output

    target = pathlib.Path(args.output)
    write = config.lookup(WRITERS, target.suffix, "kind of output file")
    for path in (target, target.with_suffix(".json")) if target.suffix == ".npy" else (target,):
        if os.path.lexists(path):
            raise vj.UserError(f"--output {str(path)!r} exists already; name a new file.")
    if not os.path.isdir(target.parent):
        raise vj.UserError(f"--output {args.output!r} cannot be written: there is no folder {str(target.parent)!r}.")
    if write is _parquet:
        output.parquet(".npy")
    if not (args.paths or args.text):
        raise vj.UsageError("there is nothing to embed; name images, folders of images, or texts by --text.")
    texts = _texts(args.text)
    model = options.opened(args, options.changes(args))
    rows = api.embedded(model, args.paths, texts, max_pixels=args.max_pixels)
    errors = [row["error"] for row in rows if "error" in row]
    rows = [row for row in rows if "error" not in row]
    for error in errors:
        print(f"vit_jax embed: {error}", file=sys.stderr)
    if not rows:
        raise vj.UserError(f"none of the {len(errors)} images could be read, and nothing was written.")
    embeddings = np.stack([row.pop("embedding") for row in rows]).astype(np.float32)
    write(target, embeddings, rows)
    written = sum("text" in row for row in rows)
    counts = f"{len(rows) - written:,} images and {written:,} texts, {len(errors)} images left out"
    print(f"{target}: float32[{', '.join(map(str, embeddings.shape))}], {counts}")
    return int(bool(errors))


def _texts(given: Sequence[str]) -> list[str]:
    """Texts as they are, ``.txt`` files as their lines without the empty ones.

    Raises:
      UserError: a file cannot be read or holds no text.
    """
    from vit_jax.io import text as io

    texts: list[str] = []
    for text in given:
        if not text.endswith(".txt"):
            texts.append(text)
            continue
        lines = io.lines(io.read(text, f"--text {text!r}"))
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise vj.UserError(f"--text {text!r} holds no text; write one a line.")
        texts += found
    return texts


def _npy(target: pathlib.Path, embeddings: Any, rows: Sequence[dict[str, str]]) -> None:
    """The array, and ``"path"``, ``"label"`` and ``"text"`` of each row in a JSON list beside it."""
    import numpy as np

    from vit_jax.io import jsonfile

    def array(path: pathlib.Path) -> None:
        with path.open("wb") as file:
            np.save(file, embeddings, allow_pickle=False)

    _writing(target.with_suffix(".json"), lambda path: jsonfile.write(path, list(rows)))
    _atomically(target, array)


def _parquet(target: pathlib.Path, embeddings: Any, rows: Sequence[dict[str, str]]) -> None:
    """Columns ``path``, ``label`` and ``text``, those that there are, and ``embedding``, a list of fixed size."""
    from vit_jax.cli import output
    from vit_jax.io.text import escaped

    pyarrow = output.parquet(".npy")
    vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(embeddings.ravel()), embeddings.shape[1])
    names = [name for name in ("path", "label", "text") if any(name in row for row in rows)]
    texts = {name: [None if (text := row.get(name)) is None else escaped(text) for row in rows] for name in names}
    columns = {name: pyarrow.array(column, pyarrow.string()) for name, column in texts.items()}
    table = pyarrow.table({**columns, "embedding": vectors})
    _atomically(target, lambda path: pyarrow.parquet.write_table(table, path))


def _atomically(target: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    from vit_jax.io import atomic

    def whole(path: pathlib.Path) -> None:
        with atomic.new_file(path) as new:
            write(new)

    _writing(target, whole)


def _writing(target: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:

    try:
        write(target)
    except OSError as e:
        raise vj.UserError(f"--output {str(target)!r} cannot be written ({e.strerror}); choose another place.") from e


WRITERS: dict[str, Callable[[pathlib.Path, Any, Sequence[dict[str, str]]], None]] = {".npy": _npy, ".parquet": _parquet}
"""Ending of the output file -> what writes it."""
