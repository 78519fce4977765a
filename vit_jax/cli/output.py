"""What programs read: JSON to a file, atomically, or to the terminal; tables of rows."""

from __future__ import annotations

import csv
import io
import pathlib
from collections.abc import Sequence
from typing import Any

from vit_jax.evals.base import finite
from vit_jax.io import atomic, jsonfile
from vit_jax.io.extras import needed
from vit_jax.io.text import escaped
from vit_jax.types import UsageError, UserError


def write(target: str | None, value: Any) -> None:
    """Writes ``value`` to the file ``target``, to the terminal for ``"-"``, or nowhere for None.

    Raises:
      UserError: the file cannot be written.
    """
    text = "" if target is None else jsonfile.dumps(finite(value))
    if target == "-":
        print(text, end="")
    elif target is not None:
        try:
            atomic.write_text(pathlib.Path(target), text)
        except OSError as e:
            why = f"cannot be written ({e.strerror}); name a file in an existing folder."
            raise UserError(f"--json {target!r} {why}") from e


def check_table(target: str) -> None:
    """Raises :class:`UserError` where :func:`table` could not write to ``target``, as far as its name tells."""
    path = pathlib.Path(target)
    if path.suffix not in (".csv", ".parquet"):
        raise UsageError(f"--table {target!r} is neither .csv nor .parquet; name a file that ends so.")
    if not path.parent.is_dir():
        raise UserError(f"--table {target!r} cannot be written: there is no folder {str(path.parent)!r}.")
    if path.suffix == ".parquet":
        parquet(".csv")


def table(target: str, rows: Sequence[dict[str, Any]]) -> None:
    """Writes ``rows`` to a ``.csv`` or ``.parquet`` file, a column for each key that any of them has.

    What a row lacks is empty, in parquet null.

    Raises:
      UserError: the file cannot be written.
    """
    path, names = pathlib.Path(target), list(dict.fromkeys(name for row in rows for name in row))
    names.sort(key=lambda name: name == "error")  # the last one, wherever it was met first
    rows = [{k: escaped(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows]
    with atomic.writing(f"--table {target!r}"):
        if path.suffix == ".csv":
            text = io.StringIO()
            writer = csv.DictWriter(text, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            return atomic.write_text(path, text.getvalue())
        arrow = parquet(".csv")
        columns = arrow.table({name: [row.get(name) for row in rows] for name in names})
        with atomic.new_file(path) as new:
            arrow.parquet.write_table(columns, new)


def parquet(instead: str) -> Any:
    """The module pyarrow; raises :class:`UserError` where it is missing, which names another kind of file."""
    with needed("writing parquet", "parquet", f", or write {instead}"):
        import pyarrow.parquet
    return pyarrow
