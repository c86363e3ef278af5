"""AdaptiveAdams: its weights, its closing, its tolerance, its memory, and `rtol=` in the application's functions."""

import math
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import Polynomial
from scipy.integrate import quad

import odediff
from benchmarks.problems import gaussian, mixture
from odediff.problems import exact_model
from solvers import DDIM, ODE, AdaptiveAdams, Data, Heun, Node, Noise, Rotation, Scipy, Status, solve
from solvers.newton_form import (
    divided_differences,
    gauss_legendre,
    integral_weights,
    newton_integrals,
    newton_weights,
    odd_newton_integrals,
    step_integrals,
    with_node_in_front,
)
from solvers.testing import SPAN, ExactODE, Gaussian, Mixture, departures, mild_mixture, reference, starting_points
from solvers.tolerance import Span


def noise(count, dimension, seed=0):
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The weights


def quadrature_weights(nodes, used, a, b):
    return newton_weights(newton_integrals(nodes, a, b), divided_differences(nodes), used)


@pytest.mark.parametrize("used", [1, 2, 5, 9])
def test_weights_integrate_polynomials_exactly_on_uneven_nodes(used):
    generator = np.random.default_rng(1)
    nodes = np.cumsum(generator.uniform(0.2, 1.5, (11, 3)), axis=0)
    a, b = nodes[0], generator.uniform(-1.0, 0.5, 3)
    weights = quadrature_weights(nodes, np.full(3, used), a, b)
    assert (weights[used:] == 0).all()
    for power in range(used):
        exact = (b ** (power + 1) - a ** (power + 1)) / (power + 1)
        size = np.abs(weights * nodes**power).sum(0)
        assert (np.abs((weights * nodes**power).sum(0) - exact) < 1e-12 * size).all()


def test_odd_weights_integrate_odd_polynomials_of_twice_the_degree():
    nodes = np.array([[0.2], [0.35], [0.6], [0.9]])
    integrals = odd_newton_integrals(nodes, np.array([0.2]), np.array([0.0]), gauss_legendre(4))
    weights = newton_weights(integrals, divided_differences(nodes**2), np.array([4])) / nodes
    for power in (1, 3, 5, 7):
        assert (weights * nodes**power).sum() == pytest.approx(-(0.2 ** (power + 1)) / (power + 1), rel=1e-12)


def test_the_weights_of_dense_output_are_exact_for_the_degrees_that_its_slopes_fix():
    nodes, used, a, b = np.array([[0.9], [0.6], [0.35]]), np.array([3]), np.array([0.9]), np.array([0.2])
    for odd, powers in ((False, (0, 1, 2)), (True, (1, 3, 5))):
        weights = integral_weights(nodes, used, a, b, odd)
        for power in powers:
            exact = (0.2 ** (power + 1) - 0.9 ** (power + 1)) / (power + 1)
            assert (weights * nodes**power).sum() == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("max_order", [1, 2, 9, 12])
def test_the_rules_of_a_run_are_exact_for_the_polynomials_of_its_highest_order(max_order):
    ode, (start, end) = mild_mixture(), map(mild_mixture().node, SPAN)
    solver = AdaptiveAdams(max_order=max_order, line=Rotation(0.4))
    x = starting_points()
    run = solver.begin(ode, Span(ode, solver.line, start, end, end), x, x.dtype, np.arange(len(x)))
    nodes = np.cumsum(np.random.default_rng(0).uniform(0.1, 0.3, (max_order + 1, 1)), axis=0)
    a, b = 1.1 * nodes[-1], np.array([0.0])
    ahead, corrections = step_integrals(nodes, a, b, run.gauss)
    np.testing.assert_allclose(ahead, newton_integrals(nodes, a, b), rtol=1e-12)
    np.testing.assert_allclose(corrections, newton_integrals(np.vstack([b, nodes]), a, b), rtol=1e-12)
    product = Polynomial([0.0, 1.0])
    for found, node in zip(odd_newton_integrals(nodes[:max_order], a, b, run.odd_gauss), nodes[:, 0], strict=False):
        assert found == pytest.approx(-product.integ()(a), rel=1e-9)
        product *= Polynomial([-(node**2), 0.0, 1.0])


