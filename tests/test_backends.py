import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torchdiffeq import odeint
from torchdiffeq._impl.odeint import SOLVERS

import odediff
import solvers
from solvers import Data, Noise, Rotation, Scipy, Status, Torchdiffeq, solve
from solvers.runge_kutta import RungeKutta, Tableau
from solvers.testing import (
    SPAN,
    ExactODE,
    Gaussian,
    check_both_ends,
    check_calls,
    check_independence,
    check_tolerance,
    mild_mixture,
    starting_points,
    uneven_times,
)

ALL = [*Torchdiffeq.variants(), *Scipy.variants()]
ADAPTIVE = [solver for solver in ALL if solver.law == "tolerance"]
FIXED = [solver for solver in ALL if solver.law != "tolerance"]
JACOBIAN = [Scipy("Radau"), Scipy("BDF"), Scipy("LSODA"), Torchdiffeq("scipy_solver")]


def name(value):
    return f"{type(value).__name__}-{value.method}" if isinstance(value, Torchdiffeq | Scipy) else None


class Plain(solvers.ODE):
    """A function of (t, x) as an ODE, which lists the times at which it was called."""

    def __init__(self, field, passes=1):
        self.field, self.passes, self.times = field, passes, []

    def __call__(self, t, x):
        self.times.append(t)
        return self.field(t, x)


def test_the_methods_are_torchdiffeqs():
    assert set(Torchdiffeq.methods) == set(SOLVERS)


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("solver", ALL, ids=name)
def test_every_method_follows_the_closed_form_gaussian_flow_at_every_node(solver, direction):
    times, x, problem = torch.linspace(*SPAN, 41, dtype=torch.float64), starting_points()[:2], ExactODE(Gaussian())
    times = times if direction == 1 else times.flip(0)
    solver = replace(solver, rtol=1e-4 if solver.order < 3 else 1e-6)
    found = solve(problem.watching(x, SPAN), solver, x, times, trajectory=True)
    exact = torch.stack([problem.distribution.flow(found.nodes[0], node, x) for node in found.nodes])
    fixed_grid_bound = {1: 0.05, 2: 2e-3, 3: 5e-5, 4: 1e-6}
    bound = fixed_grid_bound[solver.order] if solver.law == "order" else 500 * solver.rtol
    assert (found.trajectory - exact).abs().max() < bound
    assert found.trajectory[0].equal(x)


@pytest.mark.parametrize("line", [Noise(), Data(), Rotation(), Rotation(0.5)], ids=str)
@pytest.mark.parametrize("solver", [Scipy(rtol=1e-7), Torchdiffeq("rk4"), Torchdiffeq(rtol=1e-7)], ids=name)
def test_lines_follow_the_closed_form_flow(solver, line):
    times, x, problem = torch.linspace(*SPAN, 81, dtype=torch.float64), starting_points(), ExactODE(Gaussian())
    for grid in (times, times.flip(0)):
        found = solve(problem.watching(x, SPAN), replace(solver, line=line), x, grid)
        exact = problem.distribution.flow(found.nodes[0], found.nodes[-1], x)
        assert (found.x - exact).abs().max() < 1e-5


@pytest.mark.parametrize("line", [None, Noise(), Data(), Rotation()], ids=str)
def test_singular_ends_are_left_and_reached_by_ddim_as_the_runge_kutta_methods_do(line):
    x, times = starting_points(), torch.linspace(math.pi / 2, 0, 13, dtype=torch.float64)
    for grid in (times, times.flip(0)):
        ours = solve(mild_mixture(), solvers.Midpoint(line), x, grid, closing=None)
        theirs = solve(mild_mixture(), Torchdiffeq("midpoint", line=line), x, grid, closing=None)
        torch.testing.assert_close(theirs.x, ours.x, rtol=0, atol=1e-13)
        assert theirs.stats.nfe == ours.stats.nfe


@dataclass(frozen=True)
class ThreeEighths(RungeKutta):
    """Kutta's other method of 1901, which torchdiffeq calls rk4."""

    order: ClassVar[int] = 4
    tableau: ClassVar[Tableau] = Tableau(
        (0.0, 1 / 3, 2 / 3, 1.0), ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)
    )


