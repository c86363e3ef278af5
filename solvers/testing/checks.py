"""`check`: measures everything that a solver declares."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.inverse import Inverse
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node, PathODE, Prediction
from solvers.real import Real, native
from solvers.reversible import ReversibleSolver
from solvers.settings import parts, undeclared
from solvers.solve import solve
from solvers.solver import Solver
from solvers.testing.distributions import ExactODE, Trigonometric
from solvers.testing.generality import check_path, check_shape
from solvers.testing.laws import check_alternating_steps, check_law
from solvers.testing.problem import SPAN, across, departures, mild_mixture, starting_points, uneven_times

ERROR_AT_THE_ENDS = 0.5
"""The largest error allowed over the whole path: two and a half times that of DDIM after 12 steps."""
RETURN = 1e-6
"""The largest error of a round trip by a reversible method, whose inverse may amplify rounding."""


def check_settings(solver: Solver) -> None:
    """Every attribute is a field: by its fields a method is compared, shown, written to files, and planned once."""
    for part in parts(solver):
        if hidden := undeclared(part):
            raise AssertionError(
                f"{solver}: {', '.join(hidden)}: no field, so that methods that differ in it count as equal; decorate "
                f"{type(part).__name__} with @dataclass(frozen=True), and declare its settings as fields"
            )


def check_noise(solver: Solver, steps: int = 6) -> None:
    """A deterministic solve does not depend on the noise stream; the law of a stochastic one is a weak order."""
    if not solver.deterministic:
        if solver.law != "weak":
            raise AssertionError(
                f"{solver}: law={solver.law!r} is measured without noise, but deterministic is False; declare the law "
                '"weak", the order in which moments converge'
            )
        return

    def end(seed: int) -> Tensor:
        times = uneven_times(*SPAN, steps)
        return solve(mild_mixture(), solver, starting_points(), times, stream=NoiseStream(seed)).x

    once = end(0)
    if torch.equal(end(0), once) and not torch.equal(end(1), once):
        raise AssertionError(f"{solver}: its end depends on the noise stream; declare that deterministic is False")


def check_calls(solver: Solver, steps: int = 6) -> None:
    """The calls made equal `calls`; a method that follows a tolerance has no such number, and must raise."""
    if solver.law == "tolerance":
        try:
            solver.calls(steps)
        except ValueError:
            return
        raise AssertionError(
            f"{solver}: calls({steps}) returns a number, but the solver chooses its own steps; raise ValueError"
        )
    made = [_calls_made(solver, uneven_times(*SPAN, n)) for n in (steps, 2 * steps, 4 * steps, 16 * steps)]
    if made[0] > solver.calls(steps):
        raise AssertionError(f"{solver}: {steps} steps made {made[0]} calls, declared {solver.calls(steps)}")
    # A method that iterates makes fewer calls than it declares, and fewer per step when steps are short.
    for_each_step = [(b - a) / n for (a, b), n in zip(pairwise(made), (1, 2, 12), strict=True)]
    if made[0] < solver.calls(steps) and len(set(for_each_step)) == 1:
        raise AssertionError(
            f"{solver}: {steps} steps made {made[0]} calls, declared {solver.calls(steps)}; nfe= would take fewer "
            "steps than it could: let calls(n_steps) return the exact cost, and a bound only where that depends on "
            "the problem"
        )


def _calls_made(solver: Solver, times: Tensor) -> int:
    return solve(mild_mixture(), solver, starting_points(), times, stream=NoiseStream(0)).stats.nfe


def check_independence(solver: Solver, steps: int = 6) -> None:
    """A sample's bits are the same alone, in a batch, and in another order."""
    problem, x, times = mild_mixture(), starting_points(), uneven_times(*SPAN, steps)

    def end(ids: Sequence[int]) -> Tensor:
        return solve(problem, solver, x[list(ids)], times, stream=NoiseStream(3, tuple(ids))).x

    together = end(range(len(x)))
    for ids in ((2,), (3, 1), (3, 2, 1, 0)):
        if not torch.equal(end(ids), together[list(ids)]):
            raise AssertionError(f"{solver}: samples {ids} end elsewhere when solved apart from the others")


def check_dtype(solver: Solver, steps: int = 6) -> None:
    """The state keeps its dtype, in every call and at the end; float32 agrees with float64."""
    ends = []
    for dtype in (torch.float32, torch.float64):
        x = starting_points(dtype)
        problem = mild_mixture().watching(x, SPAN)
        try:
            ends.append(solve(problem, solver, x, uneven_times(*SPAN, steps), stream=NoiseStream(0)).x)
        except ValueError as error:  # from the loop, which requires steps to keep it
            raise AssertionError(str(error)) from error
        if ends[-1].dtype != dtype:
            raise AssertionError(f"{solver}: a {dtype} state came back as {ends[-1].dtype}")
    if not torch.allclose(ends[0].double(), ends[1], rtol=0, atol=1e-4):
        raise AssertionError(f"{solver}: float32 and float64 differ by {(ends[0].double() - ends[1]).abs().max():.1e}")


