"""The problem on which every solver is measured, and its solution by another library."""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from solvers.testing.distributions import ExactODE, Mixture

SPAN = (1.35, 0.4)
"""The angles between which everything is measured; both are regular on every line."""
CHECKPOINTS = 5
"""The number of nodes at which a solution is compared with the reference."""
HISTORY = 5
"""The number of exact states before the first node, for methods with history: as many as a formula of order 6 reads."""
STRETCH = 0.27
"""How uneven the grid is; 0 is uniform in log-SNR."""


def mild_mixture() -> ExactODE:
    """Two overlapping components in the plane, curved enough to show an order and smooth enough to show it early.

    These numbers, the span and the starting points come from a search: they let methods of orders 1 to 5 reach their
    asymptotic regime before round-off, along every line and in both directions.
    """
    return ExactODE(_mild())


@cache
def _mild() -> Mixture:
    weights = torch.tensor([0.57, 0.43], dtype=torch.float64)
    means = torch.tensor([[0.0, 1.0], [0.3, -0.7]], dtype=torch.float64)
    return Mixture(weights, means, torch.tensor([0.69, 0.37], dtype=torch.float64))


def starting_points(dtype: torch.dtype = torch.float64) -> Tensor:
    """A few states, spread over the mixture's mass."""
    return torch.tensor([[0.54, -0.66], [-0.24, 0.18], [0.12, 0.96], [-0.78, -0.36]], dtype=dtype)


def uneven_times(start: float, end: float, steps: int) -> Tensor:
    """A grid whose steps in log-SNR grow smoothly towards the data; both directions visit the same nodes.

    A grid of twice the steps contains it.
    """
    noise, data = max(start, end), min(start, end)
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    level = math.log(math.tan(noise)) + math.log(math.tan(data) / math.tan(noise)) * (u - STRETCH * u * (1 - u))
    times = torch.atan(torch.exp(level))
    times[0], times[-1] = noise, data
    return times if start > end else times.flip(0)


def alternating_times(start: float, end: float, steps: int) -> Tensor:
    """The same grid with half the steps, each split in log-SNR into a quarter and three quarters."""
    whole = uneven_times(start, end, steps // 2)
    level = torch.log(torch.tan(whole))
    times = torch.empty(steps + 1, dtype=torch.float64)
    times[::2], times[1::2] = whole, torch.atan(torch.exp(0.75 * level[:-1] + 0.25 * level[1:]))
    return times


@cache
def departures(start: float, end: float) -> Tensor:
    """Sixteen states at ``start``: the starting points and their quarter turns, or the states that these reach.

    Towards the noise they are the end states of the flow towards the data.
    """
    if start < end:
        return reference(end, start)[-1]
    quarter = [starting_points()]
    for _ in range(3):
        quarter.append(torch.stack((quarter[-1][:, 1], -quarter[-1][:, 0]), dim=1))
    return torch.cat(quarter)


@cache
def reference(start: float, end: float) -> Tensor:
    """Where the mild mixture's flow takes the departures at the checkpoints, the nodes of ``CHECKPOINTS`` steps."""
    return flow(departures(start, end), uneven_times(start, end, CHECKPOINTS))


@cache
def opening(start: float, end: float, steps: int) -> Tensor:
    """The departures and where the flow takes them at each node of the grid, up to the first checkpoint.

    On a long grid only the first few nodes, ``(at most 6, 16, 2)``: the exact history that a multistep method reads.
    """
    nodes = min(HISTORY, steps // CHECKPOINTS) + 1
    begin = departures(start, end)
    return torch.cat((begin[None], flow(begin, uneven_times(start, end, steps)[:nodes])))


@cache
def across(start: float, end: float) -> Tensor:
    """Where the mild mixture's flow takes the starting points."""
    return flow(starting_points(), torch.tensor((start, end), dtype=torch.float64))[0]


def flow(x: Tensor, times: Tensor) -> Tensor:
    """The mild mixture's flow from ``times[0]`` to each of the others, ``(len(times) - 1, *x.shape)``.

    It is computed by scipy's DOP853 at 3e-14: another library, another formula.
    """
    problem = mild_mixture()

    def field(t: float, flat: np.ndarray) -> np.ndarray:
        return problem(float(t), torch.from_numpy(flat.copy()).view_as(x)).numpy().ravel()

    states = [x.numpy().ravel()]
    for span in pairwise(times.tolist()):
        states.append(solve_ivp(field, span, states[-1], method="DOP853", rtol=3e-14, atol=1e-15).y[:, -1])
    return torch.from_numpy(np.stack(states[1:])).view(-1, *x.shape)