@dataclass(frozen=True)
class Heun3(RungeKutta):
    """Heun's method of order 3."""

    order: ClassVar[int] = 3
    tableau: ClassVar[Tableau] = Tableau((0.0, 1 / 3, 2 / 3), ((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4))


@pytest.mark.parametrize("line", [None, Rotation(0.5)], ids=str)
@pytest.mark.parametrize(
    ("method", "ours"),
    [
        ("euler", solvers.Euler),
        ("midpoint", solvers.Midpoint),
        ("heun2", solvers.Heun),
        ("heun3", Heun3),
        ("rk4", ThreeEighths),
    ],
)
def test_fixed_grid_methods_equal_our_tableaux(method, ours, line):
    x, times = starting_points(), uneven_times(*SPAN, 20)
    for grid in (times, times.flip(0)):
        theirs = solve(mild_mixture(), Torchdiffeq(method, line=line), x, grid)
        native = solve(mild_mixture(), ours(line), x, grid)
        torch.testing.assert_close(theirs.x, native.x, rtol=0, atol=1e-13)
        assert theirs.stats.nfe == native.stats.nfe == ours().calls(20) == Torchdiffeq(method).calls(20)


@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams"])
def test_adams_weights_are_those_of_an_even_grid(method):
    x, fine = starting_points(), solve(mild_mixture(), Scipy("DOP853", rtol=1e-12), starting_points(), SPAN).x

    def error(times):
        return float((solve(mild_mixture(), Torchdiffeq(method, batched=True), x, times).x - fine).abs().max())

    assert error(torch.linspace(*SPAN, 161, dtype=torch.float64)) < 1e-8
    assert error(uneven_times(*SPAN, 160)) > 1e-7


@pytest.mark.parametrize("solver", [s for s in FIXED if s.method.endswith("adams")], ids=name)
def test_adams_calls_are_an_upper_bound_that_counts_the_start(solver):
    for steps in (1, 2, 3, 20):
        check_calls(solver, steps)
    if solver.method == "explicit_adams":
        assert solve(mild_mixture(), solver, starting_points(), uneven_times(*SPAN, 20)).stats.nfe == solver.calls(20)


def test_a_start_of_fewer_steps_than_the_method_wants_is_counted_as_what_it_is():
    assert [Torchdiffeq("implicit_adams").calls(steps) for steps in (1, 2, 3)] == [4, 8, 13]


def test_the_error_follows_the_tolerance_along_a_line_too():
    check_tolerance(Scipy("DOP853", line=Rotation()))


def test_a_tolerance_that_is_not_used_is_found():
    @dataclass(frozen=True)
    class Deaf(Scipy):
        @property
        def tolerances(self):
            return 1e-6, 1e-6

    with pytest.raises(AssertionError, match="error"):
        check_tolerance(Deaf())


# The span


def test_torchdiffeq_by_itself_calls_the_field_beyond_the_end():
    x = starting_points()[:1]
    problem = mild_mixture().watching(x, SPAN)
    with pytest.raises(AssertionError, match="outside the span"):
        odeint(lambda t, x: problem(float(t), x), x, torch.tensor(SPAN, dtype=torch.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0), (0.3, 0.3001), (1e-9, 0.0), (-2.0, 5.0)], ids=str)
@pytest.mark.parametrize("solver", ADAPTIVE, ids=name)
def test_the_field_is_never_called_outside_the_span(solver, span):
    # So slow a field that any method would step, or probe, far beyond the end.
    for loose in (1e-2, 1e-5):
        problem = Plain(lambda t, x: 1e-3 * torch.cos(x))
        found = solve(problem, replace(solver, rtol=loose), torch.ones(1, 2, dtype=torch.float64), span)
        assert min(span) <= min(problem.times) and max(problem.times) <= max(span)
        assert found.success


@pytest.mark.parametrize("line", [None, Noise(), Data(), Rotation()], ids=str)
@pytest.mark.parametrize("solver", ADAPTIVE, ids=name)
def test_the_span_holds_along_lines_whose_inverse_rounds(solver, line):
    x = starting_points()[:1]
    for a, b in (SPAN, SPAN[::-1]):
        solve(ExactODE(Gaussian()).watching(x, (a, b)), replace(solver, line=line, rtol=1e-3), x, (a, 0.7, b))


# Counts, and samples that do not depend on each other


@pytest.mark.parametrize("method", ["RK23", "RK45", "DOP853", "LSODA"])
def test_evaluations_are_scipys_own_count(method):
    x, rtol = starting_points(), 1e-6
    found = solve(mild_mixture(), Scipy(method, rtol=rtol), x, uneven_times(*SPAN, 4))
    for i, row in enumerate(x):

        def field(t, y, row=row):
            return mild_mixture()(float(t), torch.from_numpy(y.copy()).view(1, -1)).numpy()[0]

        times = uneven_times(*SPAN, 4).numpy()
        own = solve_ivp(field, SPAN, row.numpy(), method=method, t_eval=times[1:], rtol=rtol, atol=rtol)
        assert found.stats.evaluations[i] == own.nfev
        np.testing.assert_allclose(found.x[i], own.y[:, -1], rtol=0, atol=1e-12)
    assert found.stats.nfe == found.stats.evaluations.max()


