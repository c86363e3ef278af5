"""The prior over trajectories: what is known of a prediction before the network is called, for any data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from solvers.arguments import as_number
from solvers.ode import Node

Array = np.ndarray

REACH = 2.5
"""A normal law is represented by this many deviations on either side of its mean."""
SCALES, DECISIONS, SPACING = 25, 15, 0.6
"""The numbers of Gaussian scales and decisions, and the distance of bumps in units of their width."""
LEAST_LEVEL, LARGEST_LEVEL = 1e-3, 200.0
"""The noise levels between which a network has errors."""
BOUNDED = 3.0
"""The level above which the error of a network that predicts x0, v or a flow is bounded in x0: the share of its output
in x0, s/sqrt(1 + s^2) for v and s/(1 + s) for a flow, has nearly reached its limit there."""
WITHIN, OVERALL = 2.5, 4.0
"""The deviations of the data of one condition, and of all conditions together, along the directions in which conditions
differ. These are the widest ones of the data: an image's components move together there."""
SIGNED = ("scale", "decision")
DIVISORS = ("error_width", "error_bounded", "spacing", "common_scale")
"""The constants that may be negative, and those that are divisors."""
SMALL = 0.3
"""Below this value a power series is exact to round-off."""


class Features(NamedTuple):
    """Trajectories ``(nodes, features)``, each times the deviation of its coefficient.

    ``state`` is x/R with R = sqrt(alpha^2 + sigma^2), which is finite from the data to pure noise; ``data`` is the
    corresponding prediction x0. ``response`` is the derivative of x0 with respect to that state, ``mean_response`` its
    mean ``(nodes,)``.
    """

    state: Array
    data: Array
    response: Array
    mean_response: Array


