"""Solving to a tolerance: what every adaptive method owes, and the embedded pairs."""

import importlib.util
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import scipy.integrate
import torch
from scipy.integrate import solve_ivp

import solvers
from benchmarks.live_memory import LiveMemory
from solvers import (
    DOP853,
    DPM12,
    DPM23,
    ODE,
    PID,
    Adaptive,
    AdaptiveAdams,
    Bosh3,
    Controller,
    Data,
    Dopri5,
    Heun,
    I,
    Noise,
    Rotation,
    SolveError,
    Status,
    Tsit5,
    solve,
)
from solvers.controller import first_step, row_norm, second_step
from solvers.testing import SPAN, ExactODE, Gaussian, across, departures, mild_mixture, reference, starting_points
from solvers.tolerance import Span

SPEC = importlib.util.spec_from_file_location("detest", Path(__file__).with_name("detest.py"))
detest = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(detest)

PLAIN = [AdaptiveAdams(line=None), *(Adaptive(pair) for pair in (Bosh3(), Dopri5(), Tsit5(), DOP853()))]
PATH = [AdaptiveAdams(), *(Adaptive(pair, line=Rotation()) for pair in (Bosh3(), Tsit5(), DOP853())), Adaptive(DPM23())]


def name(value):
    return type(getattr(value, "pair", value)).__name__ if isinstance(value, solvers.Solver) else None


class Plain(solvers.ODE):
    """A function of a sample's time ``(B, 1)`` and state as an ODE, which keeps the times of its calls."""

    def __init__(self, field):
        self.field, self.times, self.rows_seen = field, [], []

    def __call__(self, t, x):
        t = torch.as_tensor(t).to(x).broadcast_to(len(x), 1)
        self.times += t.ravel().tolist()
        self.rows_seen.append(len(x))
        return self.field(t, x)


class Array(solvers.ODE):
    """One sample whose field is a function of a float and a numpy array."""

    def __init__(self, field):
        self.field = field

    def __call__(self, t, x):
        return torch.from_numpy(np.asarray(self.field(float(t), x[0].numpy())))[None]


@pytest.mark.parametrize("problem", detest.PROBLEMS)
def test_detest_agrees_with_another_library(problem):
    field, start = detest.PROBLEMS[problem]
    truth = solve_ivp(field, (0.0, 20.0), start, method="DOP853", rtol=1e-10, atol=1e-10).y[:, -1]
    x = torch.tensor(np.array(start, dtype=float))[None]
    for solver, tolerance in ((PLAIN[4], 1e-9), (PLAIN[3], 1e-6), (PLAIN[2], 1e-6), (PLAIN[1], 1e-4), (PLAIN[0], 1e-6)):
        found = solve(Array(field), replace(solver, rtol=tolerance), x, (0.0, 20.0)).x[0].numpy()
        # Orbits of high eccentricity and growing solutions carry local errors on, by up to this factor.
        assert np.abs(found - truth).max() <= 3e3 * tolerance * max(1.0, np.abs(truth).max()), name(solver)


def test_each_pair_estimates_the_error_of_a_quadrature_of_its_order():
    # Weights and error weights applied to 1, t, t^2, ...: the estimate vanishes exactly below its own order.
    for pair in (Bosh3(), Dopri5(), Tsit5(), DOP853()):
        c = np.array([*pair.tableau.c, 1.0])
        moments = [abs(np.dot(pair.embedded.error, c**k)) for k in range(pair.order)]
        # Up to the order of the lower method, p, the moments 0 ... p - 1 agree.
        lower = {"Bosh3": 2, "Dopri5": 4, "Tsit5": 4, "DOP853": 5}[name(Adaptive(pair))]
        assert max(moments[:lower]) < 1e-14
        assert moments[lower] > 1e-5


@dataclass(frozen=True)
class HeunEuler(solvers.RungeKutta):
    """A pair of one's own: Euler's method inside Heun's."""

    order: ClassVar[int] = 2
    tableau: ClassVar[solvers.Tableau] = solvers.Heun.tableau
    embedded: ClassVar[solvers.Embedded] = solvers.Embedded((-1 / 2, 1 / 2, 0.0), 2)


@dataclass(frozen=True)
class WithoutTheLastSlope(HeunEuler):
    embedded: ClassVar[solvers.Embedded] = solvers.Embedded((-1 / 2, 1 / 2), 2)


@dataclass(frozen=True)
class DampedByTooLittle(HeunEuler):
    embedded: ClassVar[solvers.Embedded] = solvers.Embedded((-1 / 2, 1 / 2, 0.0), 2, (1.0,))


@dataclass(frozen=True)
class TooFewWeights(HeunEuler):
    tableau: ClassVar[solvers.Tableau] = solvers.Tableau((0.0, 1.0), ((), (1.0,)), (1.0,))


