"""One marginal, many joint laws: how much of the noise is left in the data that the ODE, DDIM and DDPM make of it."""

import math
from itertools import pairwise

import pytest
import torch

from odediff.schedule import RectifiedFlow, VPCosine
from odediff.tasks import joint
from solvers import DDIM, DDPM, NoiseStream, solve
from solvers.testing import ExactODE, Gaussian

MEAN, DEVIATION = 0.5, 0.6
PROBLEM = ExactODE(Gaussian(MEAN, DEVIATION), VPCosine())
START, END = (PROBLEM.node_at(level).t for level in (-1.0, 4.0))
"""The noise end keeps a visible share of the data, so that the covariances of all three laws are well apart."""

SOLVERS = {0.0: DDIM(), 0.5: DDIM(eta=0.5), 1.0: DDPM()}
for_every_eta = pytest.mark.parametrize("eta", SOLVERS)


def grid(steps):
    """Uniform in log-SNR."""
    levels = torch.linspace(-1.0, 4.0, steps + 1, dtype=torch.float64).tolist()
    return [START, *(PROBLEM.node_at(level).t for level in levels[1:-1]), END]


def marginal_deviation(t):
    node = PROBLEM.node(t)
    return math.hypot(node.alpha * DEVIATION, node.sigma)


def measured_response(eta, steps):
    """dx_end/dx_start: solves of a Gaussian are affine, so two of them with the same noise read it off exactly."""
    ends = [
        solve(PROBLEM, SOLVERS[eta], torch.full((1, 1), x, dtype=torch.float64), grid(steps), stream=NoiseStream(0)).x
        for x in (0.0, 1.0)
    ]
    return float(ends[1] - ends[0])


def covariance(eta):
    """Cov(x_T, x_0) in the limit of many steps.

    In y = x/alpha and v = (sigma/alpha)^2 the family is the reverse diffusion of dy = dW(v) with a share eta of its
    noise: dy = -(1 + eta^2)/2 (y - m)/(d^2 + v) |dv| + eta dW(|dv|) as v falls. Its mean shrinks by
    ((d^2 + v_0)/(d^2 + v_T))^((1 + eta^2)/2), while y_T has the variance d^2 + v_T.
    """
    a, b = PROBLEM.node(START), PROBLEM.node(END)
    before, after = DEVIATION**2 + a.s**2, DEVIATION**2 + b.s**2
    power = (1 + eta**2) / 2
    return a.alpha * b.alpha * before ** (1 - power) * after**power


def test_the_closed_form_has_the_two_known_limits():
    """The ODE carries quantiles: correlation 1. DDPM reverses the forward chain, which keeps alpha_T of x_0."""
    a, b = PROBLEM.node(START), PROBLEM.node(END)
    assert covariance(0.0) == pytest.approx(marginal_deviation(START) * marginal_deviation(END), rel=1e-14)
    assert covariance(1.0) == pytest.approx(a.alpha / b.alpha * marginal_deviation(END) ** 2, rel=1e-14)
    correlations = [covariance(eta) / marginal_deviation(START) / marginal_deviation(END) for eta in SOLVERS]
    assert correlations[0] > correlations[1] + 0.1 > correlations[2] + 0.2


@for_every_eta
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_the_response_to_the_noise_is_the_product_of_the_steps_linear_factors(eta, steps):
    """In y - m: x0 - m = d^2/(d^2 + v_a) (y - m), eps = s_a/(d^2 + v_a) (y - m), of which noise takes its share."""
    factor = 1.0
    nodes = [PROBLEM.node(t) for t in grid(steps)]
    for a, b in pairwise(nodes):
        fresh = eta**2 * b.s**2 * (1 - b.s**2 / a.s**2)
        factor *= (DEVIATION**2 + math.sqrt(b.s**2 - fresh) * a.s) / (DEVIATION**2 + a.s**2)
    expected = factor * nodes[-1].alpha / nodes[0].alpha
    assert measured_response(eta, steps) == pytest.approx(expected, rel=1e-12)


