"""The law of `odediff.grid.plateau`: how nodes spread over levels s = sigma/alpha, for every number of them.

Its constants were chosen along with those of `solvers.GPMultistep`; see benchmarks/README.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import cumulative_trapezoid

FIRST, RISE, NEAREST = 72.0, 0.6, 0.95
"""Of n nodes below the start s_0 the first is first max(1, n/8)^rise, but no nearer to it than nearest s_0."""
POINTS = 4001


class _Low(NamedTuple):
    """What few nodes do at low levels: their density's level and exponent, and where n of them end.

    The last node is last [(10 - less)/(n - less)]^fall, and at most `LARGEST_LAST`.
    """

    low: float
    low_power: float
    last: float
    less: float
    fall: float


FEW = _Low(low=0.18, low_power=0.7, last=0.048, less=1.5, fall=1.57)
MANY = _Low(low=0.28, low_power=0.4, last=0.058, less=0.0, fall=2.2)
LARGEST_LAST = 2.0
MOST_OF_FEW, LEAST_OF_MANY = 11, 18
HIGH, HIGH_AT, HIGH_POWER = (14.0, 28.0), (5, 13), 0.9
"""The levels above which nodes thin out: the first for up to 5 nodes, the second from 13 on."""
CLOSE, CLOSE_HIGH, CLOSE_AT = 22, 0.78, (22, 30, 50)
CLOSE_LOW, CLOSE_LOW_POWER, CLOSE_LAST = (0.15, 0.3, 0.3), (0.8, 0.6, 0.6), (0.011, 0.013, 0.013)
CLOSE_HIGH_POWER = (0.7, 0.3, 0.2)
"""From 22 nodes on they suit `solvers.gp_handover`: the high level over the number of nodes, and for 22, 30 and 50
nodes the low level, its exponent, the last node, and the exponent of the high level. What a network's answers scatter
by weighs most at high levels, where the error of a step is its length times that scatter: so many nodes go there."""
DEPARTURE_LOW, DEPARTURE_LOW_POWER, DEPARTURE_HIGH, DEPARTURE_HIGH_POWER = 0.04, 0.6, 2.0, 0.5
"""Of nodes that set out from a given level, as those of an inversion: the high level over the number of nodes. What is
missed at low levels, where everything begins, is carried all the way, and many nodes go there."""


class Law(NamedTuple):
    """A density in log s, 1/[(1 + (low/s)^low_power) (1 + (s/high)^high_power)], and the level of the last node."""

    low: float
    low_power: float
    high: float
    high_power: float
    last: float

    def between(self, first: float, last: float, count: int) -> NDArray[np.float64]:
        """The logarithms of the ``count - 2`` levels that have equal shares of the density between two levels."""
        levels = np.linspace(math.log(first), math.log(last), POINTS)
        s = np.exp(levels)
        density = 1 / ((1 + (self.low / s) ** self.low_power) * (1 + (s / self.high) ** self.high_power))
        passed = cumulative_trapezoid(density, -levels, initial=0)
        return np.interp(np.linspace(0, passed[-1], count)[1:-1], passed, levels)


def first_level(count: int, noisiest: float) -> float:
    """The first of ``count`` levels below the path's start, which is the noisiest."""
    return min(FIRST * max(1.0, count / 8) ** RISE, max(FIRST, NEAREST * noisiest))


def departing(count: int, last: float) -> Law:
    """The law of so many nodes that set out from the level ``last``."""
    return Law(DEPARTURE_LOW, DEPARTURE_LOW_POWER, DEPARTURE_HIGH * count, DEPARTURE_HIGH_POWER, last)


def law_of(count: int) -> Law:
    """The law of so many nodes that lead to the data."""
    if count >= CLOSE:
        low, low_power, high_power, last = (
            float(np.interp(count, CLOSE_AT, values))
            for values in (CLOSE_LOW, CLOSE_LOW_POWER, CLOSE_HIGH_POWER, CLOSE_LAST)
        )
        return Law(low, low_power, CLOSE_HIGH * count, high_power, last)
    share = float(np.interp(count, (MOST_OF_FEW, LEAST_OF_MANY), (0.0, 1.0)))
    few, many = ((p.low, p.low_power, p.last * ((10 - p.less) / (count - p.less)) ** p.fall) for p in (FEW, MANY))
    low, low_power, last = (a + share * (b - a) for a, b in zip(few, many, strict=True))
    return Law(low, low_power, float(np.interp(count, HIGH_AT, HIGH)), HIGH_POWER, min(last, LARGEST_LAST))