class _FromPureNoise(Trigonometric):
    """The path whose alpha is exactly 0 at pi/2, not the rounded cosine."""

    def node(self, t: Real) -> Node:
        found = super().node(t)
        return found._replace(alpha=native(np.where(np.equal(t, math.pi / 2), 0.0, found.alpha)))


def check_both_ends(solver: Solver, steps: int = 12) -> None:
    """From pure noise (alpha = 0) to the data (sigma = 0), and back if the solver inverts.

    The states stay finite, and those of deterministic methods are near the exact solution. Division by a vanishing
    alpha or sigma, or the difference of two huge numbers, would fail this. `calls_over` knows what steps cost there.
    """
    problem, x = ExactODE(mild_mixture().distribution, _FromPureNoise()), starting_points()
    times = torch.linspace(math.pi / 2, 0, steps + 1, dtype=torch.float64)
    for grid in (times, times.flip(0)) if solver.deterministic else (times,):
        try:
            found = solve(problem, solver, x, grid, closing=None, stream=NoiseStream(0))
        except ZeroDivisionError as zero:
            raise AssertionError(
                f"{solver}: it divides by alpha = 0 at pure noise, or by sigma = 0 at the data; use a DDIM step there"
            ) from zero
        except (ValueError, OverflowError) as raised:  # such as those of math.log(0) and math.exp(1e3)
            raise AssertionError(
                f"{solver}: {type(raised).__name__} between alpha = 0 at pure noise and sigma = 0 at the data: "
                f"{raised}; where a formula takes the logarithm of one of them, use a DDIM step"
            ) from raised
        if solver.law != "tolerance" and found.stats.nfe > (declared := solver.calls_over(problem, found.nodes)):
            raise AssertionError(
                f"{solver}: {steps} steps between the ends of the path made {found.stats.nfe} calls, calls_over "
                f"declares {declared}; let it count every step, DDIM steps at singular nodes as one call"
            )
        if solver.deterministic:
            error = float((found.x - across(float(grid[0]), float(grid[-1]))).abs().max())
            if not error < ERROR_AT_THE_ENDS:
                raise AssertionError(
                    f"{solver}: {steps} steps have error {error:.1e} from t={grid[0]:.2f} to {grid[-1]:.2f}; alpha = 0 "
                    "at pure noise and sigma = 0 at the data: divide by neither; line=solvers.Rotation() is regular"
                )


