"""The embedded pairs of DPM-Solver, with error control in log-SNR."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from solvers.lines import Noise
from solvers.ode import Node, PathODE
from solvers.real import Real
from solvers.sums import combine

Slope = Callable[[np.ndarray, Tensor], Tensor]


class LogSNR(Noise):
    """`Noise` in the variable ``q = log(alpha/sigma)``: z = x/alpha, and ``slope`` is still dz/ds = eps.

    DPM-Solver chooses its steps in this variable; it is singular at both ends.
    """

    def q(self, node: Node) -> Real:
        """``log(alpha / sigma)``."""
        return node.log_snr

    def node(self, ode: PathODE, q: Real) -> Node:
        """The path's node at that log-SNR."""
        return ode.node_at(q)

    def singular(self, node: Node) -> bool | np.ndarray:
        """Whether ``node`` is one of the ends."""
        return np.equal(node.sigma, 0) | super().singular(node)


@dataclass(frozen=True)
class DPM12:
    """DPM-Solver-1 inside DPM-Solver-2 with its stage halfway in log-SNR (Lu et al. 2022, appendix C)."""

    order: ClassVar[int] = 2

    def calls(self, n_steps: int) -> int:
        """Two for each step."""
        return 2 * n_steps

    def trial(self, slope: Slope, q: np.ndarray, b: np.ndarray, z: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """The state at b and its difference from the lower order."""
        s, s_b, middle = np.exp(-q), np.exp(-b), 0.5 * (q + b)
        first = slope(middle, combine((1.0, z), (np.exp(-middle) - s, eps)))
        error = combine((s_b - s, first), (s - s_b, eps))
        return combine((1.0, z), (s_b - s, eps)).add_(error), error


@dataclass(frozen=True)
class DPM23:
    """DPM-Solver-2 inside DPM-Solver-3, r1 = 1/3 and r2 = 2/3 (Lu et al. 2022, appendix C and algorithm 2)."""

    order: ClassVar[int] = 3

    def calls(self, n_steps: int) -> int:
        """Three for each step."""
        return 3 * n_steps

    def trial(self, slope: Slope, q: np.ndarray, b: np.ndarray, z: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """The state at b and its difference from the lower order."""
        h = b - q
        q_1, q_2 = q + h / 3, q + 2 * h / 3
        s, s_1, s_2, s_b = (np.exp(-v) for v in (q, q_1, q_2, b))
        first = combine((1.0, slope(q_1, combine((1.0, z), (s_1 - s, eps)))), (-1.0, eps))
        state = combine((1.0, z), (s_2 - s, eps), (-2 * ((s - s_2) / (2 * h / 3) - s_2), first))
        second = combine((1.0, slope(q_2, state)), (-1.0, eps))
        straight = combine((1.0, z), (s_b - s, eps))
        higher = combine((-1.5 * ((s - s_b) / h - s_b), second))
        error = combine((1.0, higher), (-1.5 * (s_b - s), first))
        return straight.add_(higher), error
