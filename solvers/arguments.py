"""What arguments must be: one error that names the argument, its value and what to give instead."""

import math

import numpy as np


def as_number(value: object) -> float:
    """``value`` where it is a real number; NaN, which lies in no range, where it is anything else."""
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return float(value) if real else math.nan  # type: ignore[arg-type]


def require_whole(
    name: str, value: object, least: int, most: float = math.inf, *, bound: str = "", hint: str = ""
) -> None:
    """Raise `ValueError` unless ``value`` is a whole number from ``least`` to ``most``.

    ``bound`` spells a long ``most``; ``hint`` ends the message with what else there is.
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
    """Raise `TypeError` unless ``value`` is True or False: a text that says no is true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be True or False")
