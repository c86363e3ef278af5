"""The Gaussian-process multistep method: its features solve the flow, its steps are best linear predictions."""

import math
from contextlib import nullcontext
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.interpolate import CubicSpline

import odediff
from benchmarks.live_memory import LiveMemory
from odediff.defaults import default_grid, default_solver, fixed_closing
from odediff.problem import probability_flow
from odediff.problems import exact_model, standard
from solvers import (
    DDIM,
    RK4,
    AdaptiveAdams,
    DPMpp,
    ExponentialAdams,
    GPMultistep,
    Heun,
    Node,
    Noise,
    Prior,
    Rotation,
    UniPC,
    combine,
    solve,
)
from solvers.counting import counted
from solvers.gp_handover import LARGEST_S, NEAR, _denoised, stretch
from solvers.gp_multistep import FAR, planned
from solvers.multistep import Formula
from solvers.prior import DECISIONS, SCALES, SMALL, _decided, mean_distance
from solvers.testing import ExactODE, Gaussian

TABLE = odediff.VPTable.linear()


def draws(count: int, dimension: int) -> torch.Tensor:
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def node(s: float) -> Node:
    return Node(0.0, 1 / math.hypot(1, s), s / math.hypot(1, s))


# --- the features ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", [157.0, 0.0, math.inf])
def test_every_feature_is_a_solution_of_the_flow(origin):
    logs = np.linspace(math.log(0.02), math.log(60), 400)
    start = Node(0.0, 0.0, 1.0) if math.isinf(origin) else node(origin)
    features = Prior().features([node(math.exp(log)) for log in logs], start, 0.8)
    y = features.state * np.hypot(1, np.exp(logs))[:, None]
    data = CubicSpline(logs, features.data)
    # dy/d(log s) = y - x0; towards the data, in which direction it is stable.
    found = solve_ivp(lambda v, y: y - data(v), (logs[-1], logs[0]), y[-1], rtol=1e-10, atol=1e-10).y[:, -1]
    np.testing.assert_allclose(found, y[0], rtol=0, atol=1e-6)


def test_a_decision_is_the_integral_that_the_docstring_states():
    prior = Prior()
    levels = np.exp(prior.decision + prior.decision_spread * np.linspace(-2.5, 2.5, DECISIONS))
    features = prior.features([node(s) for s in (0.03, 0.5, 2.0, 40.0)], node(100.0), 1.0)
    shares = np.exp(-(np.linspace(-2.5, 2.5, DECISIONS) ** 2) / 2)
    deviations = np.sqrt(prior.decision_variance * shares / shares.sum())
    for row, s in enumerate((0.03, 0.5, 2.0, 40.0)):
        for j, a in enumerate(levels):
            # In v = 1/u, the integral over u from s to infinity is one over (0, 1/s).
            integral = quad(lambda v, a=a: 1 / (1 + (1 / (v * a)) ** 4), 0, 1 / s, epsabs=1e-13, limit=200)[0]
            state = features.state[row, SCALES + 1 + j] * math.hypot(1, s)  # after the scales and the common one
            assert state == pytest.approx(deviations[j] * s * integral, abs=1e-9)


def test_the_series_of_a_decision_is_exact_to_round_off_where_it_ends():
    z = np.nextafter(SMALL, 0)
    by_parts = quad(lambda w: w**4 / (1 + w**4), 0, z, epsabs=0, epsrel=2e-14)[0]
    assert float(_decided(np.array(z))) == pytest.approx(by_parts, rel=1e-13)


@pytest.mark.parametrize(("distance", "deviation"), [(0.1, 2.0), (0.5, 2.0), (1.0, 0.5), (2.0, 0.125), (math.inf, 0.0)])
def test_the_common_scale_weighs_no_more_than_the_mean(distance, deviation):
    """Its deviation is common/h^2, at most that of the constant; at the data its trajectory ends at its scale."""
    prior = Prior(mean=2.0, common=0.5, common_scale=0.7)
    features = prior.features([Node(0.0, 1.0, 0.0)], node(10.0), distance)
    assert features.state[0, SCALES] == pytest.approx(deviation * 0.7)


def test_the_series_of_a_decision_is_that_of_the_integral():
    z = np.array([0.0, 1e-6, 1e-3, 0.01, 0.05])
    np.testing.assert_allclose(_decided(z), z**5 / 5 - z**9 / 9 + z**13 / 13, rtol=1e-13, atol=0)


def test_the_variances_of_all_gaussian_scales_add_up_to_one():
    scales = np.exp(-2.0 + 1.5 * np.linspace(-2.5, 2.5, SCALES))
    state = Prior(scale=-2.0, scale_spread=1.5).features([Node(0.0, 1.0, 0.0)], node(10.0), 1.0).state[0, :SCALES]
    assert ((state / scales) ** 2).sum() == pytest.approx(1)


def test_errors_of_a_network_are_bounded_above_a_level():
    """A bump at the level b is 1/sqrt(1 + (b/bounded)^2) as high; b runs from 1e-3 in even ratios."""
    bounded, free = (
        Prior(error_bounded=level).features([node(0.7)], node(157.0), 1.0).state[0, SCALES + 1 + DECISIONS : -1]
        for level in (30.0, 1e15)
    )
    levels = 30 * np.sqrt((free / bounded) ** 2 - 1)
    np.testing.assert_allclose(np.diff(np.log(levels[-8:])), math.log(levels[-1] / levels[-8]) / 7, rtol=1e-6)
    assert levels[-1] > 200


