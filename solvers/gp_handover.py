"""Where a regression hands over to Adams' formulas: between nodes that lie close a trajectory is a polynomial.

Along the rotation, and in asinh(s/c), it is one from the data to pure noise, to more digits than any prior can say.
Between distant nodes it is not; and towards the data, at high levels, a polynomial through a network's own errors
amplifies them, which grow with s as errors of x0.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise, zip_longest
from typing import NamedTuple

import numpy as np

from solvers.lines import Rotation
from solvers.multistep import ExponentialAdams, Formula
from solvers.ode import Node
from solvers.real import Real

LINE = Rotation(0.4)
"""That of `AdaptiveAdams`."""
TO_DATA = ((0.26, 6), (0.395, 5))
TO_NOISE = ((1.0, 3),)
"""The orders, each with the largest distance of two nodes below `LEVEL`, in asinh(s/c), at which it is used: at larger
ones it amplifies what a network's answers near the data err by, most of all to the noise, where steps grow; but there
the regression, which knows nothing of where it sets out from, errs by more still."""
LEVEL = 12.0
"""Of s = sigma/alpha, below which Adams' formulas lead to the data."""
NEAR, NEAR_POINTS = 0.1, 2
"""A level below which steps to the data read no more slopes than these: what data add there is little and smooth, and
what a network adds is neither."""
EARLIER = 3
"""As many slopes of earlier nodes the first step reads at most: a fourth would be held beside the predictions that the
regression reads until then."""


class Stretch(NamedTuple):
    """The steps from number ``first`` on, to the last: a formula for each over slopes along `LINE`, newest first.

    The first one reads up to ``earlier`` slopes of nodes before its own, and those after it up to ``kept``.
    """

    first: int
    formulas: tuple[Formula, ...]
    earlier: int
    kept: int


NOWHERE = Stretch(0, (), 0, 0)
STILL = Formula(1.0, ())
"""No step at all."""


class _Circle:
    """The path ``alpha = cos u, sigma = sin u``: weights depend on ratios alone, which all paths share."""

    def node_at(self, log_snr: Real) -> Node:
        """The node at that log-SNR."""
        level = np.asarray(log_snr)
        return Node(np.nan, np.exp(-0.5 * np.logaddexp(0, -2 * level)), np.exp(-0.5 * np.logaddexp(0, 2 * level)))


@lru_cache(maxsize=64)
def stretch(
    nodes: tuple[Node, ...], calls: tuple[bool, ...], past: tuple[Node, ...], denoised: Node | None = None
) -> Stretch:
    """The steps between ``nodes`` that are Adams', with slopes known at ``past`` nodes, newest first.

    ``calls`` says which steps make a call. Towards the data Adams' begin where enough slopes are known, at a level
    below `LEVEL`; towards the noise they are all or none. Where a step makes no call, or reaches pure noise, it goes on
    along the newest slope. The last step gives the data that denoising at the node ``denoised`` would, if there is one.
    """
    to_data = nodes[-1].s < nodes[0].s
    below = np.array([a.s <= LEVEL for a in nodes[:-1]])
    apart = np.abs(np.diff(np.arcsinh(np.array([node.s for node in nodes]) / LINE.c)))
    farthest = apart[below].max() if below.any() else np.inf
    order = next((order for most, order in (TO_DATA if to_data else TO_NOISE) if farthest <= most), None)
    if order is None:
        return NOWHERE
    method = ExponentialAdams(order, LINE, "asinh", corrector=True)
    earlier = min(method.points - 1, EARLIER)
    silent = calls.index(True) if True in calls else len(calls)
    first = max(int(np.argmax(below)), silent + earlier - len(past)) if to_data else 0
    if first >= len(calls):
        return NOWHERE
    known = [*reversed(nodes[silent:first]), *past][:earlier]
    last = len(calls) - calls[::-1].index(True)
    stays = denoised == nodes[last - 1]
    ahead = [*nodes[first:last], *([] if stays else [denoised or nodes[last]])]
    most = np.array([NEAR_POINTS if to_data and a.s < NEAR else method.points for a in nodes[first:last]])
    moves = method.plan(_Circle(), known, ahead, False, most[: len(ahead) - 1])  # type: ignore[arg-type]
    formulas = [move.formula for move in moves]
    if denoised:
        step = (None if stays else formulas.pop()) or STILL
        newest, before = [*reversed(nodes[first:last]), *known][:2]
        formulas.append(_denoised(step, newest, before, denoised))
    formulas += [None] * (len(calls) - last)
    steps = pairwise(nodes[first:])
    filled = tuple(formula or _straight(a, b) for formula, (a, b) in zip(formulas, steps, strict=True))
    return Stretch(first, filled, earlier, method.points)


def _straight(a: Node, b: Node) -> Formula:
    """The step from a to b along the newest slope."""
    return Formula(LINE.scale(b) / LINE.scale(a), (LINE.scale(b) * (LINE.q(b) - LINE.q(a)),))


def _denoised(step: Formula, newest: Node, before: Node, end: Node) -> Formula:
    """x0 at ``end``, where ``step`` leads, by the slope there: on the straight line through those at two nodes.

    On a rotation ``x0 = c^2 alpha/R^2 x - c sigma/R slope``.
    """
    beyond = (LINE.q(end) - LINE.q(newest)) / (LINE.q(newest) - LINE.q(before))
    radius = LINE.scale(end)
    of_state, of_slope = (LINE.c / radius) ** 2 * end.alpha, -LINE.c * end.sigma / radius
    there = (of_slope * (1 + beyond), -of_slope * beyond) if beyond else (of_slope,)
    weights = zip_longest(step.weights, there, fillvalue=0.0)
    return Formula(of_state * step.ratio, tuple(of_state * moved + slope for moved, slope in weights))
