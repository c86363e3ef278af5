"""Solving to a tolerance: what every adaptive method owes, and the embedded pairs."""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
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
from solvers.testing import SPAN, ExactODE, Gaussian, departures, mild_mixture, reference, starting_points

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
    with pytest.raises(ValueError, match="give the line to Adaptive"):
        Adaptive(Dopri5(Noise()))
    with pytest.raises(ValueError, match="has its own line"):
        Adaptive(DPM12(), line=Noise())
    with pytest.raises(TypeError, match="is no PathODE"):
        solve(Plain(lambda t, x: -x), Adaptive(DPM12()), torch.ones(1, 2), (0.0, 1.0))
    with pytest.raises(ValueError, match="safety=2.0"):
        Controller(safety=2.0)
    with pytest.raises(ValueError, match='use closing="denoise"'):
        solve(mild_mixture(), Adaptive(), starting_points(), (1.3, 0.2, 0.0), closing="extrapolate")


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