@pytest.mark.parametrize(("distance", "factor"), [(math.inf, 1), (0.55, 1), (0.55 / 1.2, 1.2**2.5), (0.4, 2), (0, 2)])
@pytest.mark.parametrize("bounded", [False, True])
def test_errors_of_a_network_are_larger_between_close_nodes_unless_they_are_bounded(distance, factor, bounded):
    prior = Prior().bounded() if bounded else Prior()
    far, found = (
        prior.features([node(0.7)], node(157.0), h).state[0, SCALES + 1 + DECISIONS : -1]
        for h in (1.0, distance or 1e-9)
    )
    np.testing.assert_allclose(found, far * (1 if bounded else factor), rtol=1e-12)


def test_one_node_lies_infinitely_far_from_any_other():
    assert mean_distance([node(1.0)]) == mean_distance([Node(1.0, 0.0, 1.0), node(1.0)]) == math.inf
    assert mean_distance([Node(1.0, 0.0, 1.0), node(8.0), node(4.0), node(2.0)]) == pytest.approx(math.log(2))


def test_features_are_finite_at_the_data_and_at_pure_noise():
    features = Prior().features([Node(0.0, 1.0, 0.0), Node(1.0, 0.0, 1.0)], Node(1.0, 0.0, 1.0), math.inf)
    assert all(np.isfinite(part).all() for part in features)
    # At the data the prediction is the state, and answers to it one to one.
    np.testing.assert_allclose(features.data[0], features.state[0], atol=1e-15)
    np.testing.assert_allclose(features.response[0], 1.0)
    np.testing.assert_allclose(features.response[1], 0.0)


# --- the steps ------------------------------------------------------------------------------------------------------

ONE_SCALE = Prior(math.log(0.6), 1e-9, decision_variance=0.0, error=0.0, noise=1e-9, mean=0.0, common=0.0)


@pytest.mark.parametrize("calls", [1, 2, 5])
@pytest.mark.parametrize("path", [TABLE, odediff.VE(), odediff.RectifiedFlow()], ids=lambda path: type(path).__name__)
def test_data_that_the_prior_knows_is_solved_exactly(path, calls):
    data = Gaussian(mean=0.0, deviation=0.6)
    solver = GPMultistep(prior=ONE_SCALE)
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start, end = path.node(path.start), path.node(0.0)
    x = noise * math.hypot(start.alpha, start.sigma)
    found = odediff.sample(exact_model(data, path, "x0"), noise=x, solver=solver, nfe=calls)
    torch.testing.assert_close(found, data.flow(start, end, x), rtol=1e-7, atol=1e-7)


def test_one_prediction_tells_an_unknown_mean():
    data = Gaussian(mean=0.5, deviation=0.6)
    solver = GPMultistep(prior=replace(ONE_SCALE, mean=3.0))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = odediff.sample(exact_model(data, TABLE), noise=x, solver=solver, nfe=2)
    exact = data.flow(TABLE.node(TABLE.start), TABLE.node(0.0), x)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)


def test_a_step_is_the_regression_on_draws_of_the_process():
    """Sampled instead of solved: trajectories with random coefficients, predicted by ordinary least squares."""
    prior, levels = Prior(), [30.0, 6.0, 1.5, 1.1, 0.4, 0.1]
    nodes = [node(s) for s in levels]
    denoised = node(0.06)
    plans = [planned(prior, 3, tuple(nodes), (), end)[0] for end in (None, denoised)]
    distance = math.log(levels[0] / levels[-1]) / 5
    features = prior.features(nodes, nodes[0], distance)
    random = np.random.default_rng(0)
    draws = random.standard_normal((400_000, features.state.shape[1]))
    true, data = draws @ features.state.T, draws @ features.data.T
    goals = np.stack([true[:, 1:], true[:, 1:]])
    goals[1, :, -1] = draws @ prior.features([denoised], nodes[0], distance).data[0]
    estimate, predictions = true[:, 0], []
    orthogonal, triangular = np.linalg.qr(draws)
    for i, moves in enumerate(zip(*plans, strict=True)):
        # The coefficients' own share of the error, and the mean response to errors that past noise made.
        error = estimate - true[:, i]
        explained = np.linalg.solve(triangular, orthogonal.T @ error)
        seen = data[:, i] + draws @ (features.response[i] * explained)
        seen += features.mean_response[i] * (error - draws @ explained)
        distance = math.inf if i == 0 else math.log(levels[i - 1] / levels[i])
        share = max(prior.floor, min(1, distance / prior.spacing) ** prior.smoothness)
        seen += prior.noise * share * random.standard_normal(len(draws))
        predictions = [seen, *predictions][:3]
        basis = np.stack([estimate, *predictions], axis=1)
        fits = (basis @ np.linalg.lstsq(basis, goals[..., i].T, rcond=None)[0]).T
        for move, goal, fitted in zip(moves, goals[..., i], fits, strict=True):
            found = basis @ np.array([move.ratio, *move.weights])
            # Coefficients of nearly collinear columns scatter; the mean square error that they minimise does not.
            assert (found - goal).std() == pytest.approx((fitted - goal).std(), rel=2e-3)
        if i:
            fitted = basis @ np.linalg.lstsq(basis, true[:, i], rcond=None)[0]
            found = basis @ np.array(moves[0].here)
            assert (found - true[:, i]).std() == pytest.approx((fitted - true[:, i]).std(), rel=2e-3)
        estimate = basis @ np.array([moves[0].ratio, *moves[0].weights])


