"""Measures the law that a solver declares: its order, its weak order, or how its error follows the tolerance."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from solvers.inverse import Inverse
from solvers.noise import NoiseStream
from solvers.reversible import ReversibleSolver
from solvers.solution import Status
from solvers.solve import solve
from solvers.solver import Solver
from solvers.testing.distributions import ExactODE, Gaussian
from solvers.testing.problem import (
    CHECKPOINTS,
    HISTORY,
    SPAN,
    alternating_times,
    departures,
    mild_mixture,
    opening,
    reference,
    uneven_times,
)

Grid = Callable[[float, float, int], Tensor]
MOST_STEPS = 1280
"""The most steps with which an order is measured."""
ROUND_OFF = float(np.finfo(np.float64).eps)
"""The rounding error of a state of size 1."""
BOUND = 0.05
"""The largest error of a method without an order, with at least 20 steps."""
MOST_CALLS = 150
"""The most evaluations with which a tolerance is measured."""
TOLERANCE_FACTOR = 200
"""The largest ratio of error to tolerance; pairs of low order with a small error constant, such as torchdiffeq's
fehlberg2, come close to it."""


def error_on_the_way(
    solver: Solver, start: float, end: float, steps: int, exact_history: bool = False, grid: Grid = uneven_times
) -> float:
    """The root mean square error of one solve of the mild mixture, over all samples and checkpoints.

    At a single time and sample the leading error term may vanish by chance, which would show a wrong order. With
    ``exact_history`` the first nodes of the grid, at most up to the first checkpoint, are the exact past of the solve,
    which begins at the last of them.
    """
    times, stride = grid(start, end, steps), steps // CHECKPOINTS
    known = min(HISTORY, stride) if exact_history else 0
    x = (opening(start, end, steps)[known] if known else departures(start, end)).clone()
    problem = mild_mixture().watching(x, (start, end))
    past = [(problem.node(float(times[i])), opening(start, end, steps)[i]) for i in reversed(range(known))]
    found = solve(problem, solver, x, times[known:], past=past, trajectory=True).trajectory
    assert found is not None
    ahead = [i for i in range(CHECKPOINTS) if (i + 1) * stride > known]
    reached = found[[(i + 1) * stride - known for i in ahead]]
    return float((reached - reference(start, end)[ahead]).square().mean().sqrt())


def measured_order(error: Callable[[int], float]) -> float:
    """The slope of the error over the last two doublings of the steps above 100 times round-off."""
    errors: list[float] = []
    steps = CHECKPOINTS
    while steps <= MOST_STEPS:
        errors.append(error(steps))
        if errors[-1] < 100 * ROUND_OFF:
            errors.pop()
            break
        steps *= 2
    if len(errors) < 3:
        raise AssertionError(f"only {len(errors)} errors above round-off: {errors}")
    if math.inf in errors:
        raise AssertionError(f"the error grows with the number of steps until it is infinite: {errors}")
    return math.log2(errors[-3] / errors[-1]) / 2


def check_order(solver: Solver) -> None:
    """The declared orders, from noise to data and from data to noise.

    From its own start a method shows an order between `own_start_order` and `order`: where the start hardly matters,
    its error decreases faster than it does asymptotically. In one of the directions the order is `own_start_order`.
    """
    own, order = solver.own_start_order, solver.order
    slopes = {}
    for span in (SPAN, SPAN[::-1]):
        slopes[span] = measured_order(partial(error_on_the_way, solver, *span))
        if not own - 0.2 < slopes[span] < order + 0.2:
            raise AssertionError(f"{_measured(solver, slopes[span], span)}, declared {_from_own_start(own, order)}")
    slowest = min(slopes, key=lambda span: slopes[span])
    if not slopes[slowest] < own + 0.2:
        raise AssertionError(f"{_measured(solver, slopes[slowest], slowest)}, declared {_from_own_start(own, order)}")
    if own == order:
        return
    if not solver.reads_past:
        raise AssertionError(
            f"{solver}: declared {_from_own_start(own, order)}, but it reads no exact history; declare that one_step "
            "is False, or the same own_start_order"
        )
    for span in (SPAN, SPAN[::-1]):
        slope = measured_order(partial(error_on_the_way, solver, *span, exact_history=True))
        if not abs(slope - order) < 0.2:
            raise AssertionError(f"{_measured(solver, slope, span)} with exact history, declared {order}")


def check_alternating_steps(solver: Solver) -> None:
    """A method with history keeps its order between nodes whose distances alternate, 1 to 3.

    On smooth grids neighbouring steps become equal, and weights that hold only for equal steps pass. The order is that
    from its own start, less half an order; reversible methods, whose weights the exact inverse determines, are exempt.
    """
    if solver.one_step or solver.law != "order" or isinstance(solver, ReversibleSolver | Inverse):
        return
    few, many = 80, 320
    for start, end in (SPAN, SPAN[::-1]):
        errors = [error_on_the_way(solver, start, end, steps, grid=alternating_times) for steps in (few, many)]
        slope = math.log(errors[0] / max(errors[1], ROUND_OFF)) / math.log(many / few)
        if not (slope > solver.own_start_order - 0.5 or errors[1] < 100 * ROUND_OFF):
            raise AssertionError(
                f"{_measured(solver, slope, (start, end))} between nodes whose distances alternate, declared "
                f"{solver.own_start_order}; let the weights follow from the nodes, or declare the lower order"
            )


def _measured(solver: Solver, slope: float, span: Sequence[float]) -> str:
    return f"{solver}: measured order {slope:.2f} from t={span[0]} to t={span[1]}"


def _from_own_start(own: int, order: int) -> str:
    return str(order) if own == order else f"{own} from its own start, {order} with exact history"


def check_bounded(solver: Solver) -> None:
    """An error without an order stays small, from noise to data and from data to noise."""
    for start, end in (SPAN, SPAN[::-1]):
        for steps in (20, 40, 80, 160):
            error = error_on_the_way(solver, start, end, steps)
            if not error < BOUND:
                raise AssertionError(f"{solver}: {steps} steps have error {error:.1e} from t={start} to t={end}")


@dataclass(frozen=True)
class Impulses(NoiseStream):
    """A stream whose draw number k is 1 in row k + 1 and 0 elsewhere: it shows a linear solve's response.

    ``drawn`` receives the numbers of the draws.
    """

    drawn: list[int] = field(default_factory=list, compare=False)

    def draw(self, like: Tensor) -> tuple[Tensor, NoiseStream]:
        """The k-th unit impulse."""
        self.drawn.append(self.counter)
        noise = torch.zeros_like(like)
        if self.counter + 1 < len(like):
            noise[self.counter + 1] = 1
        return noise, replace(self, counter=self.counter + 1)


def marginal_variance(solver: Solver, times: Tensor, ode: ExactODE, variance: float, draws: int) -> float:
    """The variance that ``solver`` gives on a centred Gaussian problem, without sampling error.

    There a solve is linear: x_end = c x_start + sum c_k z_k. Row 0 starts at 1 without noise, row k + 1 starts at 0 and
    receives draw k only, so one solve gives every coefficient; if it makes more than ``draws``, a second one does.
    """
    x = torch.zeros(draws + 1, 1, dtype=torch.float64)
    x[0] = 1
    stream = Impulses(0)
    response = solve(ode, solver, x, times, stream=stream).x.square().ravel()
    if (made := max(stream.drawn, default=-1) + 1) > draws:
        return marginal_variance(solver, times, ode, variance, made)
    return float(variance * response[0] + response[1:].sum())


def check_weak_order(solver: Solver) -> None:
    """The declared weak order is the rate at which the variance of a Gaussian problem converges."""
    problem = ExactODE(Gaussian(mean=0.0))
    nodes = (problem.node(t) for t in SPAN)
    first, last = (float((node.alpha * Gaussian.deviation) ** 2 + node.sigma**2) for node in nodes)
    slope = measured_order(
        lambda n: abs(marginal_variance(solver, uneven_times(*SPAN, n), problem, first, solver.calls(n) + 1) - last)
    )
    if not abs(slope - solver.order) < 0.2:
        raise AssertionError(f"{solver}: measured weak order {slope:.2f}, declared {solver.order}")


def check_tolerance(solver: Solver) -> None:
    """The error follows the tolerance, from noise to data and from data to noise.

    For rtol = atol = 1e-3, 1e-4, ... 1e-8, as far as `MOST_CALLS` evaluations suffice, the error on the mild mixture is
    at most `TOLERANCE_FACTOR` times the tolerance, and from the first to the last tolerance it decreases like the
    tolerance to a power between 0.5 and 1.5. The solver must be a dataclass with the fields ``rtol`` and ``atol``.
    """
    for start, end in (SPAN, SPAN[::-1]):
        x, errors = departures(start, end)[:2].clone(), {}
        for tolerance in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
            one = replace(solver, rtol=tolerance, atol=tolerance)  # type: ignore[call-arg]
            problem = mild_mixture().watching(x, (start, end))
            found = solve(problem, one, x, (start, end), throw=False, max_nfe=MOST_CALLS)
            if bool((found.status == Status.BUDGET).any()):
                break
            errors[tolerance] = float((found.x - reference(start, end)[-1, : len(x)]).abs().max())
        if len(errors) < 3:
            raise AssertionError(f"{solver}: a tolerance of 1e-5 takes more than {MOST_CALLS} evaluations")
        for tolerance, error in errors.items():
            # The comparison is written so that a NaN fails it.
            if not error <= TOLERANCE_FACTOR * tolerance:
                raise AssertionError(f"{solver}: error {error:.1e} at rtol={tolerance} from t={start} to t={end}")
        power = math.log(errors[1e-3] / error) / math.log(1e-3 / tolerance)
        if not 0.5 <= power <= 1.5:
            raise AssertionError(
                f"{solver}: from rtol=1e-3 to {tolerance} the error falls like rtol^{power:.2f}, t={start} to t={end}"
            )


def check_law(solver: Solver) -> None:
    """The law that the solver declares."""
    measure = {"order": check_order, "weak": check_weak_order, "tolerance": check_tolerance, "bounded": check_bounded}
    if solver.law not in measure:
        raise AssertionError(f"{solver}: law={solver.law!r} is unknown; declare one of {', '.join(measure)}")
    measure[solver.law](solver)