def test_even_steps_give_the_textbook_weights():
    # Adams-Bashforth and Adams-Moulton of order 4 (Hairer, Norsett & Wanner, III.1).
    past = np.array([[0.0], [-1.0], [-2.0], [-3.0]])
    bashforth = quadrature_weights(past, np.array([4]), np.array([0.0]), np.array([1.0]))
    np.testing.assert_allclose(bashforth[:, 0], np.array([55, -59, 37, -9]) / 24, rtol=1e-12)
    moulton = quadrature_weights(past + 1, np.array([4]), np.array([0.0]), np.array([1.0]))
    np.testing.assert_allclose(moulton[:, 0], np.array([9, 19, -5, 1]) / 24, rtol=1e-12)


@given(
    steps=st.lists(st.floats(1e-6, 10.0), min_size=2, max_size=10),
    ahead=st.floats(1e-6, 10.0),
    direction=st.sampled_from([-1.0, 1.0]),
)
def test_a_node_in_front_changes_integrals_and_differences_as_if_they_were_made_anew(steps, ahead, direction):
    past = -direction * np.cumsum([0.0, *steps])[:, None]  # from zero, so that small steps are not rounded away
    a, b = past[0], np.array([direction * ahead])
    rule = gauss_legendre(7)
    shorter, longer = step_integrals(past, a, b, rule)
    nodes = np.concatenate([b[None], past])
    for found, of in ((shorter, past), (longer, nodes)):
        # Terms of the products' integrals cancel near the node that is left: an error is of their size, not the sum's.
        size = np.abs(b - a) * np.cumprod(
            np.concatenate([np.ones((1, 1)), np.abs(of[:-1] - a) + np.abs(b - a)]), axis=0
        )
        assert (np.abs(found - newton_integrals(of, a, b)) <= 1e-13 * size).all()
    np.testing.assert_allclose(
        with_node_in_front(divided_differences(past), past, b), divided_differences(nodes), rtol=1e-12
    )


# Accuracy


@pytest.mark.parametrize("dimension", [16, 64])
def test_few_calls_reach_the_exact_flow_of_a_mixture(dimension):
    ode = odediff.probability_flow(exact_model(mixture(dimension), odediff.VPLinear(), "flow"))
    x = noise(96, dimension)
    truth = solve(ode, Scipy("DOP853", rtol=1e-10, line=Rotation(), batched=True), x, (1.0, 0.0), closing=None).x
    found = {r: solve(ode, AdaptiveAdams(rtol=r), x, (1.0, 0.0), closing=None) for r in (1e-3, 1e-5, 1e-7)}
    median = {r: float((f.x - truth).square().mean(1).sqrt().median()) / r for r, f in found.items()}
    assert all(0.1 < ratio < 10 for ratio in median.values()), median
    mean = {r: float(f.stats.evaluations.double().mean()) for r, f in found.items()}
    # Measured: 12, 30 and 56.
    assert mean[1e-3] < 14 and mean[1e-5] < 33 and mean[1e-7] < 62


@pytest.mark.parametrize(
    "path", [odediff.VPLinear(), odediff.VE(), odediff.RectifiedFlow(), odediff.VPCosine()], ids=str
)
def test_there_and_back_on_every_path(path):
    ode = odediff.probability_flow(exact_model(Gaussian(), path, "flow"))
    start = ode.node(path.start)
    x = noise(5, 3) * math.hypot(start.alpha, start.sigma)
    down = solve(ode, AdaptiveAdams(rtol=1e-7), x, (path.start, 0.0), closing=None)
    exact = Gaussian().flow(start, ode.node(0.0), x)
    torch.testing.assert_close(down.x, exact, rtol=0, atol=2e-5)
    up = solve(ode, AdaptiveAdams(rtol=1e-7), exact, (0.0, path.start), closing=None)
    torch.testing.assert_close(up.x, x, rtol=2e-5, atol=2e-5)


def test_it_starts_at_pure_noise():
    ode = odediff.probability_flow(exact_model(Gaussian(), odediff.RectifiedFlow(), "flow"))
    assert ode.node(1.0).alpha == 0
    x = noise(4, 2)
    found = solve(ode, AdaptiveAdams(rtol=1e-6), x, (1.0, 0.0), closing=None)
    torch.testing.assert_close(found.x, Gaussian().flow(ode.node(1.0), ode.node(0.0), x), rtol=0, atol=1e-4)


# The closing


def test_a_table_is_closed_by_extrapolation_below_the_error_of_denoising():
    table = odediff.VPTable.linear()
    exact = exact_model(mixture(16), table, "flow")
    model, x = replace(exact, continuous=False), noise(48, 16)
    truth = odediff.sample(exact, noise=x, rtol=1e-10)
    error = {}
    for closing in ("auto", "denoise"):
        found = odediff.sample(model, noise=x, rtol=1e-6, closing=closing, return_solution=True)
        assert found.success
        error[closing] = float((found.x - truth).square().mean(1).sqrt().median())
    assert error["auto"] < 1e-5 and error["denoise"] > 5e-5


