"""What the peers share: other projects' own models, which conversions are compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vit_jax.types import UserError


@contextlib.contextmanager
def packages(purpose: str) -> Iterator[None]:
    """Imports within it that fail become a sentence: those of the extra ``torch`` are nobody's duty to have.

    Raises:
      UserError: a package is not there, or cannot be imported, as a torchvision that was built for another PyTorch.
    """
    try:
        yield
    except (ImportError, RuntimeError) as e:
        reason = (str(e) or repr(e)).splitlines()[0]
        raise UserError(
            f"{purpose} takes packages that cannot be imported ({reason}): pip install 'vit_jax[torch]'."
        ) from e