def test_the_covariance_of_ddpm_is_exact_at_every_number_of_steps():
    """Its chain is the reversal of the forward one, whatever the steps, and the linear factors telescope."""
    for steps in (1, 3, 50):
        found = measured_response(1.0, steps) * marginal_deviation(START) ** 2
        assert found == pytest.approx(covariance(1.0), rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_the_covariance_of_noise_and_data_converges_to_its_closed_form_at_order_1(eta):
    errors = [
        abs(measured_response(eta, steps) * marginal_deviation(START) ** 2 - covariance(eta))
        for steps in (100, 200, 400)
    ]
    assert [math.log2(coarse / fine) for coarse, fine in pairwise(errors)] == pytest.approx([1, 1], abs=0.1)
    assert errors[-1] < 0.01 * covariance(eta)


@for_every_eta
def test_samples_agree_in_their_marginal_and_differ_in_their_joint_law(eta):
    count = 20_000
    noise, stream = NoiseStream(1).draw(torch.empty(count, 1, dtype=torch.float64))
    x = PROBLEM.node(START).alpha * MEAN + marginal_deviation(START) * noise
    end = solve(PROBLEM, SOLVERS[eta], x, grid(400), stream=stream).x
    mean, variance = float(end.mean()), float(end.var())
    spread = marginal_deviation(END)
    assert mean == pytest.approx(PROBLEM.node(END).alpha * MEAN, abs=4 * spread / math.sqrt(count))
    # Four standard errors, and half a per cent for 400 steps.
    assert variance == pytest.approx(spread**2, rel=4 * math.sqrt(2 / count) + 0.005)
    found = float(((x - x.mean()) * (end - end.mean())).sum() / (count - 1))
    rho = covariance(eta) / spread / marginal_deviation(START)
    standard_error = spread * marginal_deviation(START) * math.sqrt((1 + rho**2) / count)
    assert found == pytest.approx(covariance(eta), abs=4 * standard_error + 0.005 * covariance(eta))


@for_every_eta
def test_the_tasks_closed_form_is_what_the_steps_converge_to(eta):
    assert (joint.DATA.mean, joint.DATA.deviation) == (MEAN, DEVIATION)
    # Richardson: the error is of order 1, so twice the fine answer less the coarse one is of order 2.
    coarse, fine = (measured_response(eta, steps) * marginal_deviation(START) ** 2 for steps in (400, 800))
    found = joint.covariance(PROBLEM.node(START), PROBLEM.node(END), eta)
    assert found == pytest.approx(2 * fine - coarse, rel=1e-4)


def test_the_tasks_moments_tell_a_right_law_from_a_wrong_one():
    noise, other = (NoiseStream(seed).draw(torch.empty(4000, 1, dtype=torch.float64))[0][:, 0] for seed in (1, 2))
    rho = 0.3
    data = MEAN + DEVIATION * (rho * noise + math.sqrt(1 - rho**2) * other)
    right = joint.moments(noise, data, closed_form=rho * DEVIATION)
    assert (right["mean"], right["deviation"]) == pytest.approx((float(data.mean()), float(data.std())))
    assert right["p_value"] > 0.01 and abs(right["standard_errors_off"]) < 3
    # The correlation's own standard error is sqrt((1 + rho^2) / n): half of it off is half of it counted.
    off = joint.moments(noise, data, closed_form=right["covariance"] - 5 * DEVIATION * math.sqrt(1.09 / 4000))
    assert off["standard_errors_off"] == pytest.approx(5, rel=0.05)
    assert joint.moments(noise, 1.1 * data, closed_form=0.0)["p_value"] < 1e-6


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_closed_form_is_finite_from_pure_noise(eta):
    path = RectifiedFlow()
    begin, near, end = (path.node(t) for t in (1.0, 1.0 - 1e-9, 0.0))
    found = joint.covariance(begin, end, eta)
    assert found == pytest.approx(joint.covariance(near, end, eta), abs=0.01)
    assert found == (pytest.approx(DEVIATION) if eta == 0 else 0)