class Known(ExactODE):
    """An exact problem that is known down to a level only, as a network with a table is."""

    def __init__(self, distribution, end):
        super().__init__(distribution)
        self.end = self.node(math.atan(end))


@pytest.mark.parametrize("steps", [4, 8, 12, 20, 30, 50])
def test_below_what_is_known_the_data_are_what_denoising_gives(steps):
    """At the end of what is known and not at the last node, from which they are predicted."""
    data, end = standard("mixture_16").distribution, 0.05
    x = 30 * torch.randn(64, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = np.geomspace(30, 0.06, steps)
    times = [math.atan(s) for s in levels]
    x *= math.cos(times[0])
    problem = Known(data, end)
    fine = [*times[:1], problem.end.t]
    there = solve(problem, AdaptiveAdams(rtol=1e-9), x, fine, closing=None).x
    truth = problem.predict(problem.end, there).x0
    state = solve(problem, AdaptiveAdams(rtol=1e-9), x, [times[0], 0.0], closing=None).x

    def error(ode, target):
        return float((solve(ode, GPMultistep(), x, [*times, 0.0], closing=None).x - target).norm(dim=1).median())

    assert error(problem, truth) < 1.05 * error(ExactODE(data), state)


def test_a_last_node_below_what_is_known_is_denoised():
    data = standard("mixture_16").distribution
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = [math.atan(s) for s in np.geomspace(30, 0.02, 40)]
    found, same = (
        solve(Known(data, 0.05), GPMultistep(), x, [*times, 0.0], closing=rule) for rule in (None, "denoise")
    )
    torch.testing.assert_close(found.x, same.x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ulps", [-3, 0, 3])
def test_a_last_node_is_at_the_end_but_for_round_off(ulps):
    problem = Known(standard("mixture_16").distribution, 0.05)
    last = problem.end.t * (1 + ulps * 2.0**-52)
    times = [*(math.atan(s) for s in np.geomspace(30, 0.06, 39)), last, 0.0]
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, same = (solve(problem, GPMultistep(), x, times, closing=rule) for rule in (None, "denoise"))
    torch.testing.assert_close(found.x, same.x, rtol=0, atol=1e-12)


def test_a_network_with_a_table_is_known_to_its_first_entry():
    model = odediff.Model(lambda x, time: x, TABLE)
    assert odediff.probability_flow(model).end == TABLE.node(TABLE.end)
    assert odediff.probability_flow(replace(model, continuous=True)).end is None
    assert counted(odediff.probability_flow(model), 1, None).end == TABLE.node(TABLE.end)


def test_a_prior_is_named_by_what_was_changed():
    assert repr(GPMultistep()) == "GPMultistep(points=None, prior=Prior())"
    assert eval(repr(Prior(noise=0.1, mean=2.0))) == Prior(noise=0.1, mean=2.0)


@pytest.mark.parametrize("name", [field.name for field in fields(Prior)])
def test_what_the_prior_divides_by_is_positive_and_only_logarithms_may_be_negative(name):
    for value, refused in (
        (0.0, name in ("error_width", "error_bounded", "spacing", "common_scale")),
        (-1.0, name not in ("scale", "decision")),
        (math.inf, True),
    ):
        with pytest.raises(ValueError, match=f"Prior: {name}=") if refused else nullcontext():
            Prior(**{name: value})


def test_predictions_at_close_nodes_share_their_errors_down_to_a_floor():
    prior, here = Prior(noise=0.2, spacing=0.5, smoothness=2.0, floor=0.1), node(1.0)
    found = [prior.own_noise(here, before and node(math.exp(before))) for before in (None, 2.0, -0.5, 0.25, 0.1, 1e-9)]
    assert found == pytest.approx([0.2, 0.2, 0.2, 0.2 / 4, 0.02, 0.02])


def test_the_coefficients_of_a_grid_are_computed_once():
    nodes = tuple(TABLE.nodes(odediff.grid.plateau(TABLE, 11).tolist()))
    assert planned(Prior(), 4, nodes, ()) is planned(Prior(), 4, nodes, ())


@pytest.mark.parametrize(("steps", "points"), [(37, 4), (38, 5)])
def test_close_nodes_are_worth_a_fifth_prediction(steps, points):
    problem, rows = standard("mixture_16"), range(4)
    ode, x = odediff.probability_flow(problem.model(rows)), problem.noise(0, rows)
    times = odediff.grid.plateau(problem.path, steps)
    found, same = (solve(ode, GPMultistep(n), x, times, closing=None) for n in (None, points))
    assert torch.equal(found.x, same.x)


def test_a_short_grid_takes_what_it_reads_of_a_longer_history():
    problem, rows = standard("mixture_16"), range(4)
    ode, x = odediff.probability_flow(problem.model(rows)), problem.noise(0, rows)
    levels = np.geomspace(150, 1.1 * LARGEST_S, 51)
    times = [float(problem.path.start), *(float(problem.path.time(-math.log(s))) for s in levels)]
    before = solve(ode, GPMultistep(), x, times[:-5], closing=None)
    after = solve(ode, GPMultistep(), before.x, times[-6:], closing=None, state=before.state)
    assert (len(before.state.predictions), len(after.state.predictions)) == (4, 3)
    exact = solve(ode, AdaptiveAdams(rtol=1e-7), x.double(), (times[0], times[-1]), closing=None).x
    torch.testing.assert_close(after.x.double(), exact, rtol=0, atol=0.01)


@pytest.mark.parametrize("split", [1, 3, 15, 30, 48])
def test_a_solve_goes_on_from_any_node_of_a_fine_grid(split):
    problem, rows = standard("mixture_16"), range(16)
    ode, x = odediff.probability_flow(problem.model(rows)), problem.noise(0, rows)
    times, exact = odediff.grid.plateau(problem.path, 50), problem.reference(x).x
    before = solve(ode, GPMultistep(), x, times[: split + 1], closing=None)
    after = solve(ode, GPMultistep(), before.x, times[split:], closing=None, state=before.state)
    assert before.stats.nfe + after.stats.nfe == 49
    torch.testing.assert_close(after.x, exact, rtol=0, atol=5e-3)


# --- close nodes ----------------------------------------------------------------------------------------------------


def handed_over(ode, nodes, trajectory, first):
    """What Adams' formulas solve from node ``first`` on: the state that the regression makes of its own, corrected by
    the prediction there, which remains that of the state before.
    """
    here = planned(Prior(), 5 if len(nodes) > 38 else 4, tuple(nodes), ())[0][first].here
    predictions = [ode.predict(nodes[i], trajectory[i]).x0 for i in range(first, first - len(here) + 1, -1)]

    class Predicted(odediff.ProbabilityFlow):
        def predict(self, node, x):
            return super().predict(node, trajectory[first] if node == nodes[first] else x)

    begin = combine((here[0], trajectory[first]), *zip(here[1:], predictions, strict=True))
    return Predicted(ode.model), begin


@pytest.mark.parametrize(("steps", "order"), [(25, 5), (30, 5), (31, 6), (51, 6)])
def test_between_close_nodes_the_steps_are_those_of_adams(steps, order):
    """From s = 12 to 0.1, with three slopes known that the regression met on its way, they are that class's steps."""
    problem, rows = standard("mixture_16"), range(8)
    ode, x = odediff.probability_flow(problem.model(rows)), problem.noise(0, rows).double()
    times = odediff.grid.plateau(problem.path, steps)
    nodes = ode.nodes(times.tolist())
    first, near = (next(i for i, n in enumerate(nodes) if n.s <= level) for level in (LARGEST_S, NEAR))
    whole = solve(ode, GPMultistep(), x, times, closing=None, trajectory=True)
    past = [(nodes[i], whole.trajectory[i]) for i in range(first - 1, first - 4, -1)]
    handed, begin = handed_over(ode, nodes, whole.trajectory, first)
    adams = ExponentialAdams(order, Rotation(0.4), "asinh", corrector=True)
    same = solve(handed, adams, begin, times[first : near + 1], closing=None, past=past)
    torch.testing.assert_close(whole.trajectory[near], same.x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("steps", "order"), [(25, 5), (31, 6)])
def test_near_the_data_steps_read_two_slopes_and_correct_by_three(steps, order):
    nodes = tuple(TABLE.nodes(odediff.grid.plateau(TABLE, steps).tolist()))
    adams = stretch(nodes, (False, *[True] * (steps - 1)), ())
    near = next(i for i, n in enumerate(nodes) if n.s < NEAR)
    assert nodes[adams.first].s <= LARGEST_S < nodes[adams.first - 1].s
    assert [len(formula.weights) for formula in adams.formulas[:2]] == [4, 5]
    assert {len(formula.weights) for formula in adams.formulas[2 : near - adams.first]} == {order}
    assert {len(formula.weights) for formula in adams.formulas[near - adams.first + 2 :]} == {3}


@pytest.mark.parametrize(("distance", "weights"), [(0.3, 4), (0.4, 3)])
def test_between_nodes_that_are_close_in_log_s_they_read_one_more(distance, weights):
    levels = [*np.geomspace(12.0, 0.1, 40), *0.1 * np.exp(-distance * np.arange(1, 6)), 0.0]
    adams = stretch(tuple(node(s) for s in levels), (True,) * 45, ())
    assert {len(formula.weights) for formula in adams.formulas[-4:]} == {weights}


@pytest.mark.parametrize(("end", "weights"), [(0.12, 1), (0.11, 5)])
def test_denoising_at_the_last_node_reads_its_slope_alone(end, weights):
    levels = tuple(node(s) for s in [*np.geomspace(12.0, 0.12, 40), 0.0])
    adams = stretch(levels, (True,) * 40, (), denoised=levels[-2] if end == 0.12 else node(end))
    assert len(adams.formulas[-1].weights) == weights


@pytest.mark.parametrize("seen", [2, 3])
def test_denoising_reads_the_slope_off_a_polynomial_in_q(seen):
    line, nodes, end = Rotation(0.4), [node(0.03), node(0.04), node(0.055)][:seen], node(0.025)
    places = np.array([line.q(n) for n in nodes])
    denoised = _denoised(Formula(1.0, ()), nodes, end)
    for power in range(seen + 1):
        x0 = (0.4 / line.scale(end)) ** 2 * end.alpha * 0.7 - 0.4 * end.sigma / line.scale(end) * line.q(end) ** power
        found = denoised.ratio * 0.7 + np.dot(denoised.weights, places**power)
        assert (abs(found - x0) < 1e-12) == (power < seen)


@pytest.mark.parametrize(
    ("to_data", "calls", "order"),
    [(True, 18, 0), (True, 19, 5), (True, 29, 5), (True, 30, 6), (False, 9, 0), (False, 10, 3)],
)
def test_nodes_are_close_from_so_many_calls_on(to_data, calls, order):
    """As the docstring has it, of the plateau on DDPM's table."""
    times, silent = odediff.grid.plateau(TABLE, calls + 1), (False, *[True] * calls)
    if not to_data:
        times, silent = odediff.grid.plateau(TABLE, calls + 2, end=TABLE.end)[:-1].flip(0), silent[::-1]
    formulas = stretch(tuple(TABLE.nodes(times.tolist())), silent, ()).formulas
    assert max((len(formula.weights) for formula in formulas), default=0) == order


@pytest.mark.parametrize("times", [[0.003, 0.002, 0.001, 0.0], [0.002, 0.001, 0.0], [0.003, 0.002, 0.0]])
def test_a_few_close_steps_down_to_the_data_of_a_table_are_the_regressions(times):
    data, x = Gaussian(0.3, 0.5), draws(4, 3)
    model = replace(exact_model(data, TABLE), continuous=False)
    found = odediff.sample(model, noise=x, solver=GPMultistep(), grid=torch.tensor(times, dtype=torch.float64))
    torch.testing.assert_close(found, data.flow(TABLE.node(times[0]), TABLE.node(0.0), x), rtol=0, atol=1e-3)


@pytest.mark.parametrize("steps", [21, 31, 51])
def test_towards_the_noise_all_steps_are_those_of_adams_but_the_one_without_a_call(steps):
    problem, rows = standard("mixture_16"), range(8)
    ode, x = odediff.probability_flow(problem.model(rows)), problem.distribution.sample(8, 0)
    times = odediff.grid.plateau(problem.path, steps).flip(0)
    found = solve(ode, GPMultistep(), x, times, closing=None, trajectory=True)
    adams = ExponentialAdams(3, Rotation(0.4), "asinh", corrector=True)
    same = solve(ode, adams, x, times[:-1], closing=None)
    torch.testing.assert_close(found.trajectory[-2], same.x, rtol=0, atol=1e-12)
    assert found.stats.nfe == steps - 1


@pytest.mark.parametrize("steps", [16, 18, 20, 21, 25, 31, 51])
@pytest.mark.parametrize(
    "path", [TABLE, odediff.VPTable.scaled_linear(), odediff.VE(), odediff.RectifiedFlow()], ids=repr
)
def test_close_nodes_make_both_ways_accurate(path, steps):
    data = standard("mixture_16").distribution
    model = replace(exact_model(data, path, "flow"), continuous=True)
    ode = odediff.probability_flow(model)
    times = odediff.grid.plateau(path, steps)
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * math.hypot(path.node(path.start).sigma, path.node(path.start).alpha)
    down = solve(ode, GPMultistep(), x, times, closing=None).x
    exact = solve(ode, AdaptiveAdams(rtol=1e-9), x, (float(times[0]), 0.0), closing=None).x
    assert float((down - exact).norm(dim=1).median()) < 0.2 * (10 / steps) ** 3
    up = solve(ode, GPMultistep(), exact, times.flip(0), closing=None).x
    assert float(((up - x) / x.std()).norm(dim=1).median()) < 1.2 * (10 / steps) ** 2


def test_a_history_at_low_levels_serves_close_nodes_at_once():
    problem, rows = standard("mixture_16"), range(8)
    ode, x = odediff.probability_flow(problem.model(rows)), problem.noise(0, rows).double()
    times = odediff.grid.plateau(problem.path, 31)
    nodes = ode.nodes(times.tolist())
    exact = solve(ode, AdaptiveAdams(rtol=1e-9), x, times, closing=None, trajectory=True).trajectory
    past = [(nodes[i], exact[i]) for i in range(19, 16, -1)]
    found = solve(ode, GPMultistep(), exact[20], times[20:26], closing=None, past=past)
    adams = ExponentialAdams(6, Rotation(0.4), "asinh", corrector=True)
    same = solve(ode, adams, exact[20], times[20:26], closing=None, past=past)
    assert found.stats.nfe == same.stats.nfe == 5 + 3
    assert found.nodes[-2].s > NEAR
    torch.testing.assert_close(found.x, same.x, rtol=0, atol=1e-12)


def test_a_history_serves_close_nodes_where_the_regression_reads_less_of_it():
    problem, rows = standard("mixture_16"), range(8)
    ode, x = odediff.probability_flow(problem.model(rows)), problem.noise(0, rows).double()
    times = odediff.grid.plateau(problem.path, 31)
    nodes = ode.nodes(times.tolist())
    exact = solve(ode, AdaptiveAdams(rtol=1e-6), x, times, closing=None, trajectory=True).trajectory
    past = [(nodes[i], exact[i]) for i in range(19, 16, -1)]
    few, many = (solve(ode, GPMultistep(n), exact[20], times[20:26], closing=None, past=past) for n in (2, 4))
    assert few.stats.nfe == many.stats.nfe == 5 + 3
    torch.testing.assert_close(few.x, many.x, rtol=0, atol=1e-12)


def test_slopes_are_kept_with_their_own_nodes_where_the_last_step_makes_no_call():
    problem, rows = standard("mixture_16"), range(2)
    ode, x = odediff.probability_flow(problem.model(rows)), problem.distribution.sample(2, 0)
    times = odediff.grid.plateau(problem.path, 31).flip(0)
    state = solve(ode, GPMultistep(), x, times, closing=None).state
    assert [node.t for node in state.nodes] == times.tolist()[-3 : -3 - len(state.slopes) : -1]


def test_a_first_step_without_a_call_leaves_no_slope():
    problem, rows = standard("mixture_16"), range(8)
    ode, x = odediff.probability_flow(problem.model(rows)), problem.noise(0, rows).double()
    levels = [80.0, *np.geomspace(10, 0.02, 30)]
    times = [float(problem.path.start), *(float(problem.path.time(-math.log(s))) for s in levels), 0.0]
    found = solve(ode, GPMultistep(), x, times, closing=None, trajectory=True)
    nodes = ode.nodes(times)
    past = [(nodes[i], found.trajectory[i]) for i in (3, 2, 1)]
    adams = ExponentialAdams(6, Rotation(0.4), "asinh", corrector=True)
    handed, begin = handed_over(ode, nodes, found.trajectory, 4)
    same = solve(handed, adams, begin, times[4:20], closing=None, past=past)
    assert found.nodes[18].s > NEAR
    torch.testing.assert_close(found.trajectory[19], same.x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("ascending", "steps", "holds"), [(False, 25, 7), (False, 31, 7), (True, 21, 3), (True, 31, 3)]
)
def test_close_nodes_hold_what_they_read_and_two_states(ascending, steps, holds):
    """Where it hands over: four predictions and, of the nodes before, three slopes; towards the noise three slopes."""
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ode = odediff.probability_flow(odediff.Model(lambda x, time: 0.1 * x, TABLE))
    times = odediff.grid.plateau(TABLE, steps)[:-1]
    with torch.no_grad(), LiveMemory() as memory:
        solve(ode, GPMultistep(), x, times.flip(0) if ascending else times, closing=None)
    assert memory.peak / x.untyped_storage().nbytes() < holds + 2.01


def test_pure_noise_is_reached_along_the_newest_slope():
    path, data = odediff.RectifiedFlow(), Gaussian(mean=0.5, deviation=0.6)
    model = exact_model(data, path, "flow")
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ode, times = odediff.probability_flow(model), odediff.grid.uniform_t(path, 60).flip(0)
    found = solve(ode, GPMultistep(), x, times, closing=None)
    exact = data.flow(path.node(0.0), path.node(1.0), x)
    assert found.stats.nfe == 60
    torch.testing.assert_close(found.x, exact, rtol=0, atol=0.02)


# --- as the default of sampling and inversion -----------------------------------------------------------------------


@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 5, 10, 50])
@pytest.mark.parametrize(
    "path",
    [
        TABLE,
        odediff.VPTable.scaled_linear(),
        odediff.VE(),
        odediff.RectifiedFlow(),
        odediff.VPCosine(),
        odediff.SubVP(),
    ],
    ids=repr,
)
def test_a_number_of_calls_is_spent_to_the_last(path, nfe):
    model = exact_model(Gaussian(mean=0.5, deviation=0.6), path, "x0")
    found = odediff.sample(model, (3, 2), nfe=nfe, return_solution=True, dtype=torch.float64)
    assert found.stats.nfe == nfe
    assert torch.isfinite(found.x).all()
    # No call is made where one tells nothing, nor below the last node.
    assert sum(n.s > FAR for n in found.nodes[1:]) <= 1 + nfe


