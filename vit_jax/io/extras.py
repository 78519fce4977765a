"""What only some need and is not installed: one sentence, with a command that works where this package came from."""

from __future__ import annotations

import contextlib
import pathlib
import shlex
from collections.abc import Iterator

from vit_jax.io import installation
from vit_jax.types import UserError


@contextlib.contextmanager
def needed(what: str, extra: str, instead: str = "") -> Iterator[None]:
    """Imports within it that fail become a sentence.

    Args:
      what: the subject of the sentence: ``"a parquet: source"``.
      extra: of this package, which brings them; ``""`` where it brings them itself.
      instead: what else one can do, behind the command: ``", or write .npy"``.

    Raises:
      UserError: a package is not there, or cannot be imported, as a torchvision that was built for another PyTorch.

    Example:
      >>> with needed("a parquet: source", "parquet"):
      ...     import pyarrow
    """
    try:
        yield
    except (ImportError, RuntimeError) as e:
        reason = (str(e) or repr(e)).splitlines()[0]
        which = f"the extra {extra!r}" if extra else "what comes with this package"
        raise UserError(f"{what} takes {which} ({reason}): {command(extra)}{instead}.") from e


def command(extra: str, of: installation.Installation | None = None) -> str:
    """What installs ``extra`` beside the package, however that was installed."""
    of = installation.find() if of is None else of
    name, at, where = of.requirement.partition(" @ ")
    name, suffix = name if of.folder is None else _shown(of.folder), f"[{extra}]" if extra else ""
    wanted = name + suffix + (at + where if of.folder is None else "")
    return f"pip install {'-e ' if of.editable else ''}{shlex.quote(wanted)}"


def _shown(folder: pathlib.Path) -> str:
    return "." if folder == pathlib.Path.cwd() else str(folder)
