"""Configuration: a `ml_collections` file outside, frozen typed dataclasses inside.

A user writes plain data: ``configs/x.py`` returns a ``ConfigDict``, the command line overrides its keys. :func:`parse`
turns that once into the dataclasses that live beside what they configure; their defaults are the only defaults, and an
unknown or mistyped field is a sentence. Where one of several things is selected, the field is
``Annotated[T, Choice(TABLE)]`` and the user writes ``"name"``, ``"name(a=1)"`` or ``{"name": "name", "a": 1}``. Where
the choice names a ``base``, Python code may also hand in a value of its own; :func:`record` is what files show of it.
Classes of the files that the key ``imports`` names are known by their names like rows of the tables
(:mod:`vit_jax.imports`).
"""

from vit_jax.checks import suggest
from vit_jax.config.choices import Choice, Variant, hints, lookup, spec_fields
from vit_jax.config.comparison import difference, resumable, resumable_keys
from vit_jax.config.durations import MAX_STEPS, Duration, StepRange
from vit_jax.config.overrides import change, literal, load, override, plain
from vit_jax.config.own import Imports, known, name_of, named
from vit_jax.config.parsing import parse, record_of, row_of, unparse
from vit_jax.config.records import PYTHON, record

__all__ = [
    "MAX_STEPS", "PYTHON", "Choice", "Duration", "Imports", "StepRange", "Variant", "change", "difference", "hints",
    "known", "literal", "load", "lookup", "name_of", "named", "override", "parse", "plain", "record", "record_of",
    "resumable", "resumable_keys", "row_of", "spec_fields", "suggest", "unparse",
]  # fmt: skip