@dataclass(frozen=True, repr=False)
class Prior:
    """A Gaussian process over the trajectories of the probability flow, in y = x/alpha and s = sigma/alpha.

    A trajectory is a sum of features with independent normal coefficients. Every feature is a solution of the flow,
    dy/ds = (y - x0)/s, of a kind that data give rise to:

    - *a Gaussian scale* l: y = sqrt(l^2 + s^2), x0 = l^2/y, the flow of normal data (in one of the components); log l
      is normal. Small l act like noise, large l are resolved first;
    - *a decision* at the level a: x0 = 1/(1 + (s/a)^4), y = s integral_s^inf x0/u^2 du, a step from one mean to
      another, as between modes; log a is normal. The power is even, because x0 is even in s along every trajectory;
    - *a constant*: y = x0 = 1, the mean of the data;
    - *a Gaussian scale common to all data*, of about their deviation. The larger its share, the less a prediction is
      shrunk towards the prior's mean, in all samples alike, and the more of the network's own error passes through.
      Between few nodes the latter matters more, between many the former: its deviation is common/h^2 for nodes h apart
      in log s, and at most that of the constant, which is reproduced;
    - *an error of the network*: eps differs by a smooth bump in log s, exp(-(log s - c)^2/(2 w^2)), and then
      y = integral_{s_o}^s eps du, x0 = y - s eps, where s_o is the level at which the solve begins: before, it has no
      effect. A network's error in eps is about constant at low and middle levels, so that in x0 it grows with s; far
      above the data, and in networks that predict x0, v or a flow, it stops growing: a bump at the level b = exp(c)
      has the height 1/sqrt(1 + (b/bounded)^2). Between close nodes larger errors can be followed: the deviation is
      error max(1, spacing/h)^smoothness, for nodes h apart in the mean, up to close_error, if that is larger than
      error. Without this part the process suits exact scores, not trained networks.

    The remainder is independent from one prediction to the next, with deviation
    noise max(floor, min(1, h/spacing)^smoothness) at a distance h in log s from the previous node: between close nodes
    a trajectory is as smooth as one with that many derivatives, down to a part that is not smooth at all.

    The units are those of data with a deviation of about 1, such as images in [-1, 1]. The defaults were chosen on
    exact mixtures, a kernel density over images and a trained network; see benchmarks/DEVELOPMENT.md.

    Under classifier-free guidance, u + w (c - u), the prediction c with the condition responds to the state like
    r_l = l^2/(l^2 + s^2), and u without it like r_m of the data of all conditions together. Along the directions in
    which these are wider, m > l, guided predictions respond less by (w - 1) (r_m - r_l): between the two levels the
    flow contracts, and a step is as cautious as that demands. An error that is not small is damped less, since the
    response saturates: between distant nodes the difference is multiplied by (spacing/h)^2.

    Args:
        scale, scale_spread: the mean and deviation of log l.
        decision, decision_spread: the mean and deviation of log a.
        decision_variance: the variance of all decisions' coefficients together; that of all Gaussian scales is 1.
        error: the deviation of eps due to the network's smooth errors.
        close_error: the largest such deviation between close nodes; up to ``error``, it has no effect.
        error_width: w, the correlation length of these errors in log s.
        error_bounded: the level s above which they are bounded in x0; see `bounded`.
        noise: the deviation of the independent error of a prediction of x0.
        spacing: the distance in log s below which nodes are close.
        smoothness: the power of the distance with which that deviation decreases between close nodes.
        floor: the share of it that remains, however close they are.
        mean: the deviation of the data's mean; large enough for a constant to be reproduced.
        common, common_scale: the deviation of the common Gaussian scale between nodes 1 apart in log s, and its l.
        guidance: w, by which predictions respond to the state; see `amplified`.
    """

    scale: float = -2.4
    scale_spread: float = 1.6
    decision: float = 0.35
    decision_spread: float = 1.5
    decision_variance: float = 0.065
    error: float = 0.008
    close_error: float = field(default=0.016, metadata={"absent": 0.0})
    error_width: float = 1.1
    error_bounded: float = 30.0
    noise: float = 0.012
    spacing: float = 0.55
    smoothness: float = 2.5
    floor: float = 0.12
    mean: float = 3.0
    common: float = 0.5
    common_scale: float = 0.83
    guidance: float = field(default=1.0, metadata={"absent": 1.0})

    def __post_init__(self) -> None:
        for one in fields(self):
            value = as_number(getattr(self, one.name))
            positive, signed = one.name in DIVISORS, one.name in SIGNED
            if not math.isfinite(value) or value < 0 and not signed or value == 0 and positive:
                must = "positive and finite" if positive else "finite" if signed else "finite, at least 0"
                raise ValueError(f"Prior: {one.name}={getattr(self, one.name)!r} must be {must}")

    def __repr__(self) -> str:
        """The constants that differ from the defaults."""
        own = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default)
        return f"Prior({', '.join(own)})"

    def amplified(self, factor: float) -> Prior:
        """The process under the guidance w, at least 1, that multiplies errors by ``factor``; see `PathODE`."""
        guidance = (1 + math.sqrt(2 * max(1.0, factor) ** 2 - 1)) / 2
        return replace(self, error=factor * self.error, close_error=factor * self.close_error, guidance=guidance)

    def bounded(self) -> Prior:
        """The process of a network whose error of x0 is bounded; see `PathODE.bounded_error`."""
        return replace(self, error_bounded=min(self.error_bounded, BOUNDED), close_error=self.error)

    def own_noise(self, node: Node, before: Node | None) -> float:
        """The deviation of the independent error at ``node``, after the node ``before`` if there is one."""
        close = 1.0 if before is None else min(1.0, abs(float(node.log_snr) - float(before.log_snr)) / self.spacing)
        return self.noise * max(close**self.smoothness, self.floor)

    def smooth_error(self, distance: float) -> float:
        """The deviation of eps due to the network's smooth errors, for nodes ``distance`` apart in log s."""
        close = min(1.0, distance / self.spacing) ** self.smoothness
        return max(self.error, min(self.close_error, self.error / close if close else math.inf))

    def features(self, nodes: Sequence[Node], origin: Node, distance: float) -> Features:
        """The features at ``nodes`` of a solve from ``origin`` whose nodes are ``distance`` apart in log s."""
        radii = np.array([[math.hypot(node.alpha, node.sigma)] for node in nodes])
        alpha = np.array([[node.alpha] for node in nodes]) / radii
        sigma = np.array([[node.sigma] for node in nodes]) / radii
        scales, shares = _normal(self.scale, self.scale_spread, SCALES)
        common = min(self.mean, self.common / distance**2)
        scales, deviations = np.append(scales, self.common_scale), np.append(np.sqrt(shares), common)
        squares = (scales * alpha) ** 2 + sigma**2
        response = self._response(scales, alpha, sigma, distance)
        mean_response = (response[:, :SCALES] * shares).sum(axis=1)
        parts = [
            (deviations * np.sqrt(squares), deviations * scales**2 * alpha / np.sqrt(squares)),
            self._decisions(alpha, sigma),
            self._errors(alpha, sigma, min(float(origin.s), LARGEST_LEVEL), self.smooth_error(distance)),
            (self.mean * alpha, np.full_like(alpha, self.mean)),
        ]
        state, data = (np.concatenate(columns, axis=1) for columns in zip(*parts, strict=True))
        others = np.repeat(mean_response[:, None], state.shape[1] - len(scales), axis=1)
        return Features(state, data, np.concatenate((response, others), axis=1), mean_response)

    def _response(self, scales: Array, alpha: Array, sigma: Array, distance: float) -> Array:
        """The derivative of a guided prediction of x0 with respect to the state, for data of these ``scales``."""

        def of(scales: Array | float) -> Array:
            return np.asarray(scales**2 * alpha / ((scales * alpha) ** 2 + sigma**2))

        share = min(1.0, self.spacing / distance) ** 2
        return of(scales) - share * (self.guidance - 1) * (of(OVERALL) - of(WITHIN))

    def _decisions(self, alpha: Array, sigma: Array) -> tuple[Array, Array]:
        levels, shares = _normal(self.decision, self.decision_spread, DECISIONS)
        deviations = np.sqrt(self.decision_variance * shares)
        with np.errstate(divide="ignore"):
            state = np.where(sigma > 0, sigma / levels * _decided(levels * alpha / sigma), alpha)
        data = alpha**4 / (alpha**4 + (sigma / levels) ** 4)
        return deviations * state, deviations * data

    def _errors(self, alpha: Array, sigma: Array, origin: float, error: float) -> tuple[Array, Array]:
        width = self.error_width
        centres = np.arange(math.log(LEAST_LEVEL), math.log(LARGEST_LEVEL) + 2 * width, SPACING * width)
        # At this spacing the squares of the bumps add up to the same sum everywhere.
        deviations = error * math.sqrt(SPACING / math.sqrt(math.pi)) / np.hypot(1, np.exp(centres) / self.error_bounded)
        with np.errstate(divide="ignore"):
            level, beginning = np.log(sigma) - np.log(alpha), np.log(origin)
        eps = np.exp(-(((level - centres) / width) ** 2) / 2)
        whole = np.exp(centres + width**2 / 2) * width * math.sqrt(2 * math.pi)
        y = whole * (ndtr((level - centres) / width - width) - ndtr((beginning - centres) / width - width))
        with np.errstate(divide="ignore", invalid="ignore"):
            data = np.where(alpha > 0, y - sigma / alpha * eps, 0.0)
        return deviations * alpha * y, deviations * data