def test_more_calls_are_better_from_one_to_fifty():
    problem = standard("mixture_16")
    x = problem.noise(0, range(64))
    exact = problem.reference(x).x
    errors = []
    for nfe in (1, 2, 4, 8, 16, 32):
        end = problem.solve(GPMultistep(), 0, range(64), grid=None, nfe=nfe).x
        errors.append(float((end - exact).norm(dim=1).median()))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    "path", [odediff.RectifiedFlow(), odediff.RectifiedFlow(3.0), odediff.VPCosine(start=1.0)], ids=repr
)
@pytest.mark.parametrize("nfe", [30, 50])
def test_what_the_first_step_misses_of_a_mean_is_made_good(path, nfe):
    # Where s is infinite at the start the first node lies at s = 156 to 213, and the state there is off by mean/s.
    data = Gaussian(mean=3.0, deviation=1.0)
    start, x = path.node(path.start), draws(16, 8)
    found = odediff.sample(exact_model(data, path, "v"), noise=x, nfe=nfe)
    error = found - data.flow(start, path.node(0.0), x)
    assert float(error.square().mean().sqrt()) < 2e-4


@pytest.mark.parametrize("nfe", [8, 12, 20])
def test_a_schedule_that_begins_in_little_noise_is_solved_better_than_by_a_polynomial(nfe):
    model = exact_model(standard("mixture_16_held_out").distribution, odediff.VE(0.002, 3.0))
    noise = 3 * draws(64, 16)
    exact = odediff.sample(model, noise=noise, rtol=1e-9)
    ours, others = (
        float((odediff.sample(model, noise=noise, nfe=nfe, solver=solver) - exact).norm(dim=1).median())
        for solver in (None, DPMpp(2))
    )
    assert ours < 0.3 * others


