"""Where a sample used to feel its batch mates, or to be refused for them; each with the batch that showed it."""

import math

import numpy as np
import pytest
import torch

from solvers import (
    BDIA,
    OBELM,
    ODE,
    Adaptive,
    AdaptiveAdams,
    AsynchronousLeapfrog,
    Dopri5,
    EDMHeun,
    ExponentialAdams,
    FixedPoint,
    GaussLegendre,
    GPMultistep,
    Heun,
    Inverse,
    Leapfrog,
    NewtonKrylov,
    Noise,
    NoiseStream,
    PathODE,
    Prediction,
    Reversible,
    Rotation,
    SASolver,
    Scipy,
    Status,
    Torchdiffeq,
    TrajectoryInverse,
    UniPC,
    solve,
)
from solvers.controller import row_norm
from solvers.testing import ExactODE, Mixture, mild_mixture, starting_points


def test_an_adams_step_that_closes_does_not_wait_for_others():
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(4, 1, generator=generator, dtype=torch.float64)
    deviations = 0.1 + 0.5 * torch.rand(4, generator=generator, dtype=torch.float64)
    problem = ExactODE(Mixture(torch.full((4,), 0.25, dtype=torch.float64), means, deviations))
    x = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    together = solve(problem, AdaptiveAdams(rtol=3e-2), x, [0.8, 0.0], closing=None)
    for i in range(6):
        alone = solve(problem, AdaptiveAdams(rtol=3e-2), x[i : i + 1], [0.8, 0.0], closing=None)
        assert torch.equal(together.x[i : i + 1], alone.x)
        assert together.stats.evaluations[i] == alone.stats.evaluations[0]


@pytest.mark.parametrize("closing", ["extrapolate", None])
def test_closing_without_a_call_has_the_same_bits_alone(closing):
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    times = [1.5, 0.05, 0.0] if closing else [1.5, 0.0]
    together = solve(mild_mixture(), AdaptiveAdams(), x, times, closing=closing).x
    alone = [solve(mild_mixture(), AdaptiveAdams(), row[None], times, closing=closing).x for row in x]
    assert torch.equal(together, torch.cat(alone))


def test_a_norm_does_not_depend_on_the_layout():
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    np.testing.assert_array_equal(row_norm(x.T.contiguous()), row_norm(x.T))


class Root(PathODE):
    """eps has no finite derivative where the second component is zero."""

    problem = mild_mixture()

    def node(self, t):
        return self.problem.node(t)

    def node_at(self, log_snr):
        return self.problem.node_at(log_snr)

    def rates(self, t):
        return self.problem.rates(t)

    def predict(self, node, x):
        eps = 0.3 * x + 0.1 * x[:, 1:].square().sqrt()
        return Prediction(lambda: (x - node.sigma * eps) / node.alpha, eps)


def test_a_sample_without_a_derivative_leaves_the_others_alone():
    x = torch.tensor([[0.5, 0.7], [1.0, 0.0]], dtype=torch.float64)
    together = solve(Root(), Inverse(NewtonKrylov()), x, [0.4, 0.5, 0.6], throw=False)
    alone = solve(Root(), Inverse(NewtonKrylov()), x[:1], [0.4, 0.5, 0.6])
    assert together.status[0] == Status.SUCCESS != together.status[1]
    assert torch.equal(together.x[:1], alone.x)


def test_a_state_that_is_infinite_costs_few_calls():
    class Bounded(ODE):
        def __call__(self, t, x):
            return -torch.tanh(x)

    x = torch.tensor([[1.0, 1.0], [math.inf, 1.0]], dtype=torch.float64)
    found = solve(Bounded(), Adaptive(Dopri5(), line=None), x, [0.0, 1.0], throw=False)
    assert found.status.tolist() == [Status.SUCCESS, Status.NON_FINITE]
    assert found.stats.evaluations[1] < 200


@pytest.mark.parametrize("solver", [Scipy("RK45"), Torchdiffeq("dopri5"), Torchdiffeq("implicit_adams")], ids=str)
def test_libraries_solve_no_samples(solver):
    found = solve(mild_mixture(), solver, torch.zeros(0, 2), [1.0, 0.8, 0.6])
    assert found.x.shape == (0, 2)
    assert found.status.dtype == torch.int64


