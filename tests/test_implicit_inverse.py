"""Implicit inverses: they undo a step where it can be undone, and say so where they did not."""

import gc
import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pytest
import torch

import odediff
import solvers
from odediff.problems import exact_model
from solvers import DDIM, RK4, FixedPoint, Heun, Inverse, NewtonKrylov, Noise, Rotation, TrajectoryInverse, solve
from solvers.krylov import dot, gmres
from solvers.testing import (
    SPAN,
    Gaussian,
    check_carry_on,
    check_independence,
    check_one_step,
    mild_mixture,
    starting_points,
    uneven_times,
)

METHODS = [
    FixedPoint(),
    FixedPoint(damping=0.8),
    FixedPoint(history=3),
    NewtonKrylov(),
    FixedPoint(Heun(Noise())),
    FixedPoint(RK4(Rotation())),
    NewtonKrylov(Heun(Noise())),
]
TABLE = odediff.VPTable.linear()


@pytest.mark.parametrize("span", [SPAN, SPAN[::-1]], ids=["down", "up"])
@pytest.mark.parametrize("solver", METHODS, ids=repr)
def test_the_inverse_finds_where_the_method_comes_from(solver, span):
    ode, times, x = mild_mixture(), uneven_times(*span, 8), starting_points()
    found = solve(ode, Inverse(solver), x, times)
    assert (found.state.residual <= 100 * torch.finfo(torch.float64).eps).all()
    assert (found.state.iterations > 0).all()
    again = solve(ode, solver.base, found.x, times.flip(0)).x
    torch.testing.assert_close(again, x, rtol=0, atol=1e-11)


def test_newton_needs_fewer_iterations_and_anderson_no_more_than_the_plain_iteration():
    ode, times, x = mild_mixture(), uneven_times(*SPAN[::-1], 4), starting_points()
    plain, anderson, newton = (
        int(solve(ode, Inverse(one), x, times).state.iterations.sum())
        for one in (FixedPoint(), FixedPoint(history=3), NewtonKrylov())
    )
    assert newton < anderson < plain


def test_ddim_backwards_has_a_closed_form_on_a_gaussian():
    # There a DDIM step multiplies (x - alpha m) by a number, and its inverse divides by it.
    law = solvers.testing.Gaussian(0.3, 0.6)
    ode = solvers.testing.ExactODE(law)
    a, b, x = ode.node(0.5), ode.node(0.9), starting_points()
    rate = (a.alpha * b.alpha * law.deviation**2 + a.sigma * b.sigma) / (b.alpha**2 * law.deviation**2 + b.sigma**2)
    expected = (x - a.alpha * law.mean) / rate + b.alpha * law.mean
    for solver in (FixedPoint(), FixedPoint(history=2), NewtonKrylov()):
        torch.testing.assert_close(solve(ode, Inverse(solver), x, [0.5, 0.9]).x, expected, rtol=0, atol=1e-12)


def test_the_first_iterate_is_ddim_inversion_at_the_destination_node():
    ode, x = mild_mixture(), starting_points()
    a, b = ode.node(0.5), ode.node(0.9)
    found = solve(ode, Inverse(FixedPoint(max_iterations=0)), x, [0.5, 0.9])
    # Prompt-to-prompt's formula: eps of the source state, asked for at the destination.
    eps = ode.predict(b, x).eps
    expected = b.alpha * (x - a.sigma * eps) / a.alpha + b.sigma * eps
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-14)
    assert found.stats.nfe == 1 and torch.isnan(found.state.residual).all()


@pytest.mark.parametrize("solver", [FixedPoint(history=2), NewtonKrylov(krylov=2)], ids=repr)
def test_samples_do_not_meet(solver):
    check_independence(Inverse(solver))


def test_gmres_solves_each_sample_s_own_system():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.eye(5, dtype=torch.float64) + 0.3 * torch.randn(4, 5, 5, generator=generator, dtype=torch.float64)
    right = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    right[2] = 0
    found = gmres(lambda v, rows: (matrices[rows] * v[:, None, :]).sum(-1), right, 5, reduction=1e-13)
    torch.testing.assert_close(found, torch.linalg.solve(matrices, right), rtol=0, atol=1e-10)