@pytest.mark.parametrize("name", ["mixture_2_held_out", "mixture_16_held_out", "mixture_64_held_out"])
@pytest.mark.parametrize("nfe", [6, 10, 15])
def test_the_default_leaves_less_than_the_usual_choices_on_problems_it_was_not_chosen_on(name, nfe):
    problem = standard(name)
    rows = range(128)
    exact = problem.reference(problem.noise(0, rows)).x

    def median(solver, grid):
        return float((problem.solve(solver, 0, rows, grid=grid, nfe=nfe).x - exact).norm(dim=1).median())

    grids = (odediff.grid.karras, odediff.grid.log_snr, odediff.grid.uniform_t)
    others = min(median(solver, grid) for solver in (DDIM(), DPMpp(2), DPMpp(3), UniPC()) for grid in grids)
    assert median(GPMultistep(), None) < 0.7 * others


# --- guidance -------------------------------------------------------------------------------------------------------


def guided(scale, form="v") -> odediff.Model:
    """tanh of the state, and of half of it, as the passes with and without the condition."""
    return odediff.Model(
        lambda x, t, size: torch.tanh(size[:, None] * x), TABLE, form, {"size": 1.0}, {"size": 0.5}, guidance=scale
    )


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 7.5])
def test_guidance_amplifies_the_errors_of_two_passes(scale):
    assert guided(scale).amplification == pytest.approx(math.sqrt(scale**2 + (1 - scale) ** 2))
    ode = probability_flow(guided(scale))
    times = odediff.grid.plateau(TABLE, 12)
    found = solve(ode, GPMultistep(), draws(5, 3), times, closing=None).x
    strong = Prior(error=Prior().error * ode.amplification, guidance=scale)
    ode.amplification = 1.0
    expected = solve(ode, GPMultistep(prior=strong if scale > 2.6 else Prior()), draws(5, 3), times, closing=None).x
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("factor", "w"), [(0.5, 1.0), (1.0, 1.0), (math.sqrt(5), 2.0), (math.hypot(7.5, 6.5), 7.5)])
def test_an_amplified_process_knows_the_guidance(factor, w):
    prior = Prior().amplified(factor)
    assert (prior.guidance, prior.error) == pytest.approx((w, factor * Prior().error))


