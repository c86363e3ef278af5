"""Problems with closed forms, and `check`: everything that a solver declares, measured."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from solvers.noise import NoiseStream
from solvers.ode import Node, PathODE, Prediction, combine, per_row
from solvers.real import Real, native
from solvers.solution import Status
from solvers.solve import solve
from solvers.solver import Solver


class Trigonometric:
    """The path ``alpha = cos t, sigma = sin t`` for t in [0, pi/2]: the simplest that has both ends."""

    def node(self, t: Real) -> Node:
        """The node at angle ``t``."""
        return Node(t, native(np.cos(t)), native(np.sin(t)))

    def node_at(self, log_snr: Real) -> Node:
        """``tan t = exp(-log_snr)``."""
        return self.node(native(np.arctan(np.exp(np.negative(log_snr)))))

    def rates(self, t: Real) -> tuple[Real, Real]:
        """``-sin t`` and ``cos t``."""
        return native(-np.sin(t)), native(np.cos(t))


@dataclass(frozen=True)
class Gaussian:
    """Data ``N(mean, deviation^2)``, independent in every component; prediction and flow are closed forms."""

    mean: float = 0.5
    deviation: float = 0.6

    def predict(self, node: Node, x: Tensor) -> Prediction:
        """``E[x0 | x]`` and ``E[eps | x]``."""
        variance = self.deviation**2
        total = node.alpha**2 * variance + node.sigma**2
        centred = self._centred(node, x)
        return Prediction(
            lambda: combine((node.alpha * variance / total, centred)).add_(self.mean),
            lambda: combine((node.sigma / total, centred)),
        )

    def flow(self, a: Node, b: Node, x: Tensor) -> Tensor:
        """The exact solution of the probability-flow ODE from a to b: quantiles are carried along."""
        spread = [np.hypot(node.alpha * self.deviation, node.sigma) for node in (a, b)]
        moved = combine((native(spread[1] / spread[0]), self._centred(a, x)))
        return moved.add_(per_row(b.alpha * self.mean, x))

    def _centred(self, node: Node, x: Tensor) -> Tensor:
        return x - per_row(node.alpha * self.mean, x)


class Mixture:
    """Data from a mixture of isotropic Gaussians: weights ``(K,)``, means ``(K, d)``, deviations ``(K,)``."""

    def __init__(self, weights: Tensor, means: Tensor, deviations: Tensor) -> None:
        self.weights, self.means, self.deviations = weights, means, deviations
        self._parameters = cache(self._converted)

    def _converted(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logarithms of the weights, means, variances, and the columns (mean, variance, 1) as one table."""
        variances = self.deviations.square()
        table = torch.cat((self.means, variances[:, None], torch.ones_like(variances)[:, None]), dim=1)

        def converted(values: Tensor) -> Tensor:
            return values.to(device=device, dtype=dtype)

        return converted(self.weights.log()), converted(self.means), converted(variances), converted(table)

    def predict(self, node: Node, x: Tensor) -> Prediction:
        """``E[x0 | x]`` and ``E[eps | x]``: posterior means of the components, weighted by responsibility."""
        log_weights, means, variances, table = self._parameters(x.dtype, x.device)
        flat = x.reshape(len(x), -1)
        alpha, sigma = (v if isinstance(v, float) else per_row(v, flat[..., None]) for v in node[1:])
        total = (variances[:, None] * alpha**2 + sigma**2)[..., 0]
        # Row-wise reductions, no matrix product across the batch: a sample's bits do not depend on its batch mates.
        energy = (flat[:, None] - alpha * means).square().sum(-1) / total
        gain = torch.softmax(log_weights - 0.5 * (energy + means.shape[1] * total.log()), dim=1) / total
        mean, variance, one = (gain[..., None] * table).sum(1).split((means.shape[1], 1, 1), dim=1)
        return Prediction(
            lambda: combine((node.sigma**2, mean), (node.alpha, variance * flat)).reshape(x.shape),
            lambda: combine((node.sigma, one * flat), (-node.sigma * node.alpha, mean)).reshape(x.shape),
        )

    def sample(self, count: int, seed: int) -> Tensor:
        """``count`` samples of the data, ``(count, d)`` in float64."""
        generator = torch.Generator().manual_seed(seed)
        component = torch.multinomial(self.weights.double(), count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[component] + self.deviations[component, None] * noise


class ExactODE(PathODE):
    """The probability-flow ODE of a known distribution: no network, no error of a network.

    ``distribution`` has ``predict(node, x)``; ``path`` has ``node``, ``node_at`` and ``rates``. Every call checks that
    the solver stays inside ``span`` and keeps the state's dtype and shape.
    """

    def __init__(self, distribution: Gaussian | Mixture, path: Trigonometric | None = None, span: Sequence[float] = ()):
        self.distribution = distribution
        self.path = path or Trigonometric()
        self.span = span
        self.like: Tensor | None = None

    def watching(self, like: Tensor, span: Sequence[float]) -> "ExactODE":
        """The same problem, which refuses states unlike ``like`` and times outside ``span``."""
        watched = ExactODE(self.distribution, self.path, span)
        watched.like = like
        return watched

    def predict(self, node: Node, x: Tensor) -> Prediction:
        """The exact posterior means."""
        if self.span and not (np.all(min(self.span) <= node.t) and np.all(node.t <= max(self.span))):
            raise AssertionError(f"the field was called at t={node.t}, outside the span {self.span}")
        if self.like is not None:
            expected, got = ((v.dtype, v.device, v.shape[1:]) for v in (self.like, x))
            if expected != got:
                raise AssertionError(f"the field was called with {got} for a state of {expected}")
        return self.distribution.predict(node, x)

    def node(self, t: Real) -> Node:
        """The path's."""
        return self.path.node(t)

    def node_at(self, log_snr: Real) -> Node:
        """The path's."""
        return self.path.node_at(log_snr)

    def rates(self, t: Real) -> tuple[Real, Real]:
        """The path's."""
        return self.path.rates(t)


SPAN = (1.35, 0.4)
"""Angles between which everything is measured: both ends regular on every line."""
MOST_STEPS = 1280
CHECKPOINTS = 5
STRETCH = 0.27
BOUND = 0.05
ERROR_AT_THE_ENDS = 0.5
"""Twice what DDIM leaves after 12 steps over the whole path."""
ROUND_OFF = float(np.finfo(np.float64).eps)
"""Of a state of size 1."""
MOST_CALLS = 150
TOLERANCE_FACTOR = 200
"""Pairs of low order with a small error constant, such as torchdiffeq's fehlberg2, come near it."""


def mild_mixture() -> ExactODE:
    """Two overlapping components in the plane, curved enough to show an order and smooth enough to show it early.

    These numbers, the span and the starting points come from a search: with them the methods of orders 1 to 5 are in
    their asymptotic regime before round-off, along every line and in both directions.
    """
    weights = torch.tensor([0.57, 0.43], dtype=torch.float64)
    means = torch.tensor([[0.0, 1.0], [0.3, -0.7]], dtype=torch.float64)
    return ExactODE(Mixture(weights, means, torch.tensor([0.69, 0.37], dtype=torch.float64)))


def starting_points(dtype: torch.dtype = torch.float64) -> Tensor:
    """A few states, spread over the mass."""
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


@cache
def departures(start: float, end: float) -> Tensor:
    """Sixteen states at ``start``: the starting points and their quarter turns, or where these arrive.

    Towards the noise they are the ends of the way towards the data: there and back.
    """
    if start < end:
        return reference(end, start)[-1]
    quarter = [starting_points()]
    for _ in range(3):
        quarter.append(torch.stack((quarter[-1][:, 1], -quarter[-1][:, 0]), dim=1))
    return torch.cat(quarter)


@cache
def reference(start: float, end: float) -> Tensor:
    """Where the mild mixture's flow carries the departures, at the checkpoints: the nodes of ``CHECKPOINTS`` steps."""
    return flow(departures(start, end), uneven_times(start, end, CHECKPOINTS))


def flow(x: Tensor, times: Tensor) -> Tensor:
    """The mild mixture's flow from ``times[0]`` to each of the others, ``(len(times) - 1, *x.shape)``.

    By scipy's DOP853 at 3e-14: another library, another formula.
    """
    problem = mild_mixture()

    def field(t: float, flat: np.ndarray) -> np.ndarray:
        return problem(float(t), torch.from_numpy(flat.copy()).view_as(x)).numpy().ravel()

    states = [x.numpy().ravel()]
    for span in pairwise(times.tolist()):
        states.append(solve_ivp(field, span, states[-1], method="DOP853", rtol=3e-14, atol=1e-15).y[:, -1])
    return torch.from_numpy(np.stack(states[1:])).view(-1, *x.shape)


def error_on_the_way(solver: Solver, start: float, end: float, steps: int) -> float:
    """The root mean square error of one solve of the mild mixture, over all samples and checkpoints.

    At one time and for one sample the leading term of an error may happen to vanish, and a wrong order shows.
    """
    x = departures(start, end)
    problem = mild_mixture().watching(x, (start, end))
    found = solve(problem, solver, x, uneven_times(start, end, steps), trajectory=True).trajectory
    assert found is not None
    return float((found[steps // CHECKPOINTS :: steps // CHECKPOINTS] - reference(start, end)).square().mean().sqrt())


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
    return math.log2(errors[-3] / errors[-1]) / 2


def check_order(solver: Solver) -> None:
    """The declared order, from noise to data and from data to noise."""
    for start, end in (SPAN, SPAN[::-1]):
        slope = measured_order(partial(error_on_the_way, solver, start, end))
        if not abs(slope - solver.own_start_order) < 0.2:
            raise AssertionError(
                f"{solver}: measured order {slope:.2f} from t={start} to t={end}, declared {solver.own_start_order}"
            )


def check_bounded(solver: Solver) -> None:
    """An error without an order stays small, from noise to data and from data to noise."""
    for start, end in (SPAN, SPAN[::-1]):
        for steps in (20, 40, 80, 160):
            error = error_on_the_way(solver, start, end, steps)
            if not error < BOUND:
                raise AssertionError(f"{solver}: error {error:.1e} of {steps} steps from t={start} to t={end}")


@dataclass(frozen=True)
class Impulses(NoiseStream):
    """A stream whose draw number k is 1 in row k + 1 and 0 elsewhere: it reads off a linear solve's response."""

    def draw(self, like: Tensor) -> tuple[Tensor, NoiseStream]:
        """The k-th unit impulse."""
        noise = torch.zeros_like(like)
        if self.counter + 1 < len(like):
            noise[self.counter + 1] = 1
        return noise, replace(self, counter=self.counter + 1)


def marginal_variance(solver: Solver, times: Tensor, ode: ExactODE, variance: float, draws: int) -> float:
    """The variance that ``solver`` gives on a centred Gaussian problem, without sampling error.

    There a solve is linear: x_end = c x_start + sum c_k z_k. Row 0 starts at 1 without noise, row k + 1 starts at 0 and
    receives draw k alone, so one solve shows every coefficient.
    """
    x = torch.zeros(draws + 1, 1, dtype=torch.float64)
    x[0] = 1
    response = solve(ode, solver, x, times, stream=Impulses(0)).x.square().ravel()
    return float(variance * response[0] + response[1:].sum())


def check_weak_order(solver: Solver) -> None:
    """The declared weak order: the variance of a Gaussian problem converges at that rate."""
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

    For rtol = atol = 1e-3, 1e-4, ... 1e-8, as far as `MOST_CALLS` evaluations reach, the error of the mild mixture is
    at most `TOLERANCE_FACTOR` times the tolerance, and from the first to the last tolerance it falls like the tolerance
    to a power between 0.5 and 1.5. The solver is a dataclass with the fields ``rtol`` and ``atol``.
    """
    for start, end in (SPAN, SPAN[::-1]):
        x, errors = departures(start, end)[:2], {}
        for tolerance in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
            one = replace(solver, rtol=tolerance, atol=tolerance)  # type: ignore[call-arg]
            problem = mild_mixture().watching(x, (start, end))
            found = solve(problem, one, x, (start, end), throw=False, max_nfe=MOST_CALLS)
            if bool((found.status == Status.BUDGET).any()):
                break
            errors[tolerance] = float((found.x - reference(start, end)[-1, : len(x)]).abs().max())
        if len(errors) < 3:
            raise AssertionError(f"{solver}: more than {MOST_CALLS} evaluations for a tolerance of 1e-5")
        for tolerance, error in errors.items():
            # The comparison is written so that a NaN fails it.
            if not error <= TOLERANCE_FACTOR * tolerance:
                raise AssertionError(f"{solver}: error {error:.1e} at rtol={tolerance} from t={start} to t={end}")
        power = math.log(errors[1e-3] / error) / math.log(1e-3 / tolerance)
        if not 0.5 <= power <= 1.5:
            raise AssertionError(
                f"{solver}: from rtol=1e-3 to {tolerance} the error falls like rtol^{power:.2f}, t={start} to t={end}"
            )


def check_calls(solver: Solver, steps: int = 6) -> None:
    """`calls`, counted by the wrapper; a method that follows a tolerance knows no such number, and says so."""
    if solver.law == "tolerance":
        try:
            solver.calls(steps)
        except ValueError:
            return
        raise AssertionError(f"{solver}: calls({steps}) answers, though the solver chooses its own steps")
    found = solve(mild_mixture(), solver, starting_points(), uneven_times(*SPAN, steps), stream=NoiseStream(0))
    if found.stats.nfe > solver.calls(steps):
        raise AssertionError(f"{solver}: {steps} steps made {found.stats.nfe} calls, declared {solver.calls(steps)}")


def check_independence(solver: Solver, steps: int = 6) -> None:
    """A sample's bits are the same alone, among others, and in another order."""
    problem, x, times = mild_mixture(), starting_points(), uneven_times(*SPAN, steps)

    def end(ids: Sequence[int]) -> Tensor:
        return solve(problem, solver, x[list(ids)], times, stream=NoiseStream(3, tuple(ids))).x

    together = end(range(len(x)))
    for ids in ((2,), (3, 1), (3, 2, 1, 0)):
        if not torch.equal(end(ids), together[list(ids)]):
            raise AssertionError(f"{solver}: samples {ids} end elsewhere when they are solved apart from the others")


def check_dtype(solver: Solver, steps: int = 6) -> None:
    """The state keeps its dtype, in every call and at the end; float32 agrees with float64."""
    ends = []
    for dtype in (torch.float32, torch.float64):
        x = starting_points(dtype)
        problem = mild_mixture().watching(x, SPAN)
        ends.append(solve(problem, solver, x, uneven_times(*SPAN, steps), stream=NoiseStream(0)).x)
        if ends[-1].dtype != dtype:
            raise AssertionError(f"{solver}: a {dtype} state came back as {ends[-1].dtype}")
    if not torch.allclose(ends[0].double(), ends[1], rtol=0, atol=1e-4):
        raise AssertionError(f"{solver}: float32 and float64 differ by {(ends[0].double() - ends[1]).abs().max():.1e}")


def check_both_ends(solver: Solver, steps: int = 12) -> None:
    """From pure noise (alpha = 0) to the data (sigma = 0), and back if the solver inverts.

    The states stay finite, and those of the ODE come near the truth: division by a vanishing alpha or sigma, or the
    difference of two huge numbers, does not.
    """
    problem, x = mild_mixture(), starting_points()
    times = torch.linspace(math.pi / 2, 0, steps + 1, dtype=torch.float64)
    for grid in (times, times.flip(0)) if solver.deterministic else (times,):
        end = solve(problem, solver, x, grid, closing=None, stream=NoiseStream(0)).x
        if solver.deterministic:
            error = float((end - flow(x, grid[[0, -1]])[0]).abs().max())
            if not error < ERROR_AT_THE_ENDS:
                raise AssertionError(
                    f"{solver}: error {error:.1e} of {steps} steps from t={grid[0]:.2f} to {grid[-1]:.2f}"
                )


def check_carry_on(solver: Solver, steps: int = 6) -> None:
    """Two solves joined by `Solution.state` are one solve, bit for bit, for methods that declare it."""
    if not solver.carries_on:
        return
    problem, x, times = mild_mixture(), starting_points(), uneven_times(*SPAN, steps)
    whole = solve(problem, solver, x, times, stream=NoiseStream(5))
    half = solve(problem, solver, x, times[: steps // 2 + 1], stream=NoiseStream(5))
    rest = solve(problem, solver, half.x, times[steps // 2 :], state=half.state)
    if not torch.equal(rest.x, whole.x):
        raise AssertionError(f"{solver}: continuing from the state of a solve differs from solving at once")


def check_law(solver: Solver) -> None:
    """The law that the solver declares."""
    measure = {"order": check_order, "weak": check_weak_order, "tolerance": check_tolerance, "bounded": check_bounded}
    measure[solver.law](solver)


CHECKS = (check_law, check_calls, check_independence, check_dtype, check_both_ends, check_carry_on)


def check(solver: Solver) -> None:
    """Measure what ``solver`` declares; raise `AssertionError` with the first thing that does not hold.

    Order in both directions (or its weak order, or how its error follows the tolerance), calls, batch independence to
    the bit, dtype, both ends of the path, and carrying on from a state.
    """
    if not isinstance(solver, Solver):
        raise TypeError(f"solver={solver!r} is no solvers.Solver; pass an instance such as solvers.DDIM()")
    for one in CHECKS:
        one(solver)