def test_a_pair_of_ones_own_follows_the_tolerance():
    found = solve(mild_mixture(), Adaptive(HeunEuler(), rtol=1e-4, line=Rotation()), starting_points(), SPAN)
    assert float((found.x - across(*SPAN)).abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (WithoutTheLastSlope, "WithoutTheLastSlope: embedded.error has 2 of 3 weights; give .* at the end of the step"),
        (DampedByTooLittle, "embedded.coarse has 1 of 3 weights"),
        (TooFewWeights, "tableau=.* has 2 stages; give rows of 0 to 1 entries and 2 weights b"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_weights_that_do_not_fit_the_stages_are_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        kind()


@pytest.mark.parametrize(
    "solver", [*PLAIN, Adaptive(Tsit5(), controller=I), Adaptive(Tsit5(), controller=PID)], ids=str
)
@pytest.mark.parametrize("span", [(0.0, 3.0), (3.0, 0.0), (0.3, 0.3001), (1e-9, 0.0), (-2.0, 5.0)], ids=str)
def test_the_field_is_never_called_outside_the_span_and_the_end_is_reached(solver, span):
    problem = Plain(lambda t, x: torch.cos(t) * x)
    x = torch.tensor([[1.0], [-0.5]], dtype=torch.float64)
    found = solve(problem, replace(solver, rtol=1e-6), x, span)
    assert min(span) <= min(problem.times) and max(problem.times) <= max(span)
    exact = x * math.exp(math.sin(span[1]) - math.sin(span[0]))
    torch.testing.assert_close(found.x, exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("solver", [*PLAIN, *PATH], ids=str)
def test_nodes_between_the_ends_are_reported_to_the_tolerance(solver):
    times, x, problem = torch.linspace(*SPAN, 8, dtype=torch.float64), starting_points(), ExactODE(Gaussian())
    for grid in (times, times.flip(0)):
        found = solve(problem.watching(x, SPAN), replace(solver, rtol=1e-6), x, grid, trajectory=True)
        exact = torch.stack([problem.distribution.flow(found.nodes[0], node, x) for node in found.nodes])
        assert (found.trajectory - exact).abs().max() < 1e-4
        alone = solve(problem, replace(solver, rtol=1e-6), x, grid[[0, -1]])
        if isinstance(solver, AdaptiveAdams):
            assert alone.x.equal(found.x)


PAIRS = [*PLAIN[1:], *PATH[1:], Adaptive(DPM12())]
REACHED = {"Bosh3": 1e-6, "DPM12": 1e-4, "DPM23": 1e-6}
"""Tolerances of the pairs of low order, which take too long to the 1e-9 of the others."""


@pytest.mark.parametrize("solver", PAIRS, ids=str)
@pytest.mark.parametrize("span", [SPAN, SPAN[::-1]], ids=str)
def test_the_solution_between_the_steps_has_their_accuracy(solver, span):
    problem, x, rtol = ExactODE(Gaussian()), starting_points(), REACHED.get(type(solver.pair).__name__, 1e-9)
    found = solve(problem, replace(solver, rtol=rtol), x, span, trajectory=True)
    for t in np.linspace(*span, 41):
        exact = problem.distribution.flow(found.nodes[0], problem.node(float(t)), x)
        torch.testing.assert_close(found(float(t)), exact, rtol=0, atol=10 * rtol)


@pytest.mark.parametrize("pair", [DPM12(), DPM23()], ids=name)
@pytest.mark.parametrize("span", [SPAN, SPAN[::-1]], ids=str)
def test_a_state_that_is_straight_in_s_is_straight_between_the_steps_of_the_dpm_pairs(pair, span):
    """All data in one point: eps is constant, so that both pairs, and the cubic between their steps, are exact."""
    problem, x = ExactODE(Gaussian(0.3, 1e-9)), starting_points()
    found = solve(problem, Adaptive(pair, rtol=1e-3), x, span, trajectory=True)
    for t in np.linspace(*span, 41):
        exact = problem.distribution.flow(found.nodes[0], problem.node(float(t)), x)
        torch.testing.assert_close(found(float(t)), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pair", [Dopri5(), Tsit5(), DOP853()], ids=name)
def test_the_polynomial_over_a_step_integrates_powers_and_ends_with_the_slopes(pair):
    tableau, extension = pair.tableau, pair.embedded.extension
    weights = np.array(extension.weights)
    c = np.array([*tableau.c, 1.0, *extension.c])
    powers = np.arange(1, weights.shape[1] + 1)
    for k in range(extension.order):
        # The integral of u^k from 0 to u is u^(k + 1)/(k + 1).
        np.testing.assert_allclose(weights.T @ c**k, np.where(powers == k + 1, 1 / powers, 0.0), atol=2e-12)
    stages = len(tableau.b)
    np.testing.assert_allclose(weights.sum(1), np.pad(tableau.b, (0, len(c) - stages)), atol=1e-12)
    np.testing.assert_allclose(weights[:, 0], np.eye(len(c))[0], atol=1e-12)
    np.testing.assert_allclose(weights @ powers, np.eye(len(c))[stages], atol=1e-11)


def test_dop853_pays_for_its_polynomial_where_it_is_asked_for():
    problem, x = ExactODE(Gaussian()), starting_points()
    alone, kept = (solve(problem, Adaptive(DOP853()), x, SPAN, trajectory=kept) for kept in (False, True))
    # Two calls for the first step; then 12 a step, or 15.
    assert (kept.stats.evaluations - 2).equal((alone.stats.evaluations - 2) * 15 // 12)
    assert kept.x.equal(alone.x)


@pytest.mark.parametrize("solver", [AdaptiveAdams(), Adaptive(Tsit5(), line=Rotation()), Adaptive(DPM23())], ids=name)
def test_rows_are_bit_for_bit_the_same_alone_among_256_and_permuted(solver):
    x = torch.randn(256, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together = solve(mild_mixture(), replace(solver, rtol=1e-4), x, SPAN)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(3))
    permuted = solve(mild_mixture(), replace(solver, rtol=1e-4), x[order], SPAN)
    assert permuted.x.equal(together.x[order])
    assert permuted.stats.evaluations.equal(together.stats.evaluations[order])
    assert len(set(together.stats.evaluations.tolist())) > 1
    for i in range(0, 256, 37):
        alone = solve(mild_mixture(), replace(solver, rtol=1e-4), x[i : i + 1], SPAN)
        assert alone.x.equal(together.x[i : i + 1])
        assert alone.stats.evaluations.equal(together.stats.evaluations[i : i + 1])


@pytest.mark.parametrize("solver", [AdaptiveAdams(line=None), Adaptive(Tsit5())], ids=name)
def test_finished_samples_leave_the_batch(solver):
    # The rates differ by 30, and so do the steps that they need.
    rate = torch.tensor([[0.1], [1.0], [30.0]], dtype=torch.float64)

    class Rates(Plain):
        def __init__(self, rate):
            super().__init__(lambda t, x: torch.cos(rate * t) * rate * x)
            self.rate = rate

        def rows(self, index):
            chosen = Rates(self.rate[index])
            chosen.times, chosen.rows_seen = self.times, self.rows_seen
            return chosen

    problem = Rates(rate)
    x = torch.ones(3, 1, dtype=torch.float64)
    found = solve(problem, replace(solver, rtol=1e-6), x, (0.0, 3.0))
    torch.testing.assert_close(found.x, torch.exp(torch.sin(rate * 3)), rtol=1e-4, atol=0)
    assert found.stats.evaluations.sum() == sum(problem.rows_seen)
    assert problem.rows_seen[0] == 3 and problem.rows_seen[-1] == 1


# Failures


@pytest.mark.parametrize("solver", PLAIN, ids=name)
def test_nan_at_one_sample_loses_that_sample_alone(solver):
    x = torch.tensor([[1.0], [0.1], [2.0]], dtype=torch.float64)
    problem = Plain(lambda t, x: torch.where((x > 1.5) & (t > 0.6), math.nan, -0.1 * x))
    found = solve(problem, solver, x, (0.0, 1.0), throw=False)
    assert found.status.tolist() == [Status.SUCCESS, Status.SUCCESS, Status.NON_FINITE]
    torch.testing.assert_close(found.x[:2], x[:2] * math.exp(-0.1), rtol=0, atol=1e-3)
    assert 1.8 < found.x[2].item() < 2.0  # frozen where it was last finite
    with pytest.raises(SolveError, match="1 of 3 samples NON_FINITE"):
        solve(problem, solver, x, (0.0, 1.0))


@pytest.mark.parametrize("solver", PLAIN, ids=name)
def test_a_single_nan_is_stepped_around(solver):
    problem = Plain(lambda t, x: -x * (math.nan if len(problem.times) == 8 else 1.0))
    found = solve(problem, solver, torch.ones(1, 1, dtype=torch.float64), (0.0, 1.0))
    assert found.x.item() == pytest.approx(math.exp(-1), abs=1e-3) and len(problem.times) > 8


@pytest.mark.parametrize("solver", PLAIN, ids=name)
def test_nan_from_the_first_call_on(solver):
    problem = Plain(lambda t, x: torch.where(x > 1.5, math.nan, -x))
    found = solve(problem, solver, torch.tensor([[1.0], [2.0]], dtype=torch.float64), (0.0, 1.0), throw=False)
    assert found.status.tolist() == [Status.SUCCESS, Status.NON_FINITE]
    assert found.x[1].item() == 2.0
    assert found.stats.evaluations[1] <= 15


@pytest.mark.parametrize("solver", PLAIN, ids=name)
def test_a_sample_that_blows_up_has_its_own_status(solver):
    # x' = x^2 reaches infinity at t = 1 / x(0).
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    found = solve(Plain(lambda t, x: x * x), solver, x, (0.0, 2.0), throw=False)
    assert found.status[0] == Status.SUCCESS
    assert found.status[1] in (Status.STEP_UNDERFLOW, Status.NON_FINITE, Status.BUDGET)
    assert found.x[0].item() == pytest.approx(-1 / 3, abs=1e-2)


@pytest.mark.parametrize("solver", PLAIN, ids=name)
def test_a_stiff_problem_is_followed_at_the_price_of_its_stability(solver):
    problem = Plain(lambda t, x: -1000 * (x - torch.cos(t)))
    found = solve(problem, solver, torch.zeros(1, 1, dtype=torch.float64), (0.0, 1.0))
    # The slow manifold: x = (k^2 cos t + k sin t) / (k^2 + 1) with k = 1000.
    exact = (1e6 * math.cos(1.0) + 1e3 * math.sin(1.0)) / (1e6 + 1)
    assert found.x.item() == pytest.approx(exact, abs=5e-3)
    assert 200 < found.stats.nfe < 10_000


@pytest.mark.parametrize("solver", PLAIN, ids=name)
def test_a_jump_of_the_field_is_stepped_over(solver):
    problem = Plain(lambda t, x: torch.where(t < 0.37, 1.0, -2.0) * torch.ones_like(x))
    found = solve(problem, replace(solver, rtol=1e-6), torch.zeros(1, 1, dtype=torch.float64), (0.0, 1.0))
    assert found.x.item() == pytest.approx(0.37 - 2 * 0.63, abs=1e-4)


@pytest.mark.parametrize("solver", [*PLAIN, Adaptive(DPM23())], ids=name)
def test_each_sample_has_the_whole_budget(solver):
    x = starting_points()
    needed = solve(mild_mixture(), replace(solver, rtol=1e-5), x, SPAN).stats.evaluations
    budget = int(needed.max()) - 1
    found = solve(mild_mixture(), replace(solver, rtol=1e-5), x, SPAN, max_nfe=budget, throw=False)
    assert found.status.tolist() == [int(Status.BUDGET if n > budget else Status.SUCCESS) for n in needed]
    assert found.stats.nfe <= budget
    assert found.x.isfinite().all()
    one = solve(mild_mixture(), solver, x, SPAN, max_nfe=1, throw=False)
    assert one.status.tolist() == [Status.BUDGET] * 4 and one.stats.nfe <= 1


@pytest.mark.parametrize("solver", PLAIN, ids=name)
def test_as_many_attempts_are_made_as_are_allowed(solver):
    problem, x = Plain(lambda t, x: -x), torch.ones(1, 1, dtype=torch.float64)
    each = solver.pair.calls(1) if isinstance(solver, Adaptive) else 1
    attempts = (solve(problem, solver, x, (0.0, 3.0)).stats.nfe - solver.begin_calls) // each
    for allowed, status in ((attempts, Status.SUCCESS), (attempts - 1, Status.BUDGET)):
        found = solve(problem, replace(solver, max_steps=allowed), x, (0.0, 3.0), throw=False)
        assert found.status.tolist() == [status] and found.stats.nfe == solver.begin_calls + allowed * each


def test_each_sample_has_the_whole_budget_where_dense_output_makes_calls_of_its_own():
    problem, solver = Plain(lambda t, x: -(x**3)), Adaptive(DOP853(), rtol=1e-5)
    x = torch.tensor([[0.1], [3.0], [10.0], [30.0]], dtype=torch.float64)
    needed = solve(problem, solver, x, (0.0, 1.0), trajectory=True).stats.evaluations.tolist()
    for budget in (max(needed) - 1, max(needed) - 14):
        found = solve(problem, solver, x, (0.0, 1.0), trajectory=True, max_nfe=budget, throw=False)
        assert found.status.tolist() == [int(Status.BUDGET if n > budget else Status.SUCCESS) for n in needed]
    assert len(set(needed)) > 2


@pytest.mark.parametrize("solver", PATH, ids=name)
def test_a_sample_that_cannot_pay_for_a_step_stays_where_it_began(solver):
    x = starting_points()
    found = solve(mild_mixture(), solver, x, SPAN, max_nfe=solver.begin_calls, throw=False)
    assert found.status.tolist() == [Status.BUDGET] * 4
    torch.testing.assert_close(found.x, x, rtol=1e-14, atol=0)


def test_a_solve_that_ends_before_its_first_step_has_made_none():
    found = solve(mild_mixture(), Adaptive(Tsit5()), starting_points(), SPAN, max_nfe=1, throw=False).stats
    assert found.accepted.tolist() == found.rejected.tolist() == [0] * 4


def test_a_closing_ddim_step_has_to_be_paid_for_too():
    x, grid, solver = starting_points(), [1.3, 0.3, 0.0], AdaptiveAdams(line=Data())
    needed = solve(mild_mixture(), solver, x, grid, closing=None).stats.evaluations
    budget = int(needed.max()) - 1
    found = solve(mild_mixture(), solver, x, grid, closing=None, max_nfe=budget, throw=False)
    assert found.status.tolist() == [int(Status.BUDGET if n > budget else Status.SUCCESS) for n in needed]
    assert found.stats.nfe <= budget


class LostBetween(ExactODE):
    """A Gaussian's flow, not a number for positive states at times from 0.5 to 0.8."""

    def predict(self, node, x):
        lost = torch.as_tensor((node.t > 0.5) & (node.t < 0.8)).reshape(-1, 1) & (x > 0)
        prediction = super().predict(node, x)
        return solvers.Prediction(prediction.x0.masked_fill(lost, math.nan), prediction.eps.masked_fill(lost, math.nan))


def test_a_sample_that_failed_makes_no_closing_ddim_step():
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    solver, grid = AdaptiveAdams(line=Data()), [1.3, 0.9, 0.3, 0.0]
    found = solve(LostBetween(Gaussian(0.0)), solver, x, grid, closing=None, throw=False, trajectory=True)
    assert found.status.tolist() == [Status.SUCCESS, Status.NON_FINITE]
    assert found.x[1].isfinite() and found.x[1] == found.trajectory[2, 1] != found.trajectory[1, 1]


def test_a_state_in_half_precision_is_shown_as_it_is_and_carried_in_single():
    seen = []

    class Watched(ExactODE):
        def predict(self, node, x):
            seen.append(x.dtype)
            return super().predict(node, x)

    class Carrying(AdaptiveAdams):
        def begin(self, ode, span, z, dtype, ids):
            assert (z.dtype, dtype) == (torch.float32, torch.float16)
            return super().begin(ode, span, z, dtype, ids)

    found = solve(Watched(Gaussian()), Carrying(rtol=1e-2), starting_points().half(), SPAN)
    assert found.x.dtype == torch.float16 and set(seen) == {torch.float16}


# The first step, the size of an error, and where steps end


def test_the_first_step_is_that_of_hairer_norsett_and_wanner():
    """II.4: h_0 = 0.01 d_0/d_1, h_1 = (0.01/max(d_1, d_2))^(1/k), and 100 h_0 at most."""
    d_0, d_1 = np.array([[2.0, 4.0], [1e-6, 4.0], [2.0, 1e-6]]).T
    np.testing.assert_allclose(first_step(d_0, d_1, 3.0), [5e-3, 3e-6, 3e-6])
    assert first_step(np.array([1e6]), np.array([1.0]), 3.0) == 3.0
    h_0, d_1, d_2 = np.array([[0.01, 4.0, 1.0], [0.01, 1.0, 4.0], [1e-5, 1e-4, 1e-4], [0.02, 0.0, 0.0]]).T
    np.testing.assert_allclose(second_step(h_0, d_1, d_2, 2, 3.0), [0.05, 0.05, 1e-3, 2e-5])


def begun(solver, field, x):
    """A run on a plain field from t = 0 to 1."""
    ode = Plain(field)
    start, end = map(ode.node, (0.0, 1.0))
    return ode, solver.begin(ode, Span(ode, None, start, end, end), x, x.dtype, np.arange(len(x)))


def test_the_first_step_knows_how_the_slope_changes():
    """x' = 1 + 100 t at x = 1 has d_0 = d_1 and h_0 = 0.01, from where the slope has changed by 100 h_0."""
    for pair in (Bosh3(), Dopri5(), DOP853()):
        _, run = begun(Adaptive(pair, rtol=1e-3), lambda t, x: 1 + 100 * t, torch.ones(1, 1, dtype=torch.float64))
        assert run.h.item() == pytest.approx((0.01 * 2e-3 / 100) ** (1 / pair.order))


def test_dop853_estimates_its_error_by_two_embedded_methods():
    """Hairer, Norsett & Wanner, II.10: err_5^2/sqrt(err_5^2 + 0.01 err_3^2); here of a quadrature."""
    rule, h, tolerance = scipy.integrate.DOP853, 0.8, 1e-6
    ode, run = begun(Adaptive(DOP853(), rtol=tolerance), lambda t, x: torch.exp(3 * t), torch.ones(1, 1).double())
    state, error, _ = run._runge_kutta(ode, np.array([0.0]), np.array([h]))
    slopes = np.exp(3 * h * np.append(rule.C[:12], 1.0))
    fifth, third = (h * abs(weights @ slopes) / (tolerance * (1 + state.item())) for weights in (rule.E5, rule.E3))
    assert error.item() == pytest.approx(fifth**2 / math.sqrt(fifth**2 + 0.01 * third**2), rel=1e-6)


@pytest.mark.parametrize("size", [0, 1, 1024, 1500, 4096, 5001])
def test_the_size_of_an_error_is_the_root_mean_square_of_all_components(size):
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, -100:] *= 50
    exact = np.sqrt(np.square(x.numpy()).sum(1) / max(size, 1))
    np.testing.assert_allclose(row_norm(x), exact, rtol=1e-13)


@pytest.mark.parametrize("size", [2, 5001])
@pytest.mark.parametrize(("dtype", "large"), [(torch.float32, 3e38), (torch.float64, 1e307)])
def test_the_size_of_a_row_is_finite_where_its_components_are(dtype, large, size):
    x = torch.full((4, size), large, dtype=dtype)
    x[1], x[2, 0], x[3, 0] = 1.0, math.inf, math.nan
    np.testing.assert_allclose(row_norm(x), [float(x[0, 0]), 1.0, math.inf, math.nan], rtol=1e-6)


@pytest.mark.parametrize("solver", [solvers.GaussLegendre(), *PLAIN], ids=name)
@pytest.mark.parametrize(("dtype", "large"), [(torch.float32, 1e30), (torch.float64, 1e200)])
def test_large_states_are_followed_as_small_ones_are(solver, dtype, large):
    x = torch.full((2, 3), large, dtype=dtype)
    found = solve(Plain(lambda t, x: -x), solver, x, [0.0, 0.5, 1.0])
    assert torch.allclose(found.x / large, torch.full_like(x, math.exp(-1)), rtol=2e-3)


@pytest.mark.parametrize("solver", PLAIN, ids=name)
@pytest.mark.parametrize("unit", [1e-20, 1e12, 1e17, 1e20, 1e25])
def test_the_unit_of_time_decides_nothing(solver, unit):
    """A decay over its own time constant, in seconds, years or the age of the universe."""
    x, times = torch.ones(2, 3, dtype=torch.float64), [0.0, 0.5 * unit, unit]
    found = solve(Plain(lambda t, x: -x / unit), replace(solver, rtol=1e-6), x, times)
    torch.testing.assert_close(found.x, torch.full_like(x, math.exp(-1)), rtol=0, atol=5e-6)


def test_a_step_ends_on_what_lies_ahead_or_well_before_it():
    ode, solver, x = mild_mixture(), AdaptiveAdams(), starting_points()[:1]
    start, end = map(ode.node, SPAN)
    run = solver.begin(ode, Span(ode, solver.line, start, end, end), x, x.dtype, np.arange(1))
    ahead = np.abs(run.stops - run.q)
    for share in (0.1, 0.49, 0.6, 0.9, 0.949, 0.96, 0.999, 1.0, 3.0):
        run.h = share * ahead
        left = (np.abs(run.stops - run.target()) / ahead).item()
        assert left == 0 or 0.3 < left < 1


@pytest.mark.parametrize("line", [Rotation(0.4), Noise(), Data()], ids=str)
def test_the_ends_of_a_span_are_its_nodes_to_the_last_bit(line):
    ode = mild_mixture()
    for t in np.linspace(0.2, 1.2, 11):
        ends = ode.node(1.3), ode.node(float(t))
        span = Span(ode, line, *ends, ends[1])
        assert [list(node) for node in zip(*span.node(np.array([span.q_a, span.q_b])), strict=True)] == [
            *map(list, ends)
        ]


def test_places_beyond_an_end_by_round_off_are_that_end():
    ode, line = mild_mixture(), Rotation(0.4)
    span = Span(ode, line, *map(ode.node, (1.3, 0.2, 0.2)))
    beyond = np.array([span.q_a, span.q_b]) + 1e-13 * np.array([-span.direction, span.direction])
    assert span.node(beyond).t.tolist() == [1.3, 0.2]


def test_no_input_loops_for_ever():
    noise = torch.Generator().manual_seed(0)
    problem = Plain(lambda t, x: torch.randn(x.shape, generator=noise, dtype=x.dtype))
    for solver in PLAIN:
        found = solve(
            problem,
            replace(solver, rtol=1e-12, max_steps=300),
            torch.zeros(1, 1, dtype=torch.float64),
            (0.0, 1.0),
            throw=False,
        )
        assert found.status.item() in (Status.BUDGET, Status.STEP_UNDERFLOW)


# Bad input


@pytest.mark.parametrize("make", [AdaptiveAdams, Adaptive])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rtol": 0.0}, "rtol=0.0 must be a positive"),
        ({"rtol": -1e-3}, "rtol=-0.001 must"),
        ({"rtol": math.nan}, "rtol=nan must"),
        ({"rtol": math.inf}, "rtol=inf must"),
        ({"rtol": "tight"}, "rtol='tight' must"),
        ({"atol": 0.0}, "atol=0.0 must"),
        ({"max_steps": 0}, "max_steps=0 must"),
    ],
)
def test_unusable_tolerances_are_refused(make, settings, message):
    with pytest.raises(ValueError, match=f"^{make.__name__}: {message}"):
        make(**settings)


def test_what_a_dtype_cannot_meet_is_refused_with_what_it_can():
    problem = Plain(lambda t, x: -x)
    for solver in PLAIN:
        with pytest.raises(ValueError, match=r"rtol=1e-09 is below what a torch\.float32 state can meet.*4\.8e-07"):
            solve(problem, replace(solver, rtol=1e-9), torch.ones(1, 2), (0.0, 1.0))
    assert problem.times == []


def test_pairs_and_lines_that_do_not_fit_are_refused():
    for pair in (Heun(), solvers.DDIM(), "dopri5"):
        with pytest.raises(ValueError, match="estimates no error; use Bosh3"):
            Adaptive(pair)
    with pytest.raises(ValueError, match="pass the line to Adaptive"):
        Adaptive(Dopri5(Noise()))
    with pytest.raises(ValueError, match="has its own line"):
        Adaptive(DPM12(), line=Noise())
    with pytest.raises(TypeError, match="is not a PathODE"):
        solve(Plain(lambda t, x: -x), Adaptive(DPM12()), torch.ones(1, 2), (0.0, 1.0))
    with pytest.raises(ValueError, match="safety=2.0"):
        Controller(safety=2.0)
    with pytest.raises(ValueError, match='use closing="denoise"'):
        solve(mild_mixture(), Adaptive(), starting_points(), (1.3, 0.2, 0.0), closing="extrapolate")


@pytest.mark.parametrize("name", ["safety", "shrink", "grow"])
def test_a_controller_that_leaves_steps_as_they_are_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=1.0.*give 0 < safety < 1"):
        Controller(**{name: 1.0})


def test_a_span_of_no_length_or_off_the_path_is_refused_before_any_call():
    problem = Plain(lambda t, x: -x)
    with pytest.raises(ValueError, match="strictly monotone"):
        solve(problem, AdaptiveAdams(line=None), torch.ones(1, 2), (0.5, 0.5))
    assert problem.times == []


def test_a_controller_reads_the_last_three_errors_after_an_accepted_step_and_the_newest_after_a_rejected_one():
    newest, older, oldest = 0.5, 0.7, 0.3
    errors = np.array([[newest, older, oldest]] * 2 + [[math.nan, older, oldest]])
    accepted = 0.9 * newest ** (-0.7 / 4) * older ** (0.5 / 4) * oldest ** (-0.1 / 4)
    found = PID.factor(errors, 4, np.array([True, False, False]))
    np.testing.assert_allclose(found, [accepted, 0.9 * newest ** (-1 / 4), PID.shrink], rtol=1e-14)


# The DPM pairs


def test_dpm12_converges_at_the_rate_of_its_estimate():
    x = departures(*SPAN)[:2]
    errors = [
        float((solve(mild_mixture(), Adaptive(DPM12(), rtol=r), x, SPAN).x - reference(*SPAN)[-1, :2]).abs().max())
        for r in (1e-3, 1e-5)
    ]
    assert errors[1] < 1e-4 and 0.5 < math.log10(errors[0] / errors[1]) / 2 < 1.5


@pytest.mark.parametrize(
    "solver", [Adaptive(DPM23()), AdaptiveAdams(line=Data()), Adaptive(Tsit5(), line=Noise())], ids=str
)
def test_singular_ends_are_ddim_steps(solver):
    grid = torch.tensor([math.pi / 2, 1.3, 0.3, 0.0], dtype=torch.float64)
    found = solve(mild_mixture(), solver, starting_points(), grid, closing=None, trajectory=True)
    first = solve(mild_mixture(), solvers.DDIM(), starting_points(), grid[:2])
    if not isinstance(solver, AdaptiveAdams):  # the data line is regular at pure noise
        assert found.trajectory[1].equal(first.x)
    last = solve(mild_mixture(), solvers.DDIM(), found.trajectory[2], grid[2:], closing=None)
    if solver.line != Noise():  # the noise line is regular at the data
        assert found.x.equal(last.x)


class InfiniteBeyond(ODE):
    """Decay, whose slope is infinite from a time on."""

    def __init__(self, last: float) -> None:
        self.last, self.calls = last, 0

    def __call__(self, t, x):
        self.calls += 1
        return torch.where(t > self.last, math.inf, -1e-3 * x)


def test_a_probe_that_meets_infinity_only_went_too_far():
    problem = InfiniteBeyond(0.5)
    failed = solve(problem, Adaptive(Dopri5()), torch.ones(1, 1, dtype=torch.float64), [0.0, 1.0], throw=False)
    assert failed.status.tolist() == [Status.NON_FINITE] and problem.calls < 1000
    found = solve(InfiniteBeyond(0.5), Adaptive(Dopri5()), torch.ones(1, 1, dtype=torch.float64), [0.0, 0.5])
    torch.testing.assert_close(float(found.x), math.exp(-5e-4), rtol=1e-9, atol=0)


def test_steps_too_small_to_move_a_late_time_are_given_up():
    problem = InfiniteBeyond(1e6 + 0.5)
    found = solve(problem, Adaptive(Dopri5()), torch.ones(1, 1).double(), [1e6, 1e6 + 1], throw=False)
    assert found.status.tolist() == [Status.NON_FINITE] and problem.calls < 1000


@pytest.mark.parametrize("pair", [Bosh3(), Tsit5(), DOP853()], ids=name)
def test_a_node_beside_another_does_not_shorten_the_steps_that_follow(pair):
    solver, x = Adaptive(pair, rtol=1e-5, line=Rotation()), starting_points()
    whole, ends = solve(mild_mixture(), solver, x, [1.35, 0.4]), []
    for gap in (1e-4, 1e-10, 1e-12):
        found = solve(mild_mixture(), solver, x, [1.35, 0.9, 0.9 - gap, 0.4])
        # Two nodes cost two steps; a step of their distance, grown from there five-fold each, would cost up to 16.
        assert found.stats.nfe <= whole.stats.nfe + 5 * pair.calls(1)
        ends.append(found.x)
    beside = solve(mild_mixture(), solver, x, [1.35, math.nextafter(1.35, 0), 0.4])
    assert beside.status.tolist() == [Status.SUCCESS] * len(x)
    for end in (*ends, beside.x):
        torch.testing.assert_close(end, whole.x, rtol=0, atol=1e-3)


@pytest.mark.parametrize("solver", PLAIN, ids=name)
def test_a_plain_field_gets_times_that_broadcast_against_the_states(solver):
    class Growth(solvers.ODE):
        def __call__(self, t, x):
            return -x * t

    # As many samples as components: a (B,) time would be taken for one by component, silently.
    for shape in ((2, 2), (4, 2), (3, 1, 3, 3)):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
        found = solve(Growth(), replace(solver, rtol=1e-8), x, [0.0, 1.0]).x
        torch.testing.assert_close(found, x * math.exp(-0.5), rtol=0, atol=1e-6)


def test_accepted_and_rejected_steps_are_counted():
    jump = Plain(lambda t, x: torch.where(t > 0.4, 20.0, -1.0) * x)
    for solver in PLAIN:
        found = solve(jump, solver, torch.ones(3, 1, dtype=torch.float64), [0.0, 1.0]).stats
        assert (found.accepted > 3).all() and (found.rejected > 0).all()
        if isinstance(solver, Adaptive):
            tried = (found.evaluations - solver.begin_calls) / solver.pair.calls(1)
            assert (found.accepted + found.rejected).tolist() == tried.tolist()
    assert solve(mild_mixture(), solvers.DDIM(), starting_points(), [1.2, 0.9]).stats.rejected is None


def test_the_probe_of_the_first_step_is_neither_accepted_nor_rejected():
    found = solve(Plain(lambda t, x: -x), AdaptiveAdams(line=None), torch.ones(2, 1).double(), (0.0, 1.0)).stats
    assert (found.evaluations - found.accepted - found.rejected).tolist() == [2, 2]


@pytest.mark.parametrize("solver", [AdaptiveAdams(rtol=1e-8), Adaptive(Tsit5(), rtol=1e-5, line=Rotation())], ids=name)
def test_nodes_that_all_samples_have_passed_are_not_kept(solver):
    x, peaks = starting_points().repeat(1, 400), []
    for count in (2, 100):
        with LiveMemory() as memory:
            solve(ExactODE(Gaussian()), solver, x, torch.linspace(1.35, 0.4, count, dtype=torch.float64))
        peaks.append(memory.peak / x.untyped_storage().nbytes())
    # One step passes several of the hundred nodes at once, and none of the others.
    assert peaks[1] < peaks[0] + 25


def test_states_at_the_nodes_arrive_while_the_solve_goes_on():
    calls, seen = Plain(lambda t, x: -x), []
    x = torch.ones(2, 1, dtype=torch.float64)
    solve(
        calls, Adaptive(Tsit5()), x, torch.linspace(0, 4, 9).tolist(), callback=lambda *_: seen.append(len(calls.times))
    )
    assert len(seen) == 8 and seen[0] < seen[3] < seen[-1]


def test_pieces_of_a_solution_share_their_slopes():
    x = starting_points()
    found = solve(mild_mixture(), AdaptiveAdams(rtol=1e-8), x, SPAN, trajectory=True)
    pieces = found.dense.pieces[0]
    kept = {slope.data_ptr() for piece in pieces for slope in piece.slopes}
    assert len(kept) <= int(found.stats.evaluations[0]) < sum(len(piece.slopes) for piece in pieces)
    assert all(piece.z.untyped_storage().nbytes() == x[0].numel() * x.element_size() for piece in pieces)
