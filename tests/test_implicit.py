"""Gauss-Legendre methods: their arrays, their equations, their symmetry, and what happens when iteration fails."""

import math

import numpy as np
import pytest
import torch

from solvers import Data, GaussLegendre, Node, Noise, Rotation, SolveError, Status, solve
from solvers.implicit import GAUSS_LEGENDRE
from solvers.testing import ExactODE, Mixture, mild_mixture, starting_points, uneven_times

TIMES = uneven_times(1.35, 0.4, 8)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_the_arrays_are_collocation_at_the_gauss_points(stages):
    c, a, b = (np.array(v) for v in GAUSS_LEGENDRE[stages])
    points, weights = np.polynomial.legendre.leggauss(stages)
    assert c == pytest.approx((points + 1) / 2, abs=1e-15)
    assert b == pytest.approx(weights / 2, abs=1e-15)
    for power in range(stages):
        # Collocation: polynomials up to the number of stages are integrated exactly from 0 to every c_i.
        assert a @ c**power == pytest.approx(c ** (power + 1) / (power + 1), abs=1e-15)


@pytest.mark.parametrize("line", [Noise(), Data(), Rotation()], ids=str)
def test_a_step_of_the_midpoint_rule_solves_its_equation(line):
    ode, x = mild_mixture(), starting_points()
    a, b = ode.node(1.1), ode.node(0.8)
    end = GaussLegendre(line, stages=1).step(ode, a, b, x).x
    # z_b - z_a = h slope at the mean of z_a and z_b.
    middle = line.node(ode, (line.q(a) + line.q(b)) / 2)
    z_a, z_b = x / line.scale(a), end / line.scale(b)
    slope = line.slope(middle, ode.predict(middle, line.scale(middle) * (z_a + z_b) / 2))
    torch.testing.assert_close(z_b - z_a, (line.q(b) - line.q(a)) * slope, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "solver", [GaussLegendre(Rotation(), 1), GaussLegendre(None, 2), GaussLegendre(Noise(), 3)], ids=str
)
def test_the_flipped_solve_undoes_the_solve(solver):
    ode, x = mild_mixture(), starting_points()
    there = solve(ode, solver, x, TIMES).x
    back = solve(ode, solver, there, TIMES.flip(0)).x
    torch.testing.assert_close(back, x, rtol=0, atol=1e-11)
    assert (there - solve(ode, GaussLegendre(None, 3), x, uneven_times(1.35, 0.4, 40)).x).abs().max() > 1e-10


def sharp() -> ExactODE:
    """Narrow modes far apart: between them the prediction jumps, and long steps do not converge there."""
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    halves = torch.tensor([0.5, 0.5], dtype=torch.float64)
    return ExactODE(Mixture(halves, means, torch.tensor([0.05, 0.05], dtype=torch.float64)))


def test_a_sample_whose_iteration_fails_is_lost_alone():
    x = torch.tensor([[0.9, 0.1], [1e-3, 0.0], [-0.9, 0.2]], dtype=torch.float64)
    solver, times = GaussLegendre(Data(), stages=1, iterations=40), [0.9, 0.5, 0.4]
    found = solve(sharp(), solver, x, times, throw=False)
    assert found.status.tolist() == [Status.SUCCESS, Status.NOT_CONVERGED, Status.SUCCESS]
    assert torch.isnan(found.x[1]).all()
    for row in (0, 2):
        assert torch.equal(solve(sharp(), solver, x[row : row + 1], times).x[0], found.x[row])
    # Its evaluations end with the step that it was lost in.
    assert found.stats.evaluations[1] == 1 + 40
    with pytest.raises(SolveError, match="1 of 3 samples NOT_CONVERGED: .* use more steps"):
        solve(sharp(), solver, x, times)


def test_a_lost_sample_stays_lost_when_the_solve_is_carried_on():
    x = torch.tensor([[0.9, 0.1], [1e-3, 0.0]], dtype=torch.float64)
    solver = GaussLegendre(Data(), stages=1, iterations=40)
    first = solve(sharp(), solver, x, [0.9, 0.5], throw=False)
    rest = solve(sharp(), solver, first.x, [0.5, 0.4, 0.0], state=first.state, throw=False)
    assert rest.status.tolist() == [Status.SUCCESS, Status.NOT_CONVERGED]
    assert rest.stats.evaluations[0] > 2 and rest.stats.evaluations[1] == 0


def test_a_sample_that_is_lost_in_the_last_step_is_no_state():
    found = solve(mild_mixture(), GaussLegendre(iterations=1), starting_points(), [1.2, 0.4], throw=False)
    assert (found.status == Status.NOT_CONVERGED).all() and found.x.isnan().all()


def test_a_solve_leaves_the_state_that_it_carries_on_alone():
    first = solve(mild_mixture(), GaussLegendre(), starting_points(), [1.2, 1.1])
    rest = solve(mild_mixture(), GaussLegendre(iterations=1), first.x, [1.1, 0.4], state=first.state, throw=False)
    assert (rest.status == Status.NOT_CONVERGED).all() and (first.state == Status.SUCCESS).all()


def test_samples_stop_iterating_when_they_are_done():
    found = solve(mild_mixture(), GaussLegendre(None, tolerance=1e-6), starting_points(), TIMES)
    evaluations = found.stats.evaluations
    assert evaluations.min() < evaluations.max() < GaussLegendre().calls(8)


def test_the_tolerance_bounds_the_error_of_the_iteration():
    exact = solve(mild_mixture(), GaussLegendre(None), starting_points(), TIMES)
    rough = solve(mild_mixture(), GaussLegendre(None, tolerance=1e-4), starting_points(), TIMES)
    assert 1e-9 < (rough.x - exact.x).abs().max() < 1e-3
    assert rough.stats.nfe < 0.6 * exact.stats.nfe


def test_samples_with_their_own_nodes_take_their_own_steps():
    ode, x, solver = mild_mixture(), starting_points(), GaussLegendre(Data(), 2)
    # The third is done after fewer iterations than the first two, and the last takes a DDIM step.
    ends = [(1.2, 0.8), (1.35, 0.9), (0.5, 0.501), (0.4, 0.0)]
    a, b = (Node(*map(np.array, zip(*map(ode.node, times), strict=True))) for times in zip(*ends, strict=True))
    together = solver.step(ode, a, b, x).x
    for row, times in enumerate(ends):
        alone = solver.step(ode, *map(ode.node, times), x[row : row + 1]).x
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": 4}, "stages=4 must be a whole number from 1 to 3, for order 2, 4 or 6"),
        ({"tolerance": 0.0}, "tolerance=0.0 must lie between 0 and 1"),
        ({"tolerance": math.nan}, "tolerance=nan"),
        ({"iterations": 0}, "iterations=0 must be a whole number of at least 1"),
        ({"iterations": 1.5}, "iterations=1.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"GaussLegendre: {message}"):
        GaussLegendre(**settings)