def test_guidance_counts_every_pass_of_the_network():
    problem = Plain(lambda t, x: -x, passes=2)
    stats = solve(problem, Scipy(), torch.ones(3, 2), (0.0, 1.0)).stats
    assert len(problem.times) == stats.evaluations.sum() == 3 * stats.nfe
    assert stats.network_evaluations == 2 * stats.nfe


@pytest.mark.parametrize("solver", [Scipy(), Scipy("LSODA"), Torchdiffeq(), Torchdiffeq("implicit_adams")], ids=name)
def test_samples_do_not_depend_on_each_other(solver):
    check_independence(solver)


@pytest.mark.parametrize("solver", [Scipy(), Torchdiffeq()], ids=name)
def test_batched_couples_the_samples_and_shares_the_calls(solver):
    x = starting_points()
    apart = solve(mild_mixture(), solver, x, SPAN)
    together = solve(mild_mixture(), replace(solver, batched=True), x, SPAN)
    torch.testing.assert_close(together.x, apart.x, rtol=0, atol=1e-3)
    assert not together.x.equal(apart.x)
    assert len(set(together.stats.evaluations.tolist())) == 1
    with pytest.raises(AssertionError, match="apart"):
        check_independence(replace(solver, batched=True))


@pytest.mark.parametrize("solver", [Scipy(), Torchdiffeq(), Torchdiffeq("rk4")], ids=name)
def test_a_float16_state_meets_the_field_as_float16_and_is_integrated_in_float64(solver):
    seen = set()

    def field(t, x):
        seen.add(x.dtype)
        return torch.full_like(x, 1e-4)

    # 1e-4 is below half a unit in the last place of 1: steps taken in float16 would not move.
    found = solve(Plain(field), replace(solver, rtol=1e-3), torch.ones(1, 2).half(), torch.linspace(0, 20, 21))
    assert seen == {torch.float16} and found.x.dtype == torch.float16
    torch.testing.assert_close(found.x.float(), torch.full((1, 2), 1.002), rtol=0, atol=1e-3)


# Failures


@pytest.mark.parametrize("solver", [*ADAPTIVE, Torchdiffeq("implicit_adams"), Torchdiffeq("rk4")], ids=name)
def test_a_field_that_becomes_nan_loses_its_own_sample_only(solver):
    x = torch.tensor([[1.0], [0.1], [2.0]], dtype=torch.float64)
    problem = Plain(lambda t, x: torch.where((x > 1.5) & (t > 0.6), math.nan, -0.1 * x))
    times = torch.linspace(0, 1, 11)
    found = solve(problem, solver, x, times, throw=False, max_nfe=2000)
    assert found.status.tolist() == [Status.SUCCESS, Status.SUCCESS, Status.NON_FINITE]
    torch.testing.assert_close(found.x[:2], x[:2] * math.exp(-0.1), rtol=0, atol=1e-3)
    assert found.x[2].isnan().all()
    with pytest.raises(solvers.SolveError, match="1 of 3 samples NON_FINITE"):
        solve(problem, solver, x, times, max_nfe=2000)


@pytest.mark.parametrize("solver", [Scipy(), Scipy("Radau"), Torchdiffeq()], ids=name)
def test_a_sample_that_blows_up_has_its_own_status(solver):
    # x' = x^2 reaches infinity at t = 1 / x(0).
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    found = solve(Plain(lambda t, x: x * x), replace(solver, rtol=1e-3), x, torch.linspace(0, 2, 5), throw=False)
    assert found.status[0] == Status.SUCCESS and found.status[1] == Status.STEP_UNDERFLOW
    assert found.x[0].item() == pytest.approx(-1 / 3, abs=1e-2)
    assert found.x[1].isnan().all()
    assert "loosen rtol" in Status.STEP_UNDERFLOW.advice


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("solver", ALL, ids=name)
def test_an_overflow_never_ends_in_the_librarys_own_error(solver):
    problem = Plain(lambda t, x: torch.full_like(x, 1e307))
    times = torch.linspace(0, 100, 12)
    found = solve(problem, solver, torch.ones(1, 2, dtype=torch.float64), times, throw=False, max_nfe=50)
    assert found.status.item() != Status.SUCCESS and not found.x.isfinite().any()


def test_each_sample_has_the_whole_budget_and_the_closing_step_respects_it():
    x = starting_points()
    times = [1.35, 0.2, 0.0]
    needed = solve(mild_mixture(), Scipy(rtol=1e-6), x, times).stats.evaluations
    assert len(set(needed.tolist())) > 1
    for budget in {int(n) for n in needed} | {int(n) - 1 for n in needed}:
        found = solve(mild_mixture(), Scipy(rtol=1e-6), x, times, max_nfe=budget, throw=False)
        expected = torch.where(needed <= budget, int(Status.SUCCESS), int(Status.BUDGET))
        assert found.status.tolist() == expected.tolist()
        assert found.stats.nfe <= budget


