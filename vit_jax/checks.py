"""Numbers that a user gives: in range, or a sentence that says what is."""

from __future__ import annotations

from vit_jax.types import UserError

INFINITE = float("inf")


def positive(what: str, value: float, hint: str = "") -> None:
    """Raises a :class:`UserError` unless ``value`` is positive and finite; ``hint`` ends the sentence."""
    if not 0 < value < INFINITE:
        raise UserError(f"{what}={value} is not allowed; give a positive number{hint}.")


def nonnegative(what: str, value: float) -> None:
    """Raises a :class:`UserError` unless ``value`` is zero or positive, and finite."""
    if not 0 <= value < INFINITE:
        raise UserError(f"{what}={value} is not allowed; give zero or a positive number.")


def within(what: str, value: float, low: float, high: float) -> None:
    """Raises a :class:`UserError` unless ``low <= value < high``."""
    if not low <= value < high:
        raise UserError(f"{what}={value} is not allowed; give a number in [{low:g}, {high:g}).")


def label_smoothing(value: float) -> None:
    """Raises a :class:`UserError` unless ``value`` is a share of probability that other classes can get."""
    if not 0 <= value < 1:
        raise UserError(f"label_smoothing={value} is outside [0, 1); 0.1 is usual, 0 turns it off.")
