"""JSON for programs: to a file, atomically, or to the terminal."""

from __future__ import annotations

import pathlib
from typing import Any

from vit_jax.evals.base import finite
from vit_jax.io import atomic, jsonfile
from vit_jax.types import UserError


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
