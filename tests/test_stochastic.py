"""Stochastic samplers against the formulas of their papers, with the same draws, and on every kind of path."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from odediff.schedule import VE, RectifiedFlow, VPLinear
from solvers import (
    DDIM,
    Ancestral,
    Data,
    DPMFast,
    DPMpp,
    DPMSolver2,
    DPMSolverSDE,
    EDMHeun,
    EulerMaruyama,
    Heun,
    Noise,
    NoiseStream,
    Rotation,
    SASolver,
    solve,
)
from solvers.testing import ExactODE, Gaussian, Trigonometric, marginal_variance, mild_mixture, starting_points

PATHS = {"trigonometric": Trigonometric(), "VP": VPLinear(), "VE": VE(), "rectified flow": RectifiedFlow()}
on_every_path = pytest.mark.parametrize("path", PATHS)
ONE_DRAW = [EulerMaruyama(), EDMHeun(churn=10.0), SASolver(), SASolver(corrector_order=0, form="midpoint")]
ONE_DRAW += [SASolver(line=Noise()), SASolver(predictor_order=3, corrector_order=0)]
METHODS = [*ONE_DRAW, DPMSolverSDE()]


def problem_on(path, distribution=None) -> ExactODE:
    return ExactODE(distribution or mild_mixture().distribution, PATHS[path])


def times_on(path, steps=8) -> list[float]:
    levels = np.linspace(-2, 2.5, steps + 1) + 0.8 / steps * np.sin(np.arange(steps + 1.0))
    return [problem_on(path).node_at(float(level)).t for level in levels]


def draw(number: int) -> torch.Tensor:
    return NoiseStream(3, counter=number).draw(starting_points())[0]


def end_of(solver, path) -> torch.Tensor:
    times = times_on(path)
    return solve(problem_on(path), solver, starting_points(), times, closing=None, stream=NoiseStream(3)).x


def assert_equal(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@on_every_path
def test_sa_solver_of_order_1_is_ddim_with_eta_1(path):
    assert_equal(end_of(SASolver(predictor_order=1, corrector_order=0), path), end_of(DDIM(eta=1.0), path))


def by_k_diffusion(path, eta: float, points: int) -> torch.Tensor:
    """Its sample_dpmpp_2m_sde (midpoint) and sample_dpmpp_3m_sde, in y = x/alpha."""
    ode, past = problem_on(path), []
    nodes = [ode.node(t) for t in times_on(path)]
    y = starting_points() / nodes[0].alpha
    for i, (a, b) in enumerate(pairwise(nodes)):
        h = b.log_snr - a.log_snr
        data, wide = ode.predict(a, a.alpha * y).x0, h * (eta + 1)
        y = math.exp(-wide) * y - math.expm1(-wide) * data
        phi2 = math.expm1(-wide) / wide + 1
        if points == 2 and past:
            y = y - 0.5 * math.expm1(-wide) * h / past[0][1] * (data - past[0][0])
        elif points == 3 and len(past) > 1:
            r0, r1 = past[0][1] / h, past[1][1] / h
            d0, d1 = (data - past[0][0]) / r0, (past[0][0] - past[1][0]) / r1
            y = y + phi2 * (d0 + (d0 - d1) * r0 / (r0 + r1)) - (phi2 / wide - 0.5) * (d0 - d1) / (r0 + r1)
        elif points == 3 and past:
            y = y + phi2 * h / past[0][1] * (data - past[0][0])
        y = y + b.s * math.sqrt(-math.expm1(-2 * h * eta)) * draw(i)
        past.insert(0, (data, h))
    return nodes[-1].alpha * y


@on_every_path
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_sde_dpm_solver_plus_plus_is_that_of_k_diffusion(path, eta):
    two = SASolver(corrector_order=0, tau=math.sqrt(eta), form="midpoint")
    assert_equal(end_of(two, path), by_k_diffusion(path, eta, 2))
    three = SASolver(predictor_order=3, corrector_order=0, tau=math.sqrt(eta), form="k_diffusion")
    assert_equal(end_of(three, path), by_k_diffusion(path, eta, 3))


@on_every_path
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_ancestral_sampling_by_dpm_solver_plus_plus_is_that_of_k_diffusion(path, eta):
    """Its sample_dpmpp_2s_ancestral, in y = x/alpha."""
    ode = problem_on(path)
    nodes = [ode.node(t) for t in times_on(path)]
    y = starting_points() / nodes[0].alpha
    for i, (a, b) in enumerate(pairwise(nodes)):
        up = min(b.s, eta * math.sqrt(b.s**2 * (a.s**2 - b.s**2) / a.s**2))
        down = math.sqrt(b.s**2 - up**2)
        h = math.log(a.s / down)
        middle = ode.node_at(-math.log(a.s) + h / 2)
        there = math.exp(-h / 2) * y - math.expm1(-h / 2) * ode.predict(a, a.alpha * y).x0
        y = math.exp(-h) * y - math.expm1(-h) * ode.predict(middle, middle.alpha * there).x0 + up * draw(i)
    assert_equal(end_of(Ancestral(DPMSolver2(line=Data()), eta), path), nodes[-1].alpha * y)


@on_every_path
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_dpm_solver_plus_plus_sde_is_that_of_k_diffusion(path, eta):
    """Its sample_dpmpp_sde, in y = x/alpha, with one Brownian motion in s for both draws of a step."""
    ode = problem_on(path)
    nodes = [ode.node(t) for t in times_on(path)]
    y = starting_points() / nodes[0].alpha
    for i, (a, b) in enumerate(pairwise(nodes)):
        middle = ode.node_at(-math.log(a.s * b.s) / 2)
        first, second = draw(2 * i), draw(2 * i + 1)
        motion = math.sqrt(a.s - middle.s) * first
        there = motion + math.sqrt(middle.s - b.s) * second
        noise = {middle.s: motion / math.sqrt(a.s - middle.s), b.s: there / math.sqrt(a.s - b.s)}
        data = ode.predict(a, a.alpha * y).x0
        for node in (middle, b):
            up = min(node.s, eta * math.sqrt(node.s**2 * (a.s**2 - node.s**2) / a.s**2))
            down = math.sqrt(node.s**2 - up**2)
            reached = down / a.s * y - math.expm1(math.log(down) - math.log(a.s)) * data + up * noise[node.s]
            if node is middle:
                data = ode.predict(middle, middle.alpha * reached).x0
        y = reached
    assert_equal(end_of(DPMSolverSDE(eta), path), nodes[-1].alpha * y)


@on_every_path
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_ancestral_sampling_by_ddim_is_ddim_with_noise(path, eta):
    assert_equal(end_of(Ancestral(DDIM(), eta), path), end_of(DDIM(eta=eta), path))


@pytest.mark.parametrize("sampler", [Ancestral(), DPMSolverSDE()], ids=str)
def test_a_step_from_pure_noise_or_to_the_data_is_one_of_ddim_with_eta_1(sampler):
    x, times = starting_points(), [math.pi / 2, 0.9, 0.0]
    found, expected = (
        solve(mild_mixture(), solver, x, times, stream=NoiseStream(0), closing=None)
        for solver in (sampler, DDIM(eta=1.0))
    )
    assert_equal(found.x, expected.x)
    assert found.stats.nfe == 2 == sampler.calls_over(mild_mixture(), found.nodes)


def test_ancestral_sampling_that_would_ask_below_the_grid_is_refused_before_the_first_call():
    problem = mild_mixture().watching(starting_points(), (1.2, 0.5))
    for solver in (Ancestral(Heun(Noise())), Ancestral(DPMSolver2(r1=0.8))):
        with pytest.raises(ValueError, match=r"sigma/alpha=0\.\d+, below the end of the grid, 0\.5463; use a method"):
            solve(problem, solver, starting_points(), [1.2, 0.8, 0.5], stream=NoiseStream(0))


@pytest.mark.parametrize(
    "solver", [SASolver(), SASolver(predictor_order=3, corrector_order=4), SASolver(corrector_order=0)]
)
@pytest.mark.parametrize("apart", [1e-5, 1e-10])
def test_nodes_that_nearly_coincide_do_no_harm(solver, apart):
    problem = problem_on("VP", Gaussian(mean=0.0))
    times = [problem.node_at(float(level)).t for level in np.linspace(-3, 3.5, 21)]
    first, last = (
        (node.alpha * 0.6) ** 2 + node.sigma**2 for node in (problem.node(times[0]), problem.node(times[-1]))
    )
    doubled = torch.tensor([*times[:13], times[12] + apart * (times[13] - times[12]), *times[13:]], dtype=torch.float64)
    assert marginal_variance(solver, doubled, problem, first, 25) == pytest.approx(last, rel=0.1)


def test_euler_maruyama_is_that_of_the_variance_preserving_sde():
    """Song et al. 2021, eqs. 6 and 11: dx = (-beta/2 x - beta score) dt + sqrt(beta) dW, backwards."""
    path, ode, x = PATHS["VP"], problem_on("VP"), starting_points()
    for i, (t, following) in enumerate(pairwise(times_on("VP"))):
        step = 1e-6
        abar = [path.node(t + sign * step).alpha ** 2 for sign in (1, -1)]
        beta = -(math.log(abar[0]) - math.log(abar[1])) / (2 * step)
        node = path.node(t)
        score = -ode.predict(node, x).eps / node.sigma
        h = following - t
        x = x + (-beta / 2 * x - beta * score) * h + math.sqrt(-beta * h) * draw(i)
    assert_equal(end_of(EulerMaruyama(), "VP"), x, 1e-7)


@pytest.mark.parametrize("times", [[math.acos(5e-4), 1.3], [0.4, 0.0]], ids=["noise", "data"])
def test_euler_maruyama_is_ddim_with_eta_1_where_its_field_is_singular(times):
    found, expected = (
        solve(mild_mixture(), solver, starting_points(), times, stream=NoiseStream(0), closing=None).x
        for solver in (EulerMaruyama(), DDIM(eta=1.0))
    )
    assert torch.equal(found, expected)


def test_edm_heun_is_algorithm_2_of_its_paper():
    """Karras et al. 2022, with sigma(t) = t and s(t) = 1; the raised level does not exceed the first."""
    ode = problem_on("VE")
    times = times_on("VE")
    solver = EDMHeun(churn=2.0, s_min=0.3, s_max=6.0, noise=1.007)
    gamma, x, raised = min(2.0 / 8, math.sqrt(2) - 1), starting_points(), []
    for i, (t, following) in enumerate(pairwise(times)):
        hat = min(t * (1 + (gamma if 0.3 <= t <= 6.0 else 0.0)), times[0])
        raised.append(hat / t)
        x_hat = x + math.sqrt(hat**2 - t**2) * 1.007 * draw(i)
        d = (x_hat - ode.predict(ode.node(hat), x_hat).x0) / hat
        x = x_hat + (following - hat) * d
        d_there = (x - ode.predict(ode.node(following), x).x0) / following
        x = x_hat + (following - hat) * (d / 2 + d_there / 2)
    assert_equal(end_of(solver, "VE"), x)
    assert raised[1] == pytest.approx(1.25) and raised[-1] == 1


def test_edm_heun_never_asks_above_the_first_level():
    ode = mild_mixture().watching(starting_points(), (0.4, 1.35))
    solver = EDMHeun(churn=1e3, s_max=math.inf)
    found = solve(ode, solver, starting_points(), [1.35, 1.3, 1.2, 0.4], stream=NoiseStream(0))
    assert found.stats.nfe == solver.calls(3) == 6


class Asked(ExactODE):
    """A mixture that keeps the nodes at which it is asked."""

    def __init__(self):
        super().__init__(mild_mixture().distribution, Trigonometric())
        self.nodes_asked = []

    def predict(self, node, x):
        self.nodes_asked.append(node)
        return super().predict(node, x)


def test_a_level_that_churn_would_raise_above_the_first_is_raised_to_it():
    ode = Asked()
    solve(ode, EDMHeun(churn=1e3), starting_points(), [1.35, 1.3, 0.4], stream=NoiseStream(0))
    assert [node.t for node in ode.nodes_asked] == [1.35, 1.3, 1.35, 0.4]


def test_the_ends_of_a_window_of_noise_levels_belong_to_it():
    ode, times = Asked(), times_on("trigonometric", 6)
    nodes = [ode.node(t) for t in times]
    window, inside = {"s_min": nodes[3].s, "s_max": nodes[1].s}, [False, True, True, True, False, False]
    run = SASolver(**window).start(ode, nodes, starting_points(), stream=NoiseStream(0))
    assert [step.std > 0 for step in run.steps] == inside
    solve(ode, EDMHeun(churn=0.01, **window), starting_points(), times, stream=NoiseStream(0), closing=None)
    assert [asked.s > node.s for asked, node in zip(ode.nodes_asked[::2], nodes, strict=False)] == inside


def test_edm_heun_adds_at_most_as_much_noise_as_the_state_has():
    solver = EDMHeun(churn=1e3)
    found = solve(mild_mixture(), solver, starting_points(), [1.35, 1.3, 0.4], stream=NoiseStream(0))
    assert (1 + found.state.gamma) ** 2 == pytest.approx(2)


def test_edm_heun_raises_no_level_where_alpha_is_small():
    times = [math.acos(2e-4), math.acos(5e-4), 1.3]
    found, expected = (
        solve(mild_mixture(), solver, starting_points(), times, stream=NoiseStream(0)).x
        for solver in (EDMHeun(s_max=math.inf), DDIM())
    )
    assert torch.equal(found, expected)


def test_edm_heun_counts_a_step_from_pure_noise_as_the_one_call_that_it_is():
    ode, times = mild_mixture(), [math.pi / 2, 1.3, 0.9, 0.4]
    found = solve(ode, EDMHeun(), starting_points(), times, stream=NoiseStream(0), closing=None)
    assert found.stats.nfe == EDMHeun().calls_over(ode, ode.nodes(times)) == 5


def test_edm_heun_outside_its_window_is_heun():
    solver = EDMHeun(s_min=100.0, s_max=200.0)
    assert torch.equal(end_of(solver, "VP"), end_of(Heun(Noise()), "VP"))


def variance(ode: ExactODE, t: float) -> float:
    """The exact marginal variance at t."""
    node = ode.node(t)
    return float((node.alpha * Gaussian.deviation) ** 2 + node.sigma**2)


@on_every_path
@pytest.mark.parametrize("solver", METHODS, ids=str)
def test_the_variance_of_a_gaussian_is_right_on_every_path(path, solver):
    ode, steps = problem_on(path, Gaussian(mean=0.0)), 160
    times = times_on(path, steps)
    first, last = (
        float((n.alpha * Gaussian.deviation) ** 2 + n.sigma**2) for n in map(ode.node, (times[0], times[-1]))
    )
    found = marginal_variance(solver, torch.tensor(times, dtype=torch.float64), ode, first, solver.calls(steps) + 1)
    assert found == pytest.approx(last, rel=0.05 if isinstance(solver, EulerMaruyama) else 2e-3)


def test_the_corrector_lowers_the_error_at_equal_calls():
    def error(solver) -> float:
        ode = problem_on("trigonometric", Gaussian(mean=0.0))
        times = torch.tensor(times_on("trigonometric", 40), dtype=torch.float64)
        first, last = (variance(ode, t) for t in times[[0, -1]].tolist())
        return abs(marginal_variance(solver, times, ode, first, 41) - last)

    plain, corrected = (error(SASolver(predictor_order=1, corrector_order=order)) for order in (0, 2))
    assert corrected < 0.2 * plain


@pytest.mark.parametrize(("solver", "draws"), [*((one, 8) for one in ONE_DRAW), (DPMSolverSDE(), 16)], ids=str)
def test_every_run_draws_as_often_for_each_step(solver, draws):
    found = solve(mild_mixture(), solver, starting_points(), times_on("trigonometric"), stream=NoiseStream(3))
    state = found.state
    assert (state if isinstance(state, NoiseStream) else state.stream).counter == draws


@pytest.mark.parametrize("solver", METHODS, ids=str)
def test_a_flipped_grid_and_a_missing_stream_are_refused_before_the_first_call(solver):
    class Untouched(ExactODE):
        def predict(self, node, x):
            raise AssertionError("called")

    ode, times = Untouched(Gaussian()), times_on("trigonometric")
    with pytest.raises(ValueError, match="is stochastic and runs from noise to data only"):
        solve(ode, solver, starting_points(), times[::-1], stream=NoiseStream(0))
    with pytest.raises(ValueError, match=r"stream=None: .* draws noise"):
        solve(ode, solver, starting_points(), times)


def test_a_run_is_refused_if_one_of_its_samples_goes_to_the_noise():
    ode = mild_mixture()
    nodes = [ode.node(np.array(times)) for times in ([1.2, 0.4], [0.8, 0.8])]
    with pytest.raises(ValueError, match="is stochastic and runs from noise to data only"):
        DDIM(eta=1.0).start(ode, nodes, starting_points()[:2], stream=NoiseStream(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EDMHeun(churn=0.0), r"EDMHeun: churn=0.0 .* use Heun\(line=Noise\(\)\)"),
        (lambda: EDMHeun(s_min=2.0, s_max=1.0), "EDMHeun: s_min=2.0 and s_max=1.0"),
        (lambda: EDMHeun(noise=-1.0), "EDMHeun: noise=-1.0"),
        (lambda: SASolver(predictor_order=5), "predictor_order=5 must be a whole number from 1 to 4"),
        (lambda: SASolver(predictor_order=0), "predictor_order=0"),
        (lambda: SASolver(corrector_order=-1), "corrector_order=-1 must be a whole number from 0 to 4"),
        (lambda: SASolver(tau=0.0), "tau=0.0 must be positive"),
        (lambda: SASolver(tau=math.nan), "tau=nan"),
        (lambda: SASolver(s_min=math.nan), "s_min=nan"),
        (lambda: SASolver(form="heun"), "form='heun' is unknown"),
        (lambda: SASolver(form="midpoint"), "without a corrector; set corrector_order=0"),
        (
            lambda: SASolver(Noise(), predictor_order=3, corrector_order=0, form="diffusers"),
            "predictor_order=3 diverges on the noise line; use line=Data",
        ),
        (lambda: SASolver(line=Rotation()), "SASolver: line=Rotation"),
        (lambda: Ancestral(eta=0.0), r"Ancestral: eta=0.0 must lie in \(0, 1\]; without fresh noise use DPMSolver2"),
        (lambda: Ancestral(eta=1.5), "Ancestral: eta=1.5"),
        (lambda: DPMSolverSDE(eta=0), r"DPMSolverSDE: eta=0 must lie in .* use DPMSolver2\(line=Data"),
        (lambda: DPMSolverSDE(eta=1.5), "DPMSolverSDE: eta=1.5"),
        (lambda: Ancestral(DPMpp(2)), r"Ancestral: solver=DPMpp\(.* pass solvers\.DPMSolver2\(\)"),
        (lambda: Ancestral(DDIM(eta=0.5)), r"Ancestral: solver=DDIM\(eta=0.5\)"),
        (lambda: Ancestral(DPMFast(), 0.1), r"Ancestral: solver=DPMFast\("),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_history_begins_after_a_singular_node():
    ode, times = mild_mixture(), [math.pi / 2, 1.3, 1.1, 0.9, 0.7]
    whole = solve(ode, SASolver(line=Data()), starting_points(), times, stream=NoiseStream(3), trajectory=True)
    rest = solve(ode, SASolver(line=Data()), whole.trajectory[1], times[1:], stream=NoiseStream(3, counter=1))
    assert torch.equal(whole.x, rest.x)


def test_a_step_that_freezes_its_predictions_has_the_noise_of_tau():
    ode = mild_mixture()
    a, b = ode.node(math.acos(5e-4)), ode.node(1.3)
    (step,) = SASolver(Noise(), tau=0.5).start(ode, [a, b], starting_points(), stream=NoiseStream(0)).steps
    assert step.std == pytest.approx(b.sigma * math.sqrt(1 - (b.s / a.s) ** 0.5))


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_a_step_that_freezes_its_predictions_keeps_the_noise_level(tau):
    ode = mild_mixture()
    a, b = ode.node(math.acos(5e-4)), ode.node(math.acos(8e-4))
    (step,) = SASolver(Noise(), tau=tau).start(ode, [a, b], starting_points(), stream=NoiseStream(0)).steps
    assert step.frozen and step.weights[0] == b.alpha
    assert math.hypot(step.weights[1], step.std) == pytest.approx(b.sigma, rel=1e-12)


def test_the_corrector_reads_as_many_slopes_as_its_order_whatever_the_predictor_reads():
    ode = mild_mixture()
    nodes = ode.nodes(times_on("trigonometric", 4))
    run = SASolver(predictor_order=1, corrector_order=4).start(ode, nodes, starting_points(), stream=NoiseStream(0))
    assert [len(step.correction) for step in run.steps] == [2, 3, 4, 4]


def test_the_corrector_of_order_1_leaves_order_1():
    """It replaces what a better predictor found; and the next step reads the correction."""
    assert SASolver(predictor_order=3, corrector_order=1).order == 1
    assert not SASolver(predictor_order=1, corrector_order=1).one_step
    assert SASolver(predictor_order=1, corrector_order=0).one_step


@pytest.mark.parametrize("line", [Data(), Noise()])
@pytest.mark.parametrize("below", [0, math.inf])
def test_sa_solver_ends_with_the_step_that_closes(line, below):
    solver = SASolver(line, 3, 0, lower_order_below=below)
    ode, times, x = mild_mixture(), [1.3, 1.1, 0.9, 0.7, 0.5, 0.0], starting_points()
    closed, whole = (
        solve(ode, solver, x, times, stream=NoiseStream(0), closing=closing, trajectory=True).trajectory[-2]
        for closing in ("denoise", None)
    )
    assert torch.equal(closed, whole)


@pytest.mark.parametrize(("below", "read"), [(6, [1, 2, 3, 3, 3, 3]), (7, [1, 2, 3, 3, 2, 1])])
def test_orders_are_lowered_on_grids_of_fewer_steps_than_the_bound(below, read):
    ode = mild_mixture()
    solver = SASolver(predictor_order=3, corrector_order=0, lower_order_below=below)
    run = solver.start(ode, ode.nodes(times_on("trigonometric", 6)), starting_points(), stream=NoiseStream(0))
    assert [len(step.weights) for step in run.steps] == read


def test_a_closing_step_is_one_of_the_steps_that_churn_is_shared_among():
    ode, times = mild_mixture(), [1.3, 0.9, 0.5, 0.0]
    for closing, steps in (("denoise", 3), (None, 3)):
        found = solve(ode, EDMHeun(churn=0.3), starting_points(), times, stream=NoiseStream(0), closing=closing)
        assert found.state.gamma == pytest.approx(0.3 / steps)


def test_stochastic_methods_do_not_extrapolate():
    def refuse(*arguments):
        raise AssertionError("the network was asked")

    ode = mild_mixture()
    ode.predict = refuse
    for solver in (DDIM(eta=0.5), *METHODS):
        with pytest.raises(ValueError, match=r'closing="extrapolate".*use closing="denoise"'):
            solve(ode, solver, starting_points(), [1.3, 0.5, 0.0], stream=NoiseStream(0), closing="extrapolate")
