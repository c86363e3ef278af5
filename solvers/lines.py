"""The changes of variables that straighten the probability-flow ODE.

Along a line the ODE reads ``dz/dq = slope`` with ``z = x / scale``: whatever the method, a step is the quadrature

    x_b = (scale_b / scale_a) x_a + scale_b * integral_{q_a}^{q_b} slope dq.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from solvers.arguments import as_number
from solvers.ode import ODE, Node, PathODE, Prediction
from solvers.real import Real, anywhere, divide, log, native
from solvers.sums import Terms, per_row, total

SMALLEST_ALPHA = 1e-3
"""Below this alpha the noise line counts as singular: s = sigma/alpha exceeds 1000 and x/alpha loses its digits.

An exact test for zero would miss the continuous cosine schedule, which ends at alpha = 6e-17.
"""


class Line(ABC):
    """A change of variables ``z = x / scale(node)``, ``q = q(node)`` with ``dz/dq = slope``."""

    @abstractmethod
    def scale(self, node: Node) -> Real:
        """The factor between the state and the line, ``x = scale z``."""

    @abstractmethod
    def q(self, node: Node) -> Real:
        """The variable of integration."""

    @abstractmethod
    def shares(self, node: Node) -> tuple[Real, Real]:
        """The coefficients of x0 and eps in the slope."""

    def slope(self, node: Node, prediction: Prediction) -> Tensor:
        """``dz/dq``, in terms of the prediction alone."""
        return total(self.terms(node, prediction))

    def slope_at(self, ode: PathODE, node: Node, x: Tensor) -> Tensor:
        """``dz/dq`` at the state ``x``: one call."""
        return self.slope(node, ode.predict(node, x))

    def terms(self, node: Node, prediction: Prediction) -> Terms:
        """The slope as a sum, see `Prediction.terms`."""
        return prediction.terms(*self.shares(node))

    @abstractmethod
    def node(self, ode: PathODE, q: Real) -> Node:
        """The node at ``q``: the inverse of `q`."""

    @abstractmethod
    def singular(self, node: Node) -> bool | np.ndarray:
        """Whether ``q`` or ``scale`` degenerates at ``node``; one answer per sample if they keep their own times."""


@dataclass(frozen=True)
class Noise(Line):
    """``z = x/alpha, q = s = sigma/alpha, slope = eps``; regular at the data, singular at pure noise."""

    def scale(self, node: Node) -> Real:
        """``alpha``."""
        return node.alpha

    def q(self, node: Node) -> Real:
        """``sigma / alpha``."""
        return node.s

    def shares(self, node: Node) -> tuple[Real, Real]:
        """0 and 1: the slope is eps."""
        return 0.0, 1.0

    def node(self, ode: PathODE, q: Real) -> Node:
        """``log_snr = -log q``."""
        return ode.node_at(-log(q))

    def singular(self, node: Node) -> bool | np.ndarray:
        """Whether alpha is below `SMALLEST_ALPHA`."""
        return node.alpha < SMALLEST_ALPHA


@dataclass(frozen=True)
class Data(Line):
    """``z = x/sigma, q = alpha/sigma, slope = x0``; regular at pure noise, singular at the data."""

    def scale(self, node: Node) -> Real:
        """``sigma``."""
        return node.sigma

    def q(self, node: Node) -> Real:
        """``alpha / sigma``."""
        return divide(node.alpha, node.sigma)

    def shares(self, node: Node) -> tuple[Real, Real]:
        """1 and 0: the slope is x0."""
        return 1.0, 0.0

    def node(self, ode: PathODE, q: Real) -> Node:
        """``log_snr = log q``."""
        return ode.node_at(log(q))

    def singular(self, node: Node) -> bool | np.ndarray:
        """Whether sigma = 0."""
        return node.sigma == 0


@dataclass(frozen=True)
class Rotation(Line):
    """``z = x/R, q = u = atan2(sigma, c alpha), slope = cos(u) eps - sin(u)/c x0``; regular at both ends.

    ``R = sqrt(sigma^2 + c^2 alpha^2)``. For c = 1 the slope is the v-prediction (Salimans & Ho 2022, appendix D), for
    c = sigma_data it is the negated output of EDM's raw network (Karras et al. 2022, table 1).
    """

    c: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < as_number(self.c) < math.inf:
            raise ValueError(f"Rotation: c={self.c!r} must be positive and finite; c = 1 gives the v-prediction")

    def scale(self, node: Node) -> Real:
        """``R``."""
        return native(np.hypot(node.sigma, self.c * node.alpha))

    def q(self, node: Node) -> Real:
        """``u``."""
        return native(np.arctan2(node.sigma, self.c * node.alpha))

    def shares(self, node: Node) -> tuple[Real, Real]:
        """``-sin(u)/c`` and ``cos(u)``."""
        radius = self.scale(node)
        return -node.sigma / radius / self.c, self.c * node.alpha / radius

    def node(self, ode: PathODE, q: Real) -> Node:
        """``s = c tan(u)``."""
        return ode.node_at(log(np.cos(q)) - log(self.c * np.sin(q)))

    def singular(self, node: Node) -> bool | np.ndarray:
        """False: both ends are regular."""
        return False


class AsWritten:
    """The ODE as it is, ``z = x, q = t, slope = dx/dt``, on which ``line=None`` solves; it needs no path."""

    def scale(self, node: Node) -> Real:
        """1."""
        return 1.0

    def q(self, node: Node) -> Real:
        """``t``."""
        return node.t

    def node(self, ode: ODE, q: Real) -> Node:
        """The node at time ``q``."""
        return ode.node(q)

    def slope_at(self, ode: ODE, node: Node, x: Tensor) -> Tensor:
        """``dx/dt`` at the state ``x``: one call."""
        return ode(node.t if isinstance(node.t, float) or isinstance(ode, PathODE) else per_row(node.t, x), x)


AS_WRITTEN = AsWritten()


def followed(line: Line | None) -> Line | AsWritten:
    """What a method with this setting follows."""
    return AS_WRITTEN if line is None else line


def require_line(solver: object, line: object) -> None:
    """Raise `TypeError` unless ``line`` is a `Line`."""
    if not isinstance(line, Line):
        name = type(solver).__name__
        raise TypeError(f"{name}: line={line!r} must be a solvers.Line; pass one such as solvers.Noise()")


def singular_step(line: Line | None, ode: ODE, a: Node, b: Node) -> bool | np.ndarray:
    """Whether a step along ``line`` leaves or reaches a singular node; such a step is a DDIM step, regular everywhere.

    Without a line the variable is t, and the field x(t) of a path is singular at sigma = 0, and at alpha = 0 where
    alpha goes to 0 like a root.
    """
    if line is not None:
        return line.singular(a) | line.singular(b)
    return isinstance(ode, PathODE) and _singular_field(ode, a) | _singular_field(ode, b)


def singular_log_snr(a: Node, b: Node) -> bool | np.ndarray:
    """Whether log-SNR degenerates at a or b: at the data, or at pure noise (alpha below `SMALLEST_ALPHA`)."""
    noise, data = Noise(), Data()
    return noise.singular(a) | noise.singular(b) | (data.singular(a) | data.singular(b))


def _singular_field(ode: PathODE, node: Node) -> bool | np.ndarray:
    at_data = node.sigma == 0
    if not anywhere(node.alpha == 0):
        return at_data
    alpha_rate, sigma_rate = ode.rates(node.t)
    return at_data | ~(np.isfinite(alpha_rate) & np.isfinite(sigma_rate))


def singular_steps(line: Line | None, ode: ODE, nodes: Sequence[Node]) -> int:
    """How many steps between ``nodes`` are DDIM steps, of one call each."""
    return sum(bool(np.any(singular_step(line, ode, a, b))) for a, b in pairwise(nodes))