def test_gmres_loses_a_sample_whose_products_are_no_numbers_alone():
    right = torch.ones(2, 3, dtype=torch.float64)
    found = gmres(lambda v, rows: torch.where(rows[:, None] == 0, torch.nan, 2.0) * v, right, 3)
    torch.testing.assert_close(found[1], right[1] / 2)


def test_gmres_asks_no_more_of_a_sample_that_is_solved():
    scale = torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    asked = []

    def product(v, rows):
        asked.append(rows.tolist())
        return scale[rows] * v

    found = gmres(product, torch.ones_like(scale), 3, reduction=1e-6)
    torch.testing.assert_close(found, 1 / scale)
    assert asked == [[0, 1], [1], [1]]


@pytest.mark.parametrize("solver", [FixedPoint(max_iterations=30), NewtonKrylov(max_iterations=6)], ids=repr)
def test_a_step_that_has_no_inverse_says_so(solver):
    # eps = -cos(40 x) is far from a score: the step folds the line, and no iteration can unfold it.
    class Folding(solvers.testing.ExactODE):
        def predict(self, node, x):
            eps = torch.where(x[:, :1] > 0, torch.cos(40 * x), 0.5 * x)
            return solvers.Prediction((x - node.sigma * eps) / node.alpha, eps)

    ode = Folding(solvers.testing.Gaussian())
    x = torch.tensor([[3.0, 0.2], [-0.5, 0.3]], dtype=torch.float64)
    found = solve(ode, Inverse(solver), x, [0.2, 0.9, 1.2], throw=False)
    assert found.status.tolist() == [solvers.Status.NOT_CONVERGED, solvers.Status.SUCCESS]
    assert torch.isnan(found.x[0]).all() and torch.isfinite(found.x[1]).all()
    assert found.state.residual[0] > 1e-6 and found.state.residual[1] < 1e-12
    # A lost sample costs nothing after the step that lost it.
    assert found.state.iterations[0] <= solver.max_iterations
    with pytest.raises(solvers.SolveError, match="1 of 2 samples NOT_CONVERGED"):
        solve(ode, Inverse(solver), x, [0.2, 0.9, 1.2])


@pytest.mark.parametrize(
    "settings",
    [
        {"grid": odediff.grid.log_snr, "steps": 31},
        {"grid": partial(odediff.grid.uniform_t, spacing="trailing"), "steps": 50},
    ],
    ids=["log_snr", "uniform_t"],
)
def test_real_images_return_through_ddim_in_float64(settings):
    real, labels = odediff.zoo.test_images()
    model = odediff.zoo.fashion_mnist(dtype=torch.float64).condition(label=labels[:1])
    real = real[:1].double()
    code = odediff.encode(model, real, solver=FixedPoint(history=3), **settings)
    assert code.effort.residual.max() <= 100 * torch.finfo(torch.float64).eps
    assert float((odediff.decode(model, code) - real).abs().max()) < 1e-10
    plain = odediff.encode(model, real, solver=DDIM(), **settings)
    assert float((odediff.decode(model, plain) - real).abs().max()) > 0.1


@dataclass(frozen=True)
class AdamsBashforth(solvers.Solver):
    """The two-step formula on the noise line, with an Euler step as its start: a method whose start is its history."""

    order: ClassVar[int] = 2

    def step(self, ode, a, b, x, state=None):
        eps, h = ode.predict(a, x).eps, b.s - a.s
        if state is None:
            slope = eps
        else:
            before, g = state
            slope = eps + h / (2 * g) * (eps - before)
        return solvers.Step(b.alpha * (x / a.alpha + h * slope), state=(eps, h))