def test_a_tolerance_that_the_table_cannot_give_is_said():
    # Four entries only: the first is far from the data.
    table = odediff.VPTable([0.7, 0.3, 0.1, 0.01])
    model = replace(exact_model(mixture(16), table, "flow"), continuous=False)
    with pytest.warns(UserWarning, match=r"rtol=1e-08: the extrapolation over the last interval leaves an error of"):
        found = odediff.sample(model, noise=noise(3, 16), rtol=1e-8, return_solution=True)
    assert found.status.tolist() == [Status.FLOOR] * 3 and found.success
    assert "continuous=True" in Status.FLOOR.advice


@pytest.mark.parametrize("line", [Rotation(0.4), Rotation(), Noise()], ids=str)
def test_a_table_is_closed_on_every_line_that_is_odd_at_the_data(line):
    path, data, x = odediff.VPTable.linear(), Gaussian(0.3, 0.5), noise(5, 3)
    model = replace(exact_model(data, path), continuous=False)
    found = odediff.sample(model, noise=x, solver=AdaptiveAdams(line=line), rtol=1e-6)
    assert median_ratio(found, data.flow(path.node(1.0), path.node(0.0), x), 1e-6) < 10


def test_closing_makes_no_call_and_the_network_is_never_asked_below_its_table():
    model = odediff.zoo.fashion_mnist()
    found = odediff.sample(model, (2, 1, 28, 28), rtol=1e-2, return_solution=True)
    assert found.success and found.nodes[-2].t == model.path.end
    # A call below the first entry raises.
    assert 5 < found.stats.nfe < 25


def test_a_table_is_closed_without_a_call_from_the_one_node_after_pure_noise():
    # The noise line is singular at alpha = 0: a DDIM step leaves it, and the last interval is all that is left.
    table, data, x = odediff.VPTable([0.99, 0.5, 0.1, 0.0]), Gaussian(0.3, 0.5), noise(3, 2)
    ode = odediff.probability_flow(replace(exact_model(data, table, "v"), continuous=False))
    with pytest.warns(UserWarning, match=r"rtol=0\.001: the extrapolation over the last interval leaves an error of"):
        found = solve(ode, AdaptiveAdams(line=Noise()), x, [1.0, table.end, 0.0], closing="extrapolate")
    assert found.status.tolist() == [Status.FLOOR] * 3 and found.stats.nfe == 2


# Dense output


def test_the_solution_between_the_nodes_has_the_accuracy_of_the_steps():
    problem, x = ExactODE(Gaussian()), starting_points()
    for span in (SPAN, SPAN[::-1]):
        found = solve(problem, AdaptiveAdams(rtol=1e-9), x, span, trajectory=True)
        for t in np.linspace(*span, 23):
            exact = problem.distribution.flow(found.nodes[0], problem.node(float(t)), x)
            torch.testing.assert_close(found(float(t)), exact, rtol=0, atol=3e-8)
        torch.testing.assert_close(found(span[1]), found.x, rtol=0, atol=1e-14)


def test_a_solution_without_steps_says_how_to_keep_them():
    for solver, options in ((AdaptiveAdams(), {}), (DDIM(), {"trajectory": True})):
        with pytest.raises(ValueError, match="trajectory=True"):
            solve(mild_mixture(), solver, starting_points(), SPAN, **options)(1.0)
    kept = solve(mild_mixture(), AdaptiveAdams(), starting_points(), SPAN, trajectory=True)
    with pytest.raises(ValueError, match=r"t=0\.1: sample 0 did not get there"):
        kept(0.1)


# Memory and precision


def test_the_history_is_max_order_plus_two_states():
    solver = AdaptiveAdams(max_order=4)
    ode, x = mild_mixture(), starting_points()
    a, b = (ode.node(t) for t in SPAN)
    from solvers.tolerance import Span

    run = solver.begin(ode, Span(ode, solver.line, a, b, b), x, x.dtype, np.arange(4))
    assert run.slopes.shape == (4, 6, 2)


def test_float32_states_reach_what_float32_can():
    x = departures(*SPAN)
    found = solve(mild_mixture(), AdaptiveAdams(rtol=1e-5), x.float(), SPAN)
    assert found.x.dtype == torch.float32
    assert (found.x.double() - reference(*SPAN)[-1]).abs().max() < 3e-4