@pytest.mark.parametrize("w", [1.0, 3.0, 7.5])
@pytest.mark.parametrize("level", [0.05, 3.0, 20.0])
@pytest.mark.parametrize(("distance", "share"), [(0.3, 1.0), (1.1, 0.25), (math.inf, 0.0)])
def test_a_guided_prediction_responds_to_the_state_as_that_of_gaussian_data(w, level, distance, share):
    here = TABLE.node_at(-math.log(level))

    def response(prior):
        features = prior.features([here], TABLE.node(1.0), distance)
        return np.append(features.response[0], features.mean_response[0]) / math.hypot(here.alpha, here.sigma)

    x = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    of_class, of_all = (Gaussian(mean, size).predict(here, x).x0 for mean, size in ((0.4, 2.5), (0.0, 4.0)))
    ((w - 1) * (of_class - of_all)).backward()
    expected = response(Prior()) + share * float(x.grad)
    np.testing.assert_allclose(response(replace(Prior(), guidance=w)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("scale", "steep"), [(1.0, False), (2.0, False), (3.0, True), (7.5, True)])
def test_strong_guidance_keeps_adams_from_the_way_to_the_data_alone(scale, steep):
    ode, times = probability_flow(guided(scale, "epsilon")), odediff.grid.plateau(TABLE, 24)
    down = GPMultistep().start(ode, ode.nodes(times.tolist()), draws(2, 3))
    up = GPMultistep().start(ode, ode.nodes(times.flip(0)[1:].tolist()), draws(2, 3))
    assert all(move.belief for move in down.moves) == steep
    assert not all(move.belief for move in up.moves)


@pytest.mark.parametrize("form", ["epsilon", "score", "x0", "v", "flow"])
def test_a_network_of_bounded_error_has_a_process_of_its_own(form):
    bounded = form in ("x0", "v", "flow")
    ode, times = probability_flow(guided(1.0, form)), odediff.grid.plateau(TABLE, 12)
    found = solve(ode, GPMultistep(), draws(5, 3), times, closing=None).x
    ode.bounded_error = False
    prior = Prior(error_bounded=3.0) if bounded else Prior()
    assert torch.equal(found, solve(ode, GPMultistep(prior=prior), draws(5, 3), times, closing=None).x)


@pytest.mark.parametrize(("steps", "form", "order"), [(24, "epsilon", 5), (24, "v", 0), (31, "v", 5), (40, "v", 6)])
def test_a_network_of_bounded_error_is_handed_over_between_closer_nodes(steps, form, order):
    ode = probability_flow(guided(1.0, form))
    run = GPMultistep().start(ode, ode.nodes(odediff.grid.plateau(TABLE, steps).tolist()), draws(2, 3))
    adams = [len(move.weights) for move in run.moves if not move.belief]
    assert max(adams, default=0) == order


@pytest.mark.parametrize("nfe", [24, 30, 50])
def test_between_close_nodes_a_large_smooth_error_of_eps_is_followed(nfe):
    data, direction = Gaussian(mean=0.3, deviation=0.7), torch.linspace(-1, 1, 8, dtype=torch.float64)
    exact = exact_model(data, TABLE)

    def network(x, t):
        level = torch.from_numpy(TABLE.node(t.numpy()).s).log()[:, None]
        return exact.network(x, t) + 0.03 * torch.sin(1.3 * level + 3 * direction)

    model = replace(exact, network=network, continuous=False)
    noise = draws(32, 8)
    truth = odediff.sample(model, noise=noise, solver=RK4(Rotation(0.5)), grid=odediff.grid.log_snr, steps=300)
    default, small = (
        float((odediff.sample(model, noise=noise, nfe=nfe, solver=solver) - truth).square().mean().sqrt())
        for solver in (None, GPMultistep(prior=Prior(close_error=0.008)))
    )
    assert default < 0.75 * small


def test_a_sample_does_not_depend_on_the_guidance_of_its_mates():
    x = draws(3, 3)
    first, second = (
        odediff.sample(guided(torch.tensor([2.0, *others])), noise=x, steps=8) for others in ([1.0, 3.0], [7.5, 0.0])
    )
    assert torch.equal(first[0], second[0])


def test_strong_guidance_of_a_network_is_followed():
    model = odediff.zoo.fashion_mnist().condition(label=torch.arange(4), guidance=7.5)
    ode, x = probability_flow(model), torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    exact = odediff.sample(model, noise=x, solver=DPMpp(2), grid=odediff.grid.karras, steps=160)

    def error(steps: int, amplification: float) -> float:
        ode.amplification = amplification
        end = solve(ode, GPMultistep(), x, odediff.grid.plateau(ode.model.path, steps), closing=None).x
        return float((end - exact).square().mean().sqrt())

    for steps in (6, 20):
        assert error(steps, model.amplification) < 0.8 * error(steps, 1.0)


def test_the_flipped_grid_inverts():
    model = odediff.zoo.fashion_mnist()
    images, labels = odediff.zoo.test_images()
    model = model.condition(label=labels[:4])
    exact = odediff.encode(model, images[:4], solver=RK4(Rotation()), grid=odediff.grid.log_snr, nfe=160)
    codes = [odediff.encode(model, images[:4], nfe=n) for n in (5, 10, 20)]
    assert [code.stats.nfe for code in codes] == [5, 10, 20]
    errors = [float((code.x - exact.x).square().mean().sqrt()) for code in codes]
    assert errors == sorted(errors, reverse=True)
    again = odediff.decode(model, codes[1])
    assert float((again - images[:4]).square().mean().sqrt()) < 0.05
    # Karras's nodes with the method that was made for them: twice as far from the noise at the same price.
    usual = odediff.encode(model, images[:4], solver=Heun(Noise()), grid=odediff.grid.karras, nfe=10)
    assert errors[1] < 0.5 * float((usual.x - exact.x).square().mean().sqrt())


def test_the_default_steps_aside_for_schedules_that_do_not_begin_in_noise():
    assert default_solver(odediff.VE(0.002, 3.0)) == GPMultistep()
    path = odediff.VE(0.002, 1.5)
    with pytest.warns(UserWarning, match=r"begins at sigma/alpha = 1.5.*DPMpp\(order=2"):
        assert default_solver(path) == DPMpp(2)
    with pytest.warns(UserWarning, match="pass a solver"):
        odediff.sample(exact_model(Gaussian(), path), (2, 3), nfe=5)


def test_what_is_not_said_depends_on_the_solver():
    assert default_solver(TABLE) == GPMultistep()
    assert (default_grid(GPMultistep()), default_grid(DDIM())) == (odediff.grid.plateau, odediff.grid.karras)
    assert (fixed_closing(GPMultistep(), "auto"), fixed_closing(DDIM(), "auto")) == (None, "denoise")
    assert fixed_closing(GPMultistep(), "denoise") == "denoise"


def test_nodes_of_single_samples_are_refused():
    ode, x = ExactODE(Gaussian()), draws(2, 3)
    with pytest.raises(TypeError, match="plans one grid for all samples; give each node one time"):
        GPMultistep().start(ode, [ode.node(np.array(times)) for times in ([1.3, 1.2], [0.5, 0.4])], x)


def test_bad_input_is_named_before_the_first_call():
    def never(x, time):
        raise AssertionError("called")

    model = odediff.Model(never, TABLE)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match=f"x has dtype {dtype}.*float32"):
            odediff.sample(model, (2, 3), nfe=5, dtype=dtype)
    for nfe in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="nfe="):
            odediff.sample(model, (2, 3), nfe=nfe)
    for points in (0, 9, 2.5):
        with pytest.raises(ValueError, match="points="):
            GPMultistep(points=points)
    with pytest.raises(TypeError, match=r"prior=.*solvers\.Prior\(\)"):
        GPMultistep(prior=3.0)
    with pytest.raises(ValueError, match="past, state"):
        solve(
            odediff.probability_flow(exact_model(Gaussian(), TABLE)),
            GPMultistep(),
            torch.zeros(2, 3),
            [0.5, 0.4],
            past=[(TABLE.node(0.6), torch.zeros(2, 3))],
            state=object(),
        )