@pytest.mark.parametrize("solver", [Leapfrog(), OBELM(), BDIA(), Leapfrog(Rotation())], ids=str)
def test_a_past_at_pure_noise_is_of_no_harm(solver):
    problem, times = mild_mixture(), torch.linspace(math.pi / 2, 0.2, 13, dtype=torch.float64)
    fine = torch.linspace(float(times[1]), 0.2, 400, dtype=torch.float64)
    x = solve(problem, GaussLegendre(Rotation(), 3), starting_points(), times[:2]).x
    truth = solve(problem, GaussLegendre(Rotation()), x, fine).x
    found = solve(problem, solver, x, times[1:], past=[(problem.node(math.pi / 2), starting_points())]).x
    plain = solve(problem, solver, x, times[1:]).x
    assert (found - truth).abs().max() <= 1.1 * (plain - truth).abs().max()


@pytest.mark.parametrize(
    "solver", [ExponentialAdams(), AsynchronousLeapfrog(), Leapfrog(), BDIA(), GaussLegendre(), GPMultistep()], ids=str
)
def test_a_state_of_other_samples_is_refused(solver):
    state = solve(mild_mixture(), solver, starting_points()[:1], [1.0, 0.8, 0.6]).state
    with pytest.raises(ValueError, match="state: .* carry on the"):
        solve(mild_mixture(), solver, starting_points(), [0.6, 0.5, 0.4], state=state)


@pytest.mark.parametrize("solver", [GaussLegendre(), SASolver(), EDMHeun()], ids=str)
def test_a_state_of_another_method_is_refused(solver):
    state = solve(mild_mixture(), ExponentialAdams(), starting_points(), [1.0, 0.8, 0.6]).state
    with pytest.raises(TypeError, match=f"not a state of {type(solver).__name__}"):
        solve(mild_mixture(), solver, starting_points(), [0.6, 0.5, 0.4], state=state, stream=NoiseStream(0))


@pytest.mark.parametrize(
    "solver",
    [
        GaussLegendre(Rotation()),
        GaussLegendre(stages=3),
        Inverse(FixedPoint()),
        Inverse(FixedPoint(Heun(Noise()), history=2)),
        Inverse(FixedPoint(max_iterations=0)),
        Inverse(NewtonKrylov()),
        Inverse(TrajectoryInverse(UniPC(2))),
    ],
    ids=repr,
)
def test_a_sample_that_has_spent_its_calls_takes_none_from_the_others(solver):
    problem, x, times = mild_mixture(), starting_points(), [0.4, 0.6, 0.8, 1.0, 1.35]
    needed = solve(problem, solver, x, times).stats.evaluations
    least, most = int(needed.min()), int(needed.max())
    for budget in {least - 1, least, (least + most) // 2, most - 1, most}:
        together = solve(problem, solver, x, times, max_nfe=budget, throw=False)
        assert (together.stats.evaluations <= budget).all()
        expected = torch.where(needed <= budget, int(Status.SUCCESS), int(Status.BUDGET))
        assert torch.equal(together.status, expected)
        assert together.x.isfinite().all()
        for i in range(len(x)):
            alone = solve(problem, solver, x[i : i + 1], times, max_nfe=budget, throw=False)
            torch.testing.assert_close(alone.x, together.x[i : i + 1], rtol=0, atol=0, equal_nan=True)
            assert torch.equal(alone.status, together.status[i : i + 1])
            assert torch.equal(alone.stats.evaluations, together.stats.evaluations[i : i + 1])


@pytest.mark.parametrize("solver", [Reversible(GaussLegendre(Rotation(), 1)), FixedPoint(GaussLegendre(Rotation(), 1))])
def test_a_step_of_an_implicit_method_that_was_not_paid_for_is_none(solver):
    problem, x, times = mild_mixture(), starting_points(), [1.35, 1.0, 0.6]
    needed = int(solve(problem, solver, x, times).stats.evaluations.max())
    found = solve(problem, solver, x, times, max_nfe=needed // 2, throw=False)
    assert (found.status == Status.BUDGET).all()