def mean_distance(nodes: Sequence[Node]) -> float:
    """The mean distance of the ``nodes`` whose log s is finite, in log s; infinite for fewer than two."""
    levels = [level for node in nodes if math.isfinite(level := float(node.log_snr))]
    return abs(levels[0] - levels[-1]) / (len(levels) - 1) if len(levels) > 1 else math.inf


def _normal(mean: float, spread: float, count: int) -> tuple[Array, Array]:
    """A log-normal law as ``count`` values and their shares."""
    quantiles = np.linspace(-REACH, REACH, count)
    density = np.exp(-(quantiles**2) / 2)
    return np.exp(mean + spread * quantiles), density / density.sum()


def _decided(z: Array) -> Array:
    """``integral_0^z w^4/(1 + w^4) dw``."""
    root = math.sqrt(2)
    with np.errstate(invalid="ignore", over="ignore"):
        logarithm = np.log1p(-2 * root * z / (z * z + root * z + 1))
        inverse = np.arctan(root * z + 1) + np.arctan(root * z - 1)
        closed = z + (logarithm - 2 * inverse) / (4 * root)
    fourth = np.minimum(z, SMALL) ** 4
    series = 0.0
    for power in range(33, 4, -4):
        series = 1 / power - fourth * series
    series = z * fourth * series
    # The closed form cancels where z^5/5 is small compared with z.
    return np.where(z < SMALL, series, closed)
