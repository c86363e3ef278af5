"""Whether a method is as good for samples of another shape, and on a path of another kind."""

import math

import numpy as np
import torch
from torch import Tensor

from solvers.noise import NoiseStream
from solvers.ode import Node
from solvers.real import Real, native
from solvers.solve import solve
from solvers.solver import Solver
from solvers.testing.distributions import ExactODE, Gaussian, Trigonometric
from solvers.testing.laws import BOUND, marginal_variance
from solvers.testing.problem import SPAN, across, mild_mixture, starting_points, uneven_times

SHAPE_ERROR = 1e-6
"""The largest difference allowed between a sample and the same numbers in another shape: sums may round otherwise."""


class Straight(Trigonometric):
    """The path ``alpha = 1 - t, sigma = t`` of a rectified flow, whose squares do not sum to 1."""

    def node(self, t: Real) -> Node:
        """The node at time ``t``."""
        return Node(t, native(np.subtract(1.0, t)), t)

    def node_at(self, log_snr: Real) -> Node:
        """``t / (1 - t) = exp(-log_snr)``."""
        return self.node(native(1 / (1 + np.exp(log_snr))))

    def rates(self, t: Real) -> tuple[Real, Real]:
        """-1 and 1."""
        return native(-np.ones_like(t)), native(np.ones_like(t))


def check_shape(solver: Solver, steps: int = 6) -> None:
    """Samples of shape (1, 2, 1) end where the same numbers do as vectors.

    Images would show what vectors hide: a norm or a maximum over dimension 1 alone, or a sum that is broadcast.
    """
    x, times = starting_points(), uneven_times(*SPAN, steps)

    def end(state: Tensor) -> Tensor:
        return solve(mild_mixture(), solver, state, times, stream=NoiseStream(0)).x

    vectors = end(x)
    try:
        images = end(x.reshape(-1, 1, 2, 1))
    except (RuntimeError, IndexError) as error:  # those of torch
        raise AssertionError(f"{solver}: samples of shape (1, 2, 1): {type(error).__name__}: {error}") from error
    # The comparison is written so that a NaN fails it.
    if not float((images.reshape(x.shape) - vectors).abs().max()) < SHAPE_ERROR:
        raise AssertionError(
            f"{solver}: samples of shape (1, 2, 1) end elsewhere than the same numbers of shape (2,); let it treat "
            "every component alike, and reduce over all of them, as in x.flatten(1).norm(dim=1)"
        )


def check_path(solver: Solver, steps: int = 40) -> None:
    """On the path of a rectified flow the error is small too: that of a deterministic solve, or that of a variance.

    There alpha^2 + sigma^2 is not 1, and t is no angle: a formula that takes them for that fails.
    """
    path, levels = Straight(), torch.tan(uneven_times(*SPAN, steps))
    times = levels / (1 + levels)
    first, last = (path.node(float(times[i])) for i in (0, -1))
    if solver.deterministic:
        # Along x/alpha and sigma/alpha, the flow of a distribution is the same on every path.
        start = starting_points() * float(first.alpha / math.cos(SPAN[0]))
        exact = across(*SPAN) * float(last.alpha / math.cos(SPAN[1]))
        grid = times[[0, -1]] if solver.law == "tolerance" else times
        found = solve(ExactODE(mild_mixture().distribution, path), solver, start, grid)
        error = float((found.x - exact).abs().max())
    else:
        begin, end = ((node.alpha * Gaussian.deviation) ** 2 + node.sigma**2 for node in (first, last))
        made = solver.calls(steps) + 1
        found_variance = marginal_variance(solver, times, ExactODE(Gaussian(mean=0.0), path), float(begin), made)
        error = abs(found_variance - float(end))
    if not error < BOUND:
        raise AssertionError(
            f"{solver}: error {error:.1e} on the path alpha = 1 - t, sigma = t of a rectified flow; read alpha and "
            "sigma from the nodes, without supposing that alpha^2 + sigma^2 = 1 or what t is"
        )