# rtol=


def gaussian_model(path=None):
    return exact_model(gaussian(), path or odediff.VPLinear(), "flow")


def test_rtol_reaches_the_closed_form_flow_in_sampling():
    model, x = gaussian_model(), noise(6, 3)
    found = odediff.sample(model, noise=x, rtol=1e-6, return_solution=True)
    exact = gaussian().flow(model.path.node(1.0), model.path.node(0.0), x)
    torch.testing.assert_close(found.x, exact, rtol=0, atol=1e-4)
    assert found.stats.evaluations.shape == (6,)
    same = odediff.sample(model, noise=x, solver=AdaptiveAdams(rtol=1e-6))
    assert same.equal(found.x)
    libraries = odediff.sample(model, noise=x, solver=Scipy(line=Rotation()), rtol=1e-6)
    torch.testing.assert_close(libraries, exact, rtol=0, atol=1e-3)  # closed by a denoising step


@pytest.mark.parametrize("other", ["steps", "nfe"])
def test_rtol_steps_and_nfe_exclude_each_other(other):
    model = gaussian_model()
    with pytest.raises(ValueError, match=rf"rtol=0\.001, {other}=5: these exclude each other"):
        odediff.sample(model, (1, 2), rtol=1e-3, **{other: 5})
    with pytest.raises(ValueError, match=rf"rtol=0\.001, {other}=5: these exclude each other"):
        odediff.encode(model, torch.zeros(1, 2), rtol=1e-3, **{other: 5})


def test_rtol_with_a_solver_of_fixed_steps_is_refused():
    with pytest.raises(
        ValueError, match=r"rtol=0\.001: Heun.* steps on a grid, not to a tolerance; use solvers\.AdaptiveAdams"
    ):
        odediff.sample(gaussian_model(), (1, 2), rtol=1e-3, solver=Heun())
    with pytest.raises(ValueError, match="rtol=-1 must be a positive"):
        odediff.sample(gaussian_model(), (1, 2), rtol=-1)


def test_real_images_return_from_the_embedded_network():
    model = odediff.zoo.fashion_mnist()
    images = odediff.zoo.test_images()[0][:1].double()
    code = odediff.encode(model, images, rtol=1e-4)
    assert isinstance(code.solver, AdaptiveAdams) and code.times.tolist() == [model.path.end, 1.0]
    back = odediff.decode(model, code)
    assert float((back - images).square().mean().sqrt()) < 1e-2