def check_carry_on(solver: Solver, steps: int = 6) -> None:
    """Two solves joined by `Solution.state` equal one solve, bit for bit, for methods that declare it."""
    if not solver.carries_on:
        return
    problem, x, times = mild_mixture(), starting_points(), uneven_times(*SPAN, steps)
    whole = solve(problem, solver, x, times, stream=NoiseStream(5))
    half = solve(problem, solver, x, times[: steps // 2 + 1], stream=NoiseStream(5))
    rest = solve(problem, solver, half.x, times[steps // 2 :], state=half.state)
    if not torch.equal(rest.x, whole.x):
        raise AssertionError(
            f"{solver}: continuing from the state of a solve differs from solving at once; return the whole history in "
            "Step.state, or declare that carries_on is False"
        )


class _Held(PathODE):
    """The mild mixture, which keeps a copy of every tensor that it returns."""

    def __init__(self) -> None:
        self.ode = mild_mixture()
        self.answers: list[tuple[Tensor, Tensor]] = []

    def node(self, t: Real) -> Node:
        return self.ode.node(t)

    def node_at(self, log_snr: Real) -> Node:
        return self.ode.node_at(log_snr)

    def rates(self, t: Real) -> tuple[Real, Real]:
        return self.ode.rates(t)

    def predict(self, node: Node, x: Tensor) -> Prediction:
        found = self.ode.predict(node, x)
        for answer in (found.x0, found.eps):
            self.answers.append((answer, answer.clone()))
        return Prediction(found.x0, found.eps)


class _HeldField(ODE):
    """dx/dt = cos(t), which keeps a copy of every tensor that it returns."""

    def __init__(self) -> None:
        self.answers: list[tuple[Tensor, Tensor]] = []

    def __call__(self, t: Any, x: Tensor) -> Tensor:
        slope = torch.cos(torch.as_tensor(t, dtype=x.dtype, device="cpu")).expand_as(x).clone()
        self.answers.append((slope, slope.clone()))
        return slope


def check_answers_stay(solver: Solver, steps: int = 6) -> None:
    """The solver does not modify what the problem returns: a lazy prediction may compute its other part from it."""
    path, field = _Held(), _HeldField()
    solve(path, solver, starting_points(), uneven_times(*SPAN, steps), stream=NoiseStream(0))
    with suppress(TypeError, AttributeError):  # methods that require predictions
        solve(field, solver, starting_points(), uneven_times(*SPAN, steps), stream=NoiseStream(0))
    for problem, answer in ((path, "a prediction"), (field, "the slope that the ODE returned")):
        if not all(torch.equal(now, before) for now, before in problem.answers):
            raise AssertionError(f"{solver}: it writes to {answer}; let it compute a new tensor, as combine does")


def check_runs_apart(solver: Solver, steps: int = 6) -> None:
    """A solve in the midst of another changes neither, and carrying on a state twice gives the same result twice."""
    problem, x, times = mild_mixture(), starting_points(), uneven_times(*SPAN, steps)

    def end(callback: Callable[[Node, Tensor], object] | None = None) -> Tensor:
        return solve(problem, solver, x, times, stream=NoiseStream(7), callback=callback).x

    alone, among = end(), []
    if not torch.equal(end(lambda node, state: among.append(end())), alone) or not torch.equal(among[0], alone):
        raise AssertionError(
            f"{solver}: a solve in the midst of another ends elsewhere; keep what a run knows in the state that start "
            "makes and step takes and returns, never on the instance, and draw noise from the stream there"
        )
    if not solver.carries_on:
        return
    half = solve(problem, solver, x, times[: steps // 2 + 1], stream=NoiseStream(7))
    rests = [solve(problem, solver, half.x, times[steps // 2 :], state=half.state).x for _ in range(2)]
    if not torch.equal(*rests):
        raise AssertionError(f"{solver}: its step changes the state that it is given; let it return a new one")


def check_one_step(solver: Solver, steps: int = 6) -> None:
    """Steps taken by themselves equal those of a solve, bit for bit, for methods that declare it."""
    if not (solver.one_step and solver.deterministic):
        return
    problem, x, times = mild_mixture(), starting_points(), uneven_times(*SPAN, steps)
    whole = solve(problem, solver, x, times).x
    for i in range(steps):
        x = solve(problem, solver, x, times[i : i + 2]).x
    if not torch.equal(x, whole):
        raise AssertionError(f"{solver}: its steps end elsewhere when taken by themselves; declare one_step = False")


def check_inverse(solver: Solver, steps: int = 6) -> None:
    """The inverse of a reversible method retraces its steps, in both directions, up to rounding."""
    if not isinstance(solver, ReversibleSolver):
        return
    for span in (SPAN, SPAN[::-1]):
        x, times = departures(*span), uneven_times(*span, steps)
        there = solve(mild_mixture(), solver, x.clone(), times)
        back = solve(mild_mixture(), Inverse(solver), there.x, times.flip(0), state=there.state).x
        # The comparison is written so that a NaN fails it.
        if not (error := float((back - x).abs().max())) < RETURN:
            raise AssertionError(
                f"{solver}: unstep does not undo step: {steps} steps from t={span[0]} to t={span[1]} and back end "
                f"{error:.1e} beside their start; let it lead from its a to its b by undoing the step from b to a"
            )


def check_gradient(solver: Solver, steps: int = 6) -> None:
    """Autograd through a solve agrees with finite differences, for methods on a grid that declare it."""
    if not solver.differentiable or solver.law == "tolerance":
        return

    def total(x: Tensor) -> Tensor:
        return solve(mild_mixture(), solver, x, uneven_times(*SPAN, steps), stream=NoiseStream(0)).x.sum()

    x, h = starting_points(), 1e-4
    towards = x.flip(0)
    with torch.no_grad():
        expected = float(total(x + h * towards) - total(x - h * towards)) / (2 * h)
    with torch.enable_grad():
        end = total(x.requires_grad_())
    (gradient,) = torch.autograd.grad(end, x, allow_unused=True) if end.requires_grad else (None,)
    found = 0.0 if gradient is None else float((gradient * towards).sum())
    if not abs(found - expected) < 1e-3 * (1 + abs(expected)):
        raise AssertionError(
            f"{solver}: autograd gives the derivative {found:.4g}, finite differences {expected:.4g}; detach nothing "
            "in its steps, or declare that differentiable is False"
        )


CHECKS = (
    check_settings,
    check_noise,
    check_runs_apart,
    check_law,
    check_alternating_steps,
    check_calls,
    check_answers_stay,
    check_independence,
    check_dtype,
    check_shape,
    check_path,
    check_both_ends,
    check_carry_on,
    check_one_step,
    check_inverse,
    check_gradient,
)


def check(solver: Solver) -> None:
    """Measure what ``solver`` declares; raise `AssertionError` at the first declaration that does not hold.

    It measures whether its settings are fields, whether noise is used, two runs at a time, the order in both directions
    and between nodes at alternating distances (or the weak order, or how the error follows the tolerance), calls,
    unmodified predictions, batch independence to the bit, dtype, samples of another shape, a path of another kind, both
    ends of the path, carrying on from a state, single steps, the inverse of a reversible method, and gradients.

    Raises:
        TypeError, ValueError: the solver breaks the contract in a way that the loop refuses.
    """
    if not isinstance(solver, Solver):
        raise TypeError(f"solver={solver!r} must be a solvers.Solver; pass an instance such as solvers.DDIM()")
    if not hasattr(solver, "order"):
        raise AssertionError(f"{solver}: declares no order; give its class one, such as order = 1")
    for one in CHECKS:
        try:
            one(solver)
        except (TypeError, ValueError):
            raise
        except Exception as error:
            said = str(error)
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            if said.startswith(str(solver)):
                raise
            raise AssertionError(f"{solver}: {kind}{said}") from error
