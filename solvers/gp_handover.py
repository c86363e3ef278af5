"""Where the regression of `GPMultistep` hands over to Adams' formulas.

Between close nodes a trajectory is nearly polynomial in asinh(s/c), and Adams' formulas beat the regression. That holds
along the rotation from the data to pure noise, but not between distant nodes; and towards the data, at high levels, a
polynomial amplifies the network's errors, which grow with s as errors of x0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise, zip_longest
from typing import NamedTuple

import numpy as np

from solvers.lines import Rotation
from solvers.multistep import ExponentialAdams, Formula
from solvers.ode import Node
from solvers.real import Real

LINE = Rotation(0.4)
"""The line of Adams' formulas, the default of `AdaptiveAdams`."""
TO_DATA = ((0.26, 6), (0.395, 5))
TO_DATA_BOUNDED = ((0.2, 6), (0.26, 5))
TO_NOISE = ((1.0, 3),)
"""Each entry is (largest node distance in asinh(s/c), order). Larger distances amplify the network's errors near the
data. Where the error of x0 is bounded (`PathODE.bounded_error`), the regression follows trained networks better up to
closer nodes; see benchmarks/DEVELOPMENT.md. Towards the noise a low order is used up to larger distances, because the
regression, which starts there without history, is worse still."""
LARGEST_S = 12.0
"""The largest s = sigma/alpha from which a step towards the data is one of Adams' formulas."""
NEAR, NEAR_POINTS = 0.1, 2
"""Below s = 0.1, steps towards the data read two slopes: between nodes that are far apart in log s, higher
orders would amplify the network's errors, and overshoot where fine structure of the data is resolved."""
CLOSE_NEAR, CLOSE_NEAR_POINTS = 0.35, 3
"""They read three if the newest two nodes are at most 0.35 apart in log s."""
MOST_PAST_SLOPES = 3
"""The first step reads at most this many slopes of earlier nodes: a fourth would be held beside the predictions that
the regression reads until then."""


class Stretch(NamedTuple):
    """The steps from number ``first`` to the last: for each, a formula over slopes along `LINE`, newest first.

    The first one reads up to ``earlier`` slopes of nodes before its own, the following ones up to ``kept``.
    """

    first: int
    formulas: tuple[Formula, ...]
    earlier: int
    kept: int


NO_HANDOVER = Stretch(0, (), 0, 0)
IDENTITY = Formula(1.0, ())
"""The formula that leaves the state as it is."""


class _Circle:
    """The path ``alpha = cos u, sigma = sin u``: weights depend only on ratios, which all paths share."""

    def node_at(self, log_snr: Real) -> Node:
        """The node at that log-SNR."""
        level = np.asarray(log_snr)
        return Node(np.nan, np.exp(-0.5 * np.logaddexp(0, -2 * level)), np.exp(-0.5 * np.logaddexp(0, 2 * level)))


@lru_cache(maxsize=64)
def stretch(
    nodes: tuple[Node, ...],
    calls: tuple[bool, ...],
    past: tuple[Node, ...],
    denoised: Node | None = None,
    bounded: bool = False,
) -> Stretch:
    """The steps between ``nodes`` that Adams' formulas make, with slopes known at ``past`` nodes, newest first.

    ``calls`` marks the steps that make a call. Towards the data Adams' formulas begin where enough slopes are
    known, at a level of at most `LARGEST_S`; towards the noise they make all steps or none. A step that makes no
    call, or reaches pure noise, follows the newest slope. ``bounded`` is `PathODE.bounded_error`. If the node
    ``denoised`` is given, the last step gives the data that denoising there would give.
    """
    to_data = nodes[-1].s < nodes[0].s
    below = np.array([a.s <= LARGEST_S for a in nodes[:-1]])
    apart = np.abs(np.diff(np.arcsinh(np.array([node.s for node in nodes]) / LINE.c)))
    farthest = apart[below].max() if below.any() else np.inf
    orders = (TO_DATA_BOUNDED if bounded else TO_DATA) if to_data else TO_NOISE
    order = next((order for most, order in orders if farthest <= most), None)
    if order is None:
        return NO_HANDOVER
    method = ExponentialAdams(order, LINE, "asinh", corrector=True)
    earlier = min(method.points - 1, MOST_PAST_SLOPES)
    silent = calls.index(True) if True in calls else len(calls)
    first = max(int(np.argmax(below)), silent + earlier - len(past)) if to_data else 0
    if first >= len(calls):
        return NO_HANDOVER
    known = [*reversed(nodes[silent:first]), *past][:earlier]
    last = len(calls) - calls[::-1].index(True)
    stays = denoised == nodes[last - 1]
    ahead = [*nodes[first:last], *([] if stays else [denoised or nodes[last]])]
    trail = [*reversed(known), *nodes[first:last]]
    most = np.full(last - first, method.points)
    if to_data:
        most = np.array([_slopes_read(a, b, method.points) for a, b in pairwise(trail)][-len(most) :])
    moves = method.plan(_Circle(), known, ahead, False, most[: len(ahead) - 1])  # type: ignore[arg-type]
    formulas = [move.formula for move in moves]
    if denoised:
        step = (None if stays else formulas.pop()) or IDENTITY
        # At the newest node itself the slope is known, and the others would only be read with weights of zero.
        read = 1 if stays else _slopes_read(trail[-2], trail[-1], CLOSE_NEAR_POINTS)
        seen = trail[: -1 - read : -1]
        formulas.append(_denoised(step, seen, denoised))
    formulas += [None] * (len(calls) - last)
    steps = pairwise(nodes[first:])
    filled = tuple(formula or _straight(a, b) for formula, (a, b) in zip(formulas, steps, strict=True))
    return Stretch(first, filled, earlier, method.points)


def _straight(a: Node, b: Node) -> Formula:
    """The step from a to b along the newest slope."""
    return Formula(LINE.scale(b) / LINE.scale(a), (LINE.scale(b) * (LINE.q(b) - LINE.q(a)),))


def _slopes_read(before: Node, newest: Node, most: int) -> int:
    """The number of slopes that a step towards the data from ``newest`` reads, at most ``most``."""
    if newest.s >= NEAR:
        return most
    return min(most, CLOSE_NEAR_POINTS if before.s <= newest.s * math.exp(CLOSE_NEAR) else NEAR_POINTS)


def data_shares(node: Node) -> tuple[Real, Real]:
    """The coefficients of the state and the slope in x0: ``x0 = c^2 alpha/R^2 x - c sigma/R slope`` on a rotation."""
    radius = LINE.scale(node)
    return (LINE.c / radius) ** 2 * node.alpha, -LINE.c * node.sigma / radius


def _denoised(step: Formula, seen: Sequence[Node], end: Node) -> Formula:
    """x0 at ``end``, the end of ``step``, by the slope there, extrapolated from those at the nodes ``seen``."""
    places, same = np.array([LINE.q(node) for node in seen]), np.eye(len(seen), dtype=bool)
    of_state, of_slope = data_shares(end)
    # Lagrange's polynomials at the end.
    factors = (LINE.q(end) - places) / np.where(same, 1.0, places[:, None] - places)
    there = of_slope * np.where(same, 1.0, factors).prod(axis=1)
    weights = zip_longest(step.weights, there.tolist(), fillvalue=0.0)
    return Formula(of_state * step.ratio, tuple(of_state * moved + slope for moved, slope in weights))
