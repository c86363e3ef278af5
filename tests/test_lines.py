import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial.legendre import leggauss

from odediff.schedule import VE, RectifiedFlow, SubVP, VPCosine, VPLinear, VPTable
from solvers import DDIM, RK4, Data, Node, Noise, Rotation, combine, solve
from solvers.lines import SMALLEST_ALPHA, singular_step
from solvers.testing import ExactODE, Gaussian, Trigonometric, mild_mixture, starting_points

LINES = [Noise(), Data(), Rotation(), Rotation(0.5), Rotation(2.0)]
PATHS = [Trigonometric(), VPTable.linear(), VPLinear(), VPCosine(), SubVP(), VE(), RectifiedFlow(shift=3.0)]
by_name = pytest.mark.parametrize("line", LINES, ids=str)


@by_name
@settings(max_examples=50, deadline=None)
@given(t=st.floats(0.02, 1.55))
def test_the_node_at_q_is_the_inverse_of_q(line, t):
    problem = mild_mixture()
    node = problem.node(t)
    again = line.node(problem, line.q(node))
    assert again == pytest.approx(node, rel=1e-12, abs=1e-14)
    assert all(type(v) is float for v in (line.q(node), line.scale(node), *again))


@by_name
def test_arrays_of_nodes_agree_with_the_nodes_one_by_one(line):
    problem, x = mild_mixture(), starting_points()
    times = np.array([0.1, 0.4, 0.9, 1.4])
    nodes = problem.node(times)
    slopes = line.slope(nodes, problem.predict(nodes, x))
    there = line.node(problem, line.q(nodes))
    for i, t in enumerate(times.tolist()):
        alone = problem.node(t)
        assert line.q(nodes)[i] == pytest.approx(line.q(alone), rel=1e-15)
        assert line.scale(nodes)[i] == pytest.approx(line.scale(alone), rel=1e-15)
        assert there.t[i] == pytest.approx(t, rel=1e-13)
        slope = line.slope(alone, problem.predict(alone, x[i : i + 1]))
        torch.testing.assert_close(slopes[i : i + 1], slope, rtol=1e-14, atol=1e-15)


@by_name
@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_the_slope_is_the_derivative_of_the_closed_form_flow_along_the_line(line, path):
    """dz/dq by central differences of the Gaussian's exact flow, on every path."""
    problem, x = ExactODE(Gaussian(), path), starting_points()
    middle = problem.node_at(0.3)
    h = 1e-4 * line.q(middle)
    below, above = (line.node(problem, line.q(middle) + step) for step in (-h, h))
    z = [combine((1 / line.scale(node), problem.distribution.flow(middle, node, x))) for node in (below, above)]
    slope = line.slope(middle, problem.predict(middle, x))
    torch.testing.assert_close((z[1] - z[0]) / (2 * h), slope, rtol=1e-6, atol=1e-7)


@by_name
@pytest.mark.parametrize("start, end", [(1.3, 0.3), (0.3, 1.3)])
def test_a_step_along_a_line_is_the_integral_of_its_slope(line, start, end):
    """x_b = (scale_b/scale_a) x_a + scale_b integral slope dq, with Gauss-Legendre on the exact flow: no solver."""
    problem, x = ExactODE(Gaussian()), starting_points()
    a, b = problem.node(start), problem.node(end)
    nodes, weights = leggauss(60)
    middle, half = (line.q(a) + line.q(b)) / 2, (line.q(b) - line.q(a)) / 2
    total = torch.zeros_like(x)
    for position, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        node = line.node(problem, middle + half * position)
        state = problem.distribution.flow(a, node, x)
        total += half * weight * line.slope(node, problem.predict(node, state))
    reached = combine((line.scale(b) / line.scale(a), x), (line.scale(b), total))
    torch.testing.assert_close(reached, problem.distribution.flow(a, b, x), rtol=0, atol=1e-11)


def test_the_rotation_by_one_predicts_v():
    """Salimans & Ho 2022, appendix D: v = alpha eps - sigma x0 on a variance-preserving path."""
    problem, x = mild_mixture(), starting_points()
    node = problem.node(0.8)
    prediction = problem.predict(node, x)
    v = node.alpha * prediction.eps - node.sigma * prediction.x0
    torch.testing.assert_close(Rotation().slope(node, prediction), v, rtol=1e-14, atol=1e-15)


def test_the_rotation_by_the_data_deviation_is_the_negated_network_of_edm():
    """Karras et al. 2022, table 1: D = c_skip x + c_out F, so F = (D - c_skip x) / c_out on x = x0 + sigma eps."""
    deviation, sigma = 0.5, 1.7
    problem, x = ExactODE(mild_mixture().distribution, VE()), starting_points()
    node = problem.node(sigma)
    prediction = problem.predict(node, x)
    skip = deviation**2 / (sigma**2 + deviation**2)
    out = sigma * deviation / math.sqrt(sigma**2 + deviation**2)
    network = (prediction.x0 - skip * x) / out
    torch.testing.assert_close(Rotation(deviation).slope(node, prediction), -network, rtol=1e-13, atol=1e-14)


@by_name
def test_singular_ends(line):
    data, inside, noise = Node(0.0, 1.0, 0.0), Node(0.5, 0.6, 0.8), Node(1.0, 0.0, 1.0)
    almost = Node(0.999, SMALLEST_ALPHA / 2, 1.0)
    expected = {
        Noise: [False, False, True, True],
        Data: [True, False, False, False],
        Rotation: [False, False, False, False],
    }[type(line)]
    assert [bool(line.singular(node)) for node in (data, inside, almost, noise)] == expected


@by_name
def test_a_step_is_singular_for_the_samples_that_leave_or_reach_a_singular_node(line):
    problem = mild_mixture()
    a, b = (problem.node(np.array(t)) for t in ([0.0, 0.4, 0.4, math.pi / 2], [0.4, 0.0, 0.8, 0.4]))
    data, noise = isinstance(line, Data), isinstance(line, Noise)
    expected = [data, data, False, noise]
    assert np.broadcast_to(singular_step(line, problem, a, b), 4).tolist() == expected


def test_the_field_without_a_line_is_singular_at_the_data_only():
    problem = mild_mixture()
    assert singular_step(None, problem, problem.node(0.3), problem.node(0.0))
    assert singular_step(None, problem, problem.node(0.0), problem.node(0.3))
    assert not singular_step(None, problem, problem.node(math.pi / 2), problem.node(0.3))


@pytest.mark.parametrize("line", [Noise(), Data(), None], ids=str)
def test_a_step_at_a_singular_node_is_a_ddim_step(line):
    problem, x = mild_mixture(), starting_points()
    ends = (math.pi / 2, 0.9) if isinstance(line, Noise) else (0.4, 0.0)
    for times in (ends, ends[::-1]):
        found = solve(problem, RK4(line), x, times, closing=None)
        assert torch.equal(found.x, solve(problem, DDIM(), x, times, closing=None).x)
        assert found.stats.nfe == 1


@pytest.mark.parametrize("c", [0.0, -1.0, math.inf, math.nan])
def test_a_rotation_needs_a_positive_finite_c(c):
    with pytest.raises(ValueError, match="c=.*positive"):
        Rotation(c)