@pytest.mark.parametrize("base", [DDIM(), AdamsBashforth(), Heun(Noise())], ids=repr)
def test_a_method_with_history_is_undone_as_a_whole(base):
    ode, times, x = mild_mixture(), uneven_times(*SPAN[::-1], 12), starting_points()
    found = solve(ode, Inverse(TrajectoryInverse(base)), x, times, trajectory=True)
    assert (found.state.residual <= 100 * torch.finfo(torch.float64).eps).all()
    down = solve(ode, base, found.x, times.flip(0), trajectory=True)
    torch.testing.assert_close(down.x, x, rtol=0, atol=1e-11)
    torch.testing.assert_close(down.trajectory.flip(0), found.trajectory, rtol=0, atol=1e-10)
    assert found.stats.nfe == base.calls(12) * (1 + int(found.state.iterations.max())) + 12


def test_the_inverse_of_a_whole_trajectory_has_no_steps_of_its_own():
    # Not even around a one-step method: each sample stops at the residual of the whole trajectory.
    whole = Inverse(TrajectoryInverse(DDIM()))
    assert not whole.one_step and not whole.carries_on
    check_one_step(whole)
    check_carry_on(whole)
    assert Inverse(FixedPoint(DDIM())).one_step and Inverse(FixedPoint(DDIM())).carries_on