def test_an_exact_model_returns_to_the_tolerance():
    model, images = replace(gaussian_model(odediff.VPTable.linear()), continuous=False), noise(4, 3)
    back = odediff.decode(model, odediff.encode(model, images, rtol=1e-7))
    torch.testing.assert_close(back, images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("line", [Rotation(0.4), Rotation(), Noise(), Data(), None], ids=str)
@pytest.mark.parametrize("path", [odediff.VE(), odediff.VPLinear()], ids=lambda path: type(path).__name__)
def test_the_tolerance_is_met_from_pure_noise_to_the_data_on_every_line(path, line):
    data = Gaussian(0.0, 0.5)
    start, end = path.node(path.start), path.node(path.end)
    x = noise(32, 4) * odediff.sampling.initial_deviation(start)
    model, grid = exact_model(data, path), torch.tensor([path.start, path.end], dtype=torch.float64)
    for rtol in (1e-2, 1e-3, 1e-4, 1e-6):
        found = odediff.sample(model, noise=x, solver=AdaptiveAdams(line=line, rtol=rtol), grid=grid, closing=None)
        error = (found - data.flow(start, end, x)).square().mean(1).sqrt() / rtol
        assert 0.01 < float(error.median()) < 10


@pytest.mark.parametrize("size", [0.0, 1e-25])
def test_a_state_of_next_to_nothing_says_nothing_of_the_scale(size):
    path, data = odediff.VPLinear(), Gaussian(0.3, 0.5)
    x = torch.full((2, 3), size, dtype=torch.float64)
    found = odediff.sample(exact_model(data, path), noise=x, rtol=1e-4)
    assert median_ratio(found, data.flow(path.node(1.0), path.node(0.0), x), 1e-4) < 10


@pytest.mark.parametrize("start", [1e9, 1.7e9])
@pytest.mark.parametrize("size", [1e-20, 1e-12, 1e-6])
def test_a_small_state_at_a_late_time_begins_with_a_step_that_moves(size, start):
    class Cosine(ODE):
        def __call__(self, t, x):
            return torch.cos(t - start).expand_as(x)

    x, times = torch.full((2, 3), size, dtype=torch.float64), [start, start + 1]
    for way, end in ((times, math.sin(1.0)), (times[::-1], -math.sin(1.0))):
        found = solve(Cosine(), AdaptiveAdams(line=None, rtol=1e-6), x, way)
        torch.testing.assert_close(found.x, x + end, rtol=0, atol=1e-5)


@pytest.mark.parametrize("before", [[], [0.5]], ids=["at once", "in two steps"])
def test_no_call_is_made_where_the_probe_made_one(before):
    ode, line, x = mild_mixture(), Rotation(0.4), starting_points()[:1]
    start, end = map(ode.node, SPAN)
    run = AdaptiveAdams().begin(ode, Span(ode, line, start, end, end), x / line.scale(start), x.dtype, np.arange(1))
    run.attempt(ode)
    probe = run.past[0]
    for share in (*before, 1.0):
        ahead = np.abs(probe - run.q)
        run.h = share * ahead
        assert run.attempt(ode).all()
    assert 0.1 * ahead < np.abs(run.q - probe) < 0.9 * ahead


def test_a_rejected_step_is_followed_by_a_shorter_one_even_of_lower_order():
    ode, line, x = mild_mixture(), Rotation(0.4), starting_points()[:1]
    start, end = map(ode.node, SPAN)
    run = AdaptiveAdams().begin(ode, Span(ode, line, start, end, end), x / line.scale(start), x.dtype, np.arange(1))
    run.k, run.known, no = np.array([3]), np.array([5]), np.zeros(1, dtype=bool)
    order, step = run._next(np.array([0.1]), np.array([[1.5], [1e-9], [1e-9]]), no, no)
    assert order == 2 and step < 0.1


# Networks whose eps is not odd in s


def uneven(deviation, continuous):
    """A network that errs by an even function of s, ``e^{-2 s^2}``, in the eps of a Gaussian, and its exact end.

    ``(y - m)/sqrt(d^2 + s^2)`` is the integral of the bump over that root.
    """
    path = odediff.VPTable.linear()
    first = path.node(1.0)

    def network(x, n):
        node = path.node((n.double().numpy() + 1) / path.T)
        alpha, sigma = (torch.from_numpy(value)[:, None] for value in (node.alpha, node.sigma))
        s = sigma / alpha
        return (x / alpha - 0.3) * s / (deviation**2 + s**2) + torch.exp(-2 * s**2)

    def exact(x):
        bump = quad(lambda s: math.exp(-2 * s**2) / math.hypot(deviation, s), 0, 10, epsabs=1e-13, limit=200)[0]
        return 0.3 + deviation * ((x / first.alpha - 0.3) / math.hypot(deviation, first.s) - bump)

    return odediff.Model(network, path, continuous=continuous), exact


@pytest.mark.parametrize(("deviation", "continuous"), [(0.5, False), (0.1, True)], ids=["table", "to the data"])
def test_slopes_that_are_not_odd_are_found_out_at_the_end(deviation, continuous):
    (model, exact), x, rtol = uneven(deviation, continuous), noise(5, 3), 1e-4
    assert median_ratio(odediff.sample(model, noise=x, rtol=rtol), exact(x), rtol) < 5


def test_the_error_that_a_table_leaves_is_named_in_units_of_the_data():
    (model, exact), x = uneven(0.1, continuous=False), noise(5, 3)
    with pytest.warns(UserWarning, match="leaves an error of about") as said:
        found = odediff.sample(model, noise=x, rtol=1e-5, return_solution=True)
    named = float(re.search(r"about (\S+) in", str(said[0].message)).group(1))
    errors = (found.x - exact(x)).square().mean(1).sqrt()[found.status == Status.FLOOR]
    assert 0.1 < named / float(errors.max()) < 30


# Data that are much thinner or wider than the line's c


def median_ratio(found, exact, rtol):
    return float(((found - exact) / (rtol + rtol * exact.abs())).square().mean(1).sqrt().median())


@pytest.mark.parametrize("rtol", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("deviation", [0.02, 0.1, 1.0, 5.0, 50.0])
def test_the_tolerance_is_met_whatever_the_scale_of_the_data(deviation, rtol):
    path, data = odediff.VPLinear(), Gaussian(0.3, deviation)
    start, first, end = path.node(1.0), path.node(path.end), path.node(0.0)
    x = data.flow(Node(0.0, 0.0, 1.0), start, noise(9, 8))
    model = exact_model(data, path)
    down = odediff.sample(model, noise=x, rtol=rtol)
    assert median_ratio(down, data.flow(start, end, x), rtol) < 10
    images = data.flow(start, first, x)
    up = odediff.encode(model, images, solver=AdaptiveAdams(rtol=rtol)).x
    assert median_ratio(up, x, rtol) < 20


@pytest.mark.parametrize("path", [odediff.VE(), odediff.RectifiedFlow(), odediff.VPCosine()], ids=str)
def test_the_steps_to_the_data_are_those_of_any_other_path_between_the_same_levels(path):
    """Along a rotation, z and q depend on s alone, and atol is that at the data, whatever the scale of the state."""

    def run(path):
        start = path.node_at(-math.log(60.0))
        x = start.alpha * 60 * noise(5, 16)
        ode = odediff.probability_flow(exact_model(mixture(16), path, "flow"))
        return solve(ode, AdaptiveAdams(rtol=1e-4), x, [start.t, 0.0], closing=None)

    found, expected = run(path), run(odediff.VPLinear())
    assert found.stats.evaluations.tolist() == expected.stats.evaluations.tolist()
    torch.testing.assert_close(found.x, expected.x, rtol=0, atol=1e-8)


@pytest.mark.parametrize("rtol", [1e-3, 1e-4, 1e-5, 1e-6])
def test_what_a_table_cannot_give_of_a_single_image_is_said(rtol):
    """Below the first entry the flow to a point is no polynomial of slopes from above, plain or odd."""
    model = exact_model(Gaussian(0.5, 1e-9), odediff.VPTable.linear())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = odediff.sample(model, (4, 8), rtol=rtol, dtype=torch.float64, return_solution=True)
    named = [float(re.search(r"about (\S+) in", str(one.message)).group(1)) for one in said]
    assert bool(named) == bool((found.status == Status.FLOOR).any())
    assert median_ratio(found.x, torch.full_like(found.x, 0.5), max([rtol, *named])) < 30


def test_close_modes_are_not_leapt_over():
    modes = Mixture(torch.tensor([0.5, 0.5]), torch.tensor([[-0.3], [0.3]]), torch.tensor([0.2, 0.2]))
    model, x, rtol = exact_model(modes, odediff.VPLinear()), noise(32, 1), 1e-3
    exact = odediff.sample(model, noise=x, solver=AdaptiveAdams(rtol=1e-11))
    assert median_ratio(odediff.sample(model, noise=x, rtol=rtol), exact, rtol) < 20


@pytest.mark.parametrize("rtol", [1e-3, 1e-5])
@pytest.mark.parametrize("deviation", [1e-9, 0.02, 0.6])
def test_a_table_is_closed_by_the_same_bits_whoever_the_mates_are(deviation, rtol):
    """Mates of other scales end with other orders, and so with other numbers of slopes in the batch's arrays."""
    scales = torch.tensor([deviation, 1.0, 5.0, 30.0], dtype=torch.float64)[:, None]

    def network(x, n, scale):
        node = path.node((n.double().numpy() + 1) / path.T)
        alpha, sigma = (torch.from_numpy(value)[:, None] for value in (node.alpha, node.sigma))
        return x * sigma / (alpha**2 * scale**2 + sigma**2)

    path = odediff.VPTable.linear()
    model, x = odediff.Model(network, path, conditions={"scale": scales}), noise(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = odediff.sample(model, noise=x, rtol=rtol)
        alone = odediff.sample(model.condition(scale=scales[:1]), noise=x[:1], rtol=rtol)
    assert torch.equal(together[:1], alone)


@pytest.mark.parametrize("path", [odediff.VPTable.linear(), odediff.VPLinear()], ids=["table", "continuous"])
def test_the_last_attempt_that_is_allowed_may_be_closed_without_a_call(path):
    model = exact_model(Gaussian(), path)
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def solved(**settings):
        solver = AdaptiveAdams(rtol=1e-3, **settings)
        return odediff.sample(model, noise=x, solver=solver, return_solution=True, throw=False)

    free = solved()
    attempts = free.stats.nfe - 1  # but for the slope at the start, each call is one
    allowed = solved(max_steps=attempts)
    assert allowed.status.tolist() == [Status.SUCCESS] and allowed.x.equal(free.x)
    assert solved(max_steps=attempts - 1).status.tolist() == [Status.BUDGET]
