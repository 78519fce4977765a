"""Vision and image-text Transformers in JAX: train, evaluate, compress, explain and ship.

What most programs need is here, ``import vit_jax as vj``: one function for each thing that the command line does. A
name is looked up when it is first used, so that the import itself costs nothing. All else is in the subpackages; some
have the name of a function, which comes first: ``vit_jax.train`` trains, and what is in the subpackage of that name is
written ``from vit_jax.train import loop``.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_jax.api import Conversion as Conversion
    from vit_jax.api import best_checkpoint as best_checkpoint
    from vit_jax.api import convert as convert
    from vit_jax.api import create as create
    from vit_jax.api import embed as embed
    from vit_jax.api import evaluate as evaluate
    from vit_jax.api import export as export
    from vit_jax.api import list_models as list_models
    from vit_jax.api import list_pretrained as list_pretrained
    from vit_jax.api import load as load
    from vit_jax.api import predict as predict
    from vit_jax.api import train as train
    from vit_jax.compress.stitch import stitch as stitch
    from vit_jax.convert.preprocess import Preprocess as Preprocess
    from vit_jax.convert.pretrained import Pretrained as Pretrained
    from vit_jax.convert.zoo import PretrainedTag as PretrainedTag
    from vit_jax.data.sources import Source as Source
    from vit_jax.data.sources import open_source as open_source
    from vit_jax.evals.base import Report as Report
    from vit_jax.export.base import Exported as Exported
    from vit_jax.find import BatchSearch as BatchSearch
    from vit_jax.find import RateSweep as RateSweep
    from vit_jax.find import find_batch as find_batch
    from vit_jax.find import find_lr as find_lr
    from vit_jax.plan import Plan as Plan
    from vit_jax.plan import plan as plan
    from vit_jax.publish.push import Pushed as Pushed
    from vit_jax.publish.push import push as push
    from vit_jax.train.loop import Result as Result
    from vit_jax.types import UsageError as UsageError
    from vit_jax.types import UserError as UserError

__version__ = "0.2.0"

HOMES = {
    "api": "create load predict embed train evaluate convert export list_models list_pretrained best_checkpoint "
    "Conversion",
    "compress.stitch": "stitch",
    "convert.preprocess": "Preprocess",
    "convert.pretrained": "Pretrained",
    "convert.zoo": "PretrainedTag",
    "data.sources": "Source open_source",
    "evals.base": "Report",
    "export.base": "Exported",
    "find": "find_lr find_batch RateSweep BatchSearch",
    "plan": "plan Plan",
    "publish.push": "push Pushed",
    "train.loop": "Result",
    "types": "UsageError UserError",
}
"""Module -> the public names in it."""
PUBLIC = {name: module for module, names in HOMES.items() for name in names.split()}
"""Public name -> the module that it is in."""

__all__ = ["__version__", *PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """This package: to the name of a function it binds no subpackage, as importing one otherwise does."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
