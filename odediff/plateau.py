"""The law of `odediff.grid.plateau`: how any number of nodes is spread over levels s = sigma/alpha.

Its constants were chosen together with those of `solvers.GPMultistep`; see benchmarks/DEVELOPMENT.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import cumulative_trapezoid

FIRST, RISE, NEAREST = 72.0, 0.6, 0.95
"""The first of n nodes is at min(FIRST max(1, n/8)^RISE, max(FIRST, NEAREST s_0)), where s_0 is the start."""
POINTS = 4001
"""The number of points at which the density is integrated."""


class _Low(NamedTuple):
    """The law of up to 21 nodes at low levels: the density's level and exponent, and the last of n nodes.

    The last node is at last [(10 - less)/(n - less)]^fall, and at most `LARGEST_LAST`.
    """

    low: float
    low_power: float
    last: float
    less: float
    fall: float


FEW = _Low(low=0.18, low_power=0.7, last=0.048, less=1.5, fall=1.57)
MANY = _Low(low=0.28, low_power=0.4, last=0.058, less=0.0, fall=2.2)
LARGEST_LAST = 2.0
"""The highest level of the last of up to 21 nodes."""
MOST_OF_FEW, LEAST_OF_MANY = 11, 18
"""The numbers of nodes up to which `FEW` holds and from which `MANY` holds; between these, the law is interpolated."""
HIGH, HIGH_AT, HIGH_POWER = (14.0, 28.0), (5, 13), 0.9
"""The levels above which nodes thin out (the first for up to 5 nodes, the second from 13 on), and their exponent."""
CLOSE, CLOSE_HIGH, CLOSE_AT = 22, 0.78, (22, 30, 50)
CLOSE_LOW, CLOSE_LOW_POWER, CLOSE_LAST = (0.15, 0.3, 0.3), (0.8, 0.6, 0.6), (0.011, 0.003, 0.003)
CLOSE_HIGH_POWER = (0.7, 0.3, 0.2)
ABOVE_END, LARGEST_ABOVE_END = 2.0, 0.013
"""The law from 22 nodes on, which suits `solvers.gp_handover`: the high level divided by the number of nodes and, for
22, 30 and 50 nodes, the low level, its exponent, the last node, and the exponent of the high level. The scatter of a
network's errors weighs most at high levels, where a step's error is its length times that scatter: many nodes go
there. The last node is not below min(ABOVE_END s_end, LARGEST_ABOVE_END), where s_end is the level of the path's end:
a network that is followed to the data leaves an error there that is proportional to the last level, but one with a
table of levels is followed to the table's end only, and a node close to it would be wasted."""
PURE_AT, PURE_HIGH, PURE_HIGH_POWER = 34, 0.3, 0.7
"""The high level divided by the number of nodes, and its exponent, from 34 nodes on if the path begins in pure noise
(alpha = 0). There a network cannot predict eps, so that its errors of x0 are bounded at high levels, and fewer nodes
are needed there. Of fewer nodes in all, those around s = 10 would be too far apart for `solvers.gp_handover`."""
DEPARTURE_LOW, DEPARTURE_LOW_POWER, DEPARTURE_HIGH, DEPARTURE_HIGH_POWER = 0.04, 0.6, 2.0, 0.5
"""The law of nodes that start from a given level, as in an inversion; DEPARTURE_HIGH is the high level divided by the
number of nodes. Errors at low levels, where the solve begins, are carried all the way, so many nodes go there."""


class Law(NamedTuple):
    """A density in log s, 1/[(1 + (low/s)^low_power) (1 + (s/high)^high_power)], and the level of the last node."""

    low: float
    low_power: float
    high: float
    high_power: float
    last: float

    def between(self, first: float, last: float, count: int) -> NDArray[np.float64]:
        """The logarithms of the ``count - 2`` levels that divide the density between two levels into equal shares."""
        levels = np.linspace(math.log(first), math.log(last), POINTS)
        s = np.exp(levels)
        density = 1 / ((1 + (self.low / s) ** self.low_power) * (1 + (s / self.high) ** self.high_power))
        passed = cumulative_trapezoid(density, -levels, initial=0)
        return np.interp(np.linspace(0, passed[-1], count)[1:-1], passed, levels)


def first_level(count: int, noisiest: float) -> float:
    """The first of ``count`` levels below the path's start, whose level is ``noisiest``."""
    return min(FIRST * max(1.0, count / 8) ** RISE, max(FIRST, NEAREST * noisiest))


def departing(count: int, last: float) -> Law:
    """The law of ``count`` nodes that start from the level ``last``."""
    return Law(DEPARTURE_LOW, DEPARTURE_LOW_POWER, DEPARTURE_HIGH * count, DEPARTURE_HIGH_POWER, last)


def law_of(count: int, noisiest: float, end: float) -> Law:
    """The law of ``count`` nodes that lead to the data, on a path from the level ``noisiest`` to the level ``end``."""
    if count >= CLOSE:
        low, low_power, high_power, last = (
            float(np.interp(count, CLOSE_AT, values))
            for values in (CLOSE_LOW, CLOSE_LOW_POWER, CLOSE_HIGH_POWER, CLOSE_LAST)
        )
        last = max(last, min(ABOVE_END * end, LARGEST_ABOVE_END))
        if math.isinf(noisiest) and count >= PURE_AT:
            return Law(low, low_power, PURE_HIGH * count, PURE_HIGH_POWER, last)
        return Law(low, low_power, CLOSE_HIGH * count, high_power, last)
    share = float(np.interp(count, (MOST_OF_FEW, LEAST_OF_MANY), (0.0, 1.0)))
    few, many = ((p.low, p.low_power, p.last * ((10 - p.less) / (count - p.less)) ** p.fall) for p in (FEW, MANY))
    low, low_power, last = (a + share * (b - a) for a, b in zip(few, many, strict=True))
    return Law(low, low_power, float(np.interp(count, HIGH_AT, HIGH)), HIGH_POWER, min(last, LARGEST_LAST))