def test_errors_of_the_field_are_not_taken_for_the_librarys():
    def broken(t, x):
        raise AssertionError("the network's own")

    for solver in (Scipy(), Scipy("LSODA"), Torchdiffeq(), Torchdiffeq("rk4"), Torchdiffeq("scipy_solver")):
        with pytest.raises(AssertionError, match="the network's own"):
            solve(Plain(broken), solver, torch.ones(1, 2), (0.0, 1.0))


# Bad input


@pytest.mark.parametrize("backend", [Torchdiffeq, Scipy])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "rk5"}, "method='rk5' is unknown; use one of"),
        ({"rtol": 0.0}, "rtol=0.0 must be a positive"),
        ({"rtol": -1e-3}, "rtol=-0.001 must"),
        ({"rtol": math.inf}, "rtol=inf must"),
        ({"rtol": math.nan}, "rtol=nan must"),
        ({"rtol": "tight"}, "rtol='tight' must"),
        ({"rtol": 1e-15}, "rtol=1e-15 is below round-off; use at least 2.2e-14"),
        ({"atol": 0.0}, "atol=0.0 must"),
        ({"atol": math.nan}, "atol=nan must"),
    ],
)
def test_unusable_settings_are_refused(backend, settings, message):
    with pytest.raises(ValueError, match=f"^{backend.__name__}: {message}"):
        backend(**settings)


@pytest.mark.parametrize("solver", JACOBIAN, ids=name)
def test_a_jacobian_too_large_is_refused_with_its_memory_before_any_call(solver):
    problem = Plain(lambda t, x: -x)
    with pytest.raises(ValueError, match=r"all 12,288 components, 1\.2 GB of memory"):
        solve(problem, solver, torch.ones(1, 3, 64, 64), (0.0, 1.0))
    with pytest.raises(ValueError, match="of the batch"):
        solve(problem, replace(solver, batched=True), torch.ones(5, 1000), (0.0, 1.0))
    assert problem.times == []


@pytest.mark.parametrize("solver", ADAPTIVE, ids=name)
def test_adaptive_methods_answer_no_number_of_calls(solver):
    with pytest.raises(ValueError, match="instead of nfe= or steps=, request an accuracy: rtol="):
        solver.calls(10)


def test_a_line_needs_a_path_and_extrapolation_needs_nodes():
    with pytest.raises(TypeError, match="is not a PathODE"):
        solve(Plain(lambda t, x: -x), Scipy(line=Noise()), torch.ones(1, 2), (0.0, 1.0))
    with pytest.raises(ValueError, match='use closing="denoise"'):
        solve(mild_mixture(), Scipy(), starting_points(), (1.3, 0.2, 0.0), closing="extrapolate")


@pytest.mark.parametrize("solver", [Scipy(), Torchdiffeq(), Torchdiffeq("rk4")], ids=name)
def test_both_ends_are_regular(solver):
    check_both_ends(solver)


def test_gradients_pass_through_torchdiffeq_and_stop_at_scipy():
    x = starting_points().requires_grad_()
    problem = ExactODE(Gaussian())
    a, b = (problem.node(t) for t in SPAN)
    (gradient,) = torch.autograd.grad(solve(problem, Torchdiffeq(rtol=1e-8), x, SPAN).x.sum(), x)
    (exact,) = torch.autograd.grad(problem.distribution.flow(a, b, x).sum(), x)
    torch.testing.assert_close(gradient, exact, rtol=0, atol=1e-6)
    assert not solve(problem, Scipy(), x, SPAN).x.requires_grad


@pytest.mark.parametrize("solver", [solvers.Scipy(rtol=1e-4), solvers.Torchdiffeq("scipy_solver", rtol=1e-4)])
def test_no_gradient_passes_where_a_library_computes_outside_of_torch(solver):
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    model = odediff.Model(lambda x, time: torch.tanh(weight * x), odediff.VPTable.linear())

    ode = odediff.probability_flow(model)
    for start in (x, x.detach()):
        assert not solvers.solve(ode, solver, start, [0.5, 0.3, 0.0]).x.requires_grad
        assert solvers.solve(ode, Torchdiffeq(rtol=1e-3), start, [0.5, 0.3, 0.0]).x.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("solver", [Scipy(), Torchdiffeq("dopri5"), Torchdiffeq("scipy_solver")], ids=str)
def test_a_row_that_is_not_finite_fails_alone(solver):
    x = starting_points().clone()
    x[1] = math.nan
    found = solve(mild_mixture(), solver, x, [1.0, 0.5], throw=False)
    assert found.status.tolist() == [Status.NON_FINITE if i == 1 else Status.SUCCESS for i in range(len(x))]
    alone = solve(mild_mixture(), solver, x[:1], [1.0, 0.5]).x
    assert torch.equal(found.x[:1], alone)
