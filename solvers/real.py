"""Arithmetic on the time axis: float64, one number for the whole batch or one per sample."""

import numpy as np

Real = float | np.ndarray
"""A float, or a ``(B,)`` float64 array when samples keep their own time."""


def native(value: np.ndarray | np.floating) -> Real:
    """A float where ``value`` is a single number, so that coefficients never reach a tensor as 0-d arrays."""
    return value if isinstance(value, np.ndarray) and value.ndim else float(value)


def divide(numerator: Real, denominator: Real) -> Real:
    """The quotient; infinite, without a warning, where the denominator is zero."""
    if isinstance(numerator, float) and isinstance(denominator, float) and denominator:
        return float(numerator) / float(denominator)
    with np.errstate(divide="ignore", invalid="ignore"):
        return native(np.divide(numerator, denominator))


def log(value: Real) -> Real:
    """The logarithm; -inf, without a warning, at zero."""
    if isinstance(value, float) and value > 0:
        return float(np.log(value))
    with np.errstate(divide="ignore"):
        return native(np.log(value))


def is_zero(value: Real) -> bool:
    """Whether ``value`` is the float 0, for the whole batch."""
    return isinstance(value, float) and value == 0


def anywhere(condition: bool | np.ndarray) -> bool:
    """Whether a comparison of `Real` numbers holds for any sample; free of charge for floats."""
    return bool(condition.any()) if isinstance(condition, np.ndarray) else bool(condition)


def everywhere(condition: bool | np.ndarray) -> bool:
    """Whether a comparison of `Real` numbers holds for every sample."""
    return bool(condition.all()) if isinstance(condition, np.ndarray) else bool(condition)
