"""JSON for programs: to a file, atomically, or to the terminal."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from vit_jax.evals.base import finite
from vit_jax.io import atomic
from vit_jax.types import UserError


def write(target: str | None, value: Any) -> None:
    """Writes ``value`` to the file ``target``, to the terminal for ``"-"``, or nowhere for None.

    Raises:
      UserError: the file cannot be written.
    """
    text = json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False)
    if target == "-":
        print(text)
    elif target is not None:
        try:
            atomic.write_text(pathlib.Path(target), text + "\n")
        except OSError as e:
            why = f"cannot be written ({e.strerror}); name a file in an existing folder."
            raise UserError(f"--json {target!r} {why}") from e
