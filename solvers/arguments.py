"""Checks of arguments: each error names the argument, its value and what to pass instead."""

import math

import numpy as np


def as_number(value: object) -> float:
    """``value`` if it is a real number, otherwise NaN, which lies in no range."""
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return float(value) if real else math.nan  # type: ignore[arg-type]


def require_whole(
    name: str, value: object, least: int, most: float = math.inf, *, bound: str = "", hint: str = ""
) -> None:
    """Raise `ValueError` unless ``value`` is a whole number from ``least`` to ``most``.

    ``bound`` spells out a long ``most``; ``hint`` is appended to the message.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (whole and least <= value <= most):  # type: ignore[operator]
        span = f"of at least {least}" if most == math.inf else f"from {least} to {bound or most}"
        raise ValueError(f"{name}={value!r} must be a whole number {span}{hint}")


def require_positive(name: str, value: object, example: str) -> None:
    """Raise `ValueError` unless ``value`` is a positive, finite number."""
    if not 0 < as_number(value) < math.inf:
        raise ValueError(f"{name}={value!r} must be a positive, finite number such as {example}")


def require_switch(name: str, value: object) -> None:
    """Raise `TypeError` unless ``value`` is True or False: any non-empty string is true, even "no"."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be True or False")