def test_a_trajectory_that_does_not_converge_says_so_and_samples_do_not_meet():
    ode, times, x = mild_mixture(), uneven_times(*SPAN[::-1], 12), starting_points()
    few = Inverse(TrajectoryInverse(AdamsBashforth(), max_iterations=2))
    found = solve(ode, few, x, times, throw=False)
    assert found.status.tolist() == [solvers.Status.NOT_CONVERGED] * 4 and torch.isnan(found.x).all()
    enough = Inverse(TrajectoryInverse(AdamsBashforth()))
    together = solve(ode, enough, x, times).x
    for i in range(4):
        assert torch.equal(solve(ode, enough, x[i : i + 1], times).x[0], together[i])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrajectoryInverse(max_iterations=0), "max_iterations=0"),
        (lambda: NewtonKrylov(max_iterations=0), "max_iterations=0"),
        (lambda: FixedPoint(damping=0.0), r"damping=0.0 must lie in \(0, 1\]"),
        (lambda: FixedPoint(history=-1), "history=-1"),
        (lambda: FixedPoint(tolerance=0.0), "tolerance=0.0 must be positive"),
        (lambda: FixedPoint(max_iterations=1.5), "max_iterations=1.5"),
        (lambda: FixedPoint(DDIM(1.0)), "stochastic"),
        (lambda: NewtonKrylov(krylov=0), "krylov=0"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_network_on_an_exact_model_is_inverted_through_encode():
    model = exact_model(solvers.testing.Gaussian(0.3, 0.6), TABLE)
    images = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    code = odediff.encode(model, images, solver=FixedPoint(), steps=12)
    assert float((odediff.decode(model, code) - images).abs().max()) < 1e-10
    assert code.state is None and code.effort.status.tolist() == [0, 0]


@pytest.mark.parametrize("base", [solvers.UniPC(), solvers.DPMpp(2)], ids=repr)
def test_a_method_with_a_history_is_inverted_as_it_is_decoded(base):
    model = exact_model(Gaussian(mean=0.5, deviation=0.6), odediff.VPTable.linear())
    x = 0.5 + 0.6 * torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = partial(odediff.grid.uniform_t, spacing="trailing")
    code = odediff.encode(model, x, solver=solvers.FixedPoint(base), grid=grid, steps=50)
    torch.testing.assert_close(odediff.decode(model, code), x, rtol=0, atol=1e-11)


def test_newton_differentiates_attention():
    def network(x, time):
        heads = x.reshape(len(x), 1, 3, 4)
        return 0.5 * torch.nn.functional.scaled_dot_product_attention(heads, heads, heads).reshape(x.shape)

    images = torch.randn(2, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = odediff.Model(network, TABLE)
    grid = odediff.grid.uniform_t(TABLE, steps=10, spacing="trailing")
    with torch.no_grad():
        code = odediff.encode(model, images, solver=NewtonKrylov(), grid=grid)
    torch.testing.assert_close(odediff.decode(model, code), images, rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", [solvers.FixedPoint(), solvers.NewtonKrylov(), solvers.TrajectoryInverse()], ids=str)
def test_half_precision_leaves_nothing_to_converge_to(solver):
    model = odediff.Model(lambda x, time: 0.1 * x, odediff.VPTable.linear())
    with pytest.raises(ValueError, match=r"x has dtype torch.bfloat16.*float32"):
        odediff.encode(model, torch.zeros(1, 3, dtype=torch.bfloat16), solver=solver, steps=4)


def test_newton_says_where_nothing_is_differentiated():
    x, inverse = starting_points(), Inverse(NewtonKrylov())
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inference_mode\(\) is on; use torch.no_grad"):
        solve(mild_mixture(), inverse, x.clone(), [0.5, 0.9])
    with torch.no_grad():
        assert solve(mild_mixture(), inverse, x, [0.5, 0.9]).success


def test_anderson_converges_in_float32_where_it_does_in_float64():
    ode, times, x = mild_mixture(), uneven_times(*SPAN[::-1], 6), starting_points()
    solver = Inverse(FixedPoint(history=5, tolerance=3e-6))
    for dtype in (torch.float32, torch.float64):
        assert solve(ode, solver, x.to(dtype), times).success
    small = torch.full((1, 4), 1e-4, dtype=torch.float16)
    torch.testing.assert_close(dot(small, small), small.double().square().sum(1), rtol=1e-15, atol=0)


def test_a_method_that_loses_its_history_claims_no_order():
    for solver in (FixedPoint(solvers.DPMpp(3)), NewtonKrylov(solvers.UniPC()), solvers.Reversible(solvers.BDIA())):
        assert solver.law == "bounded"
    for solver in (FixedPoint(Heun(Noise())), solvers.Reversible(), TrajectoryInverse(solvers.DPMpp(3))):
        assert solver.law == "order"


@pytest.mark.parametrize(
    "solver",
    [
        FixedPoint(Heun(Noise())),
        TrajectoryInverse(Heun(Noise())),
        solvers.Reversible(),
        solvers.OBELM(),
        solvers.AsynchronousLeapfrog(),
        solvers.ReversibleHeun(solvers.Data()),
    ],
    ids=repr,
)
@pytest.mark.parametrize("times", [[torch.pi / 2, 1.2, 0.8, 0.4, 0.0], [torch.pi / 2, 0.9], [1.2, 0.8, 0.4]], ids=len)
def test_the_calls_over_a_grid_are_those_that_are_made(solver, times):
    ode, x = mild_mixture(), starting_points()
    found = solve(ode, solver, x, times, closing=None)
    assert found.stats.nfe == solver.calls_over(ode, ode.nodes(times))


@pytest.mark.parametrize(
    "solver", [solvers.EDICT(), solvers.AsynchronousLeapfrog(), solvers.OBELM(), solvers.BDIA(), solvers.Reversible()]
)
def test_the_inverse_counts_the_steps_from_pure_noise_as_the_method_does(solver):
    inverse = Inverse(solver)
    found = solve(mild_mixture(), inverse, starting_points(), [math.pi / 2, 1.2, 0.9, 0.5])
    assert found.stats.nfe == inverse.calls_over(mild_mixture(), found.nodes)
    assert found.stats.nfe == solver.calls_over(mild_mixture(), found.nodes)


@pytest.mark.parametrize("solver", [FixedPoint(), FixedPoint(history=3), NewtonKrylov()], ids=repr)
def test_no_state_outlives_its_encoding(solver):
    model = odediff.Model(lambda x, time: 0.1 * torch.tanh(x), TABLE)
    images = torch.ones(5, 7, dtype=torch.float64)

    def alive():
        return sum(type(one) is torch.Tensor and one.shape == images.shape for one in gc.get_objects())

    odediff.encode(model, images, solver=solver, steps=5)  # torch loads parts of itself at the first derivative
    gc.collect()
    before = alive()
    gc.disable()
    try:
        odediff.encode(model, images, solver=solver, steps=5)
        assert alive() == before
    finally:
        gc.enable()
