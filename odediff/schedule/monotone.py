"""A smooth increasing function through given values at 0, 1, ..., T, with its derivative and its inverse."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import TypeVar

import numpy as np
from scipy.interpolate import CubicHermiteSpline, CubicSpline, PchipInterpolator, PPoly

from odediff.schedule.base import Array

Number = TypeVar("Number", float, Array)

_ITERATIONS = 60  # bisection alone needs 53; Newton about 3
_SETTLED = 4e-9  # relative length of a last step of Newton's method that leaves only round-off
_CLOSE = 4e-16  # relative change at which Newton's method has converged
_SEVERAL = 32  # number of values from which arrays are faster than Python floats; the bits are the same


class MonotoneSpline:
    """The C2 cubic spline (not-a-knot) through strictly increasing values, if it increases; else PCHIP, which is C1.

    The values themselves are reproduced exactly: an integer argument is the left end of its own piece, even the last
    one.
    """

    def __init__(self, values: Array) -> None:
        self.values = values
        self.last = len(values) - 1
        knots = np.arange(self.last + 1.0)
        spline: PPoly = CubicSpline(knots, values)
        self.is_c2 = _increases(spline)
        if not self.is_c2:
            slopes = PchipInterpolator(knots, values)(knots, 1)
            # PCHIP's rule at the ends may give 0, where the inverse would have infinite slope.
            for end, rise in ((0, values[1] - values[0]), (-1, values[-1] - values[-2])):
                slopes[end] = slopes[end] if slopes[end] > 0 else 0.5 * rise
            spline = CubicHermiteSpline(knots, values, slopes)
        last_piece = np.array([values[-1], float(spline(float(self.last), 1)), 0.0, 0.0])
        self._pieces = np.column_stack([spline.c[::-1], last_piece])

    def __call__(self, n: Array) -> Array:
        """Return the function at n in [0, T]."""
        (c0, c1, c2, c3), f = self._piece(n)
        return c0 + f * (c1 + f * (c2 + f * c3))

    def derivative(self, n: Array) -> Array:
        """Return d/dn at n in [0, T]."""
        (_, c1, c2, c3), f = self._piece(n)
        return c1 + f * (2.0 * c2 + f * 3.0 * c3)

    def inverse(self, value: Array) -> Array:
        """Return the n that has this value.

        Above the last value it continues proportionally, so that round-off stays small and the rest stays visible.
        """
        if value.size >= _SEVERAL:
            return self._invert_all(value)
        return np.array([self._invert(v) for v in value.ravel().tolist()]).reshape(value.shape)[()]

    def _invert(self, value: float) -> float:
        if value >= self.values[-1]:
            return self.last * value / float(self.values[-1])
        i = bisect_right(self.values, value) - 1
        c0, c1, c2, c3 = self._pieces[:, i].tolist()
        return i + _usual_root(c1, c2, c3, value - c0)

    def _invert_all(self, values: Array) -> Array:
        i = np.clip(np.searchsorted(self.values, values, side="right") - 1, 0, self.last - 1)
        c0, c1, c2, c3 = self._pieces[:, i]
        inside = i + _unit_roots(c1, c2, c3, values - c0)
        return np.where(values >= self.values[-1], self.last * values / self.values[-1], inside)

    def _piece(self, n: Array) -> tuple[Array, Array]:
        i = n.astype(np.int64)
        return self._pieces[:, i], n - i


def _usual_root(c1: float, c2: float, c3: float, target: float) -> float:
    """`_unit_roots` for one value, in Python's floats: the same bits, and faster for a few values."""
    try:
        f, last = _newton(c1, c2, c3, target)
    except ZeroDivisionError:
        return _unit_root(c1, c2, c3, target)
    return f if abs(last) <= _SETTLED * f else _unit_root(c1, c2, c3, target)


def _unit_root(c1: float, c2: float, c3: float, target: float) -> float:
    """Solve c1 f + c2 f^2 + c3 f^3 = target, increasing on [0, 1], for f, by bracketed Newton's method."""
    low, high = 0.0, 1.0
    f = target / (c1 + c2 + c3)
    for _ in range(_ITERATIONS):
        excess, slope = _excess(c1, c2, c3, target, f)
        low, high = (f, high) if excess < 0 else (low, f)
        newton = f - excess / slope if slope > 0 else math.inf
        previous, f = f, newton if low <= newton <= high else 0.5 * (low + high)
        if abs(f - previous) <= _CLOSE * f:
            break
    return f


def _unit_roots(c1: Array, c2: Array, c3: Array, target: Array) -> Array:
    """The root of each, by Newton's method without a bracket, or by `_unit_root` where that does not converge."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        f, last = _newton(c1, c2, c3, target)
        settled = np.abs(last) <= _SETTLED * f
    for j in np.argwhere(~settled):
        at = tuple(j)
        f[at] = _unit_root(*(float(values[at]) for values in (c1, c2, c3, target)))
    return f


def _newton(c1: Number, c2: Number, c3: Number, target: Number) -> tuple[Number, Number]:
    """The result of three steps of Newton's method from the chord's root, and the last step."""
    f = target / (c1 + c2 + c3)
    for _ in range(3):
        excess, slope = _excess(c1, c2, c3, target, f)
        step = excess / slope
        f = f - step
    return f, step


def _excess(c1: Number, c2: Number, c3: Number, target: Number, f: Number) -> tuple[Number, Number]:
    """``c1 f + c2 f^2 + c3 f^3 - target`` and its slope."""
    inner = c2 + f * c3
    return f * (c1 + f * inner) - target, c1 + f * (2.0 * inner + f * c3)


def _increases(spline: PPoly) -> bool:
    """Whether the derivative, a parabola on each unit piece, is positive everywhere."""
    cubic, square, slope, _ = spline.c if len(spline.c) == 4 else np.pad(spline.c, ((4 - len(spline.c), 0), (0, 0)))
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = -square / (3.0 * cubic)
    inside = np.where((cubic > 0) & (vertex > 0) & (vertex < 1), vertex, 0.0)
    ends = slope, slope + 2.0 * square + 3.0 * cubic
    lowest = slope + inside * (2.0 * square + inside * 3.0 * cubic)
    return bool(min(piece.min() for piece in (*ends, lowest)) > 0)
