"""Published formulas, written literally, against the solvers: equal to round-off on one exact problem."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate._ivp import rk as scipy_rk
from torchdiffeq._impl import bosh3 as torchdiffeq_bosh3
from torchdiffeq._impl import dopri5 as torchdiffeq_dopri5

import solvers
from odediff.schedule import VE, RectifiedFlow, SubVP, VPCosine, VPTable
from solvers import DDIM, DDPM, Bosh3, Data, Dopri5, Euler, Heun, Noise, NoiseStream, Rotation, RungeKutta, Tsit5, solve
from solvers.exponential import forward_std, posterior_std
from solvers.testing import ExactODE, Trigonometric, mild_mixture, starting_points

PATHS = {
    "trigonometric": Trigonometric(),
    "table": VPTable.linear(),
    "cosine": VPCosine(),
    "sub-VP": SubVP(),
    "VE": VE(),
    "rectified flow": RectifiedFlow(shift=3.0),
}
VARIANCE_PRESERVING = ("trigonometric", "table", "cosine")
on_every_path = pytest.mark.parametrize("path", PATHS)
on_variance_preserving_paths = pytest.mark.parametrize("path", VARIANCE_PRESERVING)
in_both_directions = pytest.mark.parametrize("flipped", [False, True], ids=["sampling", "inversion"])


def problem_on(path):
    return ExactODE(mild_mixture().distribution, PATHS[path])


def times_on(path, flipped=False):
    """Eight uneven steps from half log-SNR -2 to 2.5."""
    log_snr = np.linspace(-2, 2.5, 9) + 0.1 * np.sin(np.arange(9.0))
    times = [problem_on(path).node_at(float(level)).t for level in log_snr]
    return times[::-1] if flipped else times


def walk(path, rule, flipped=False):
    """The end of the published ``rule(a, b, x, x0, eps)``, applied along the grid."""
    problem, x = problem_on(path), starting_points()
    for a, b in pairwise(map(problem.node, times_on(path, flipped))):
        prediction = problem.predict(a, x)
        x = rule(a, b, x, prediction.x0, prediction.eps)
    return x


def end_of(solver, path, flipped=False, stream=None):
    times = times_on(path, flipped)
    return solve(problem_on(path), solver, starting_points(), times, closing=None, stream=stream).x


def assert_equal(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@on_every_path
@in_both_directions
def test_ddim_is_euler_on_x_over_alpha_and_sigma_over_alpha(path, flipped):
    """Song, Meng & Ermon 2021, eq. 14: d(x/alpha) = eps d(sigma/alpha), by Euler's method."""

    def rule(a, b, x, x0, eps):
        y = x / a.alpha + (b.sigma / b.alpha - a.sigma / a.alpha) * eps
        return b.alpha * y

    assert_equal(end_of(DDIM(), path, flipped), walk(path, rule, flipped))


@on_every_path
@in_both_directions
@pytest.mark.parametrize("line", [Noise(), Data()], ids=str)
def test_ddim_is_the_euler_method_on_the_noise_and_data_lines(path, flipped, line):
    assert_equal(end_of(Euler(line), path, flipped), end_of(DDIM(), path, flipped))


@on_variance_preserving_paths
@in_both_directions
def test_ddim_is_equation_12_of_its_paper(path, flipped):
    """Song, Meng & Ermon 2021, eq. 12 with sigma_t = 0; their alpha is our alpha squared."""

    def rule(a, b, x, x0, eps):
        abar, abar_prev = a.alpha**2, b.alpha**2
        predicted_x0 = (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
        return math.sqrt(abar_prev) * predicted_x0 + math.sqrt(1 - abar_prev) * eps

    assert_equal(end_of(DDIM(), path, flipped), walk(path, rule, flipped))


@on_variance_preserving_paths
def test_ddim_on_the_flipped_grid_is_the_inversion_formula_of_adm(path):
    """Dhariwal & Nichol 2021, appendix F."""

    def rule(a, b, x, x0, eps):
        abar, abar_next = a.alpha**2, b.alpha**2
        change = (math.sqrt(1 / abar_next - 1) - math.sqrt(1 / abar - 1)) * eps
        return math.sqrt(abar_next) * (x / math.sqrt(abar) + change)

    assert_equal(end_of(DDIM(), path, flipped=True), walk(path, rule, flipped=True))


@on_every_path
@in_both_directions
def test_ddim_is_dpm_solver_1(path, flipped):
    """Lu et al. 2022, "DPM-Solver", eq. 3.7."""

    def rule(a, b, x, x0, eps):
        h = math.log(b.alpha / b.sigma) - math.log(a.alpha / a.sigma)
        return b.alpha / a.alpha * x - b.sigma * math.expm1(h) * eps

    assert_equal(end_of(DDIM(), path, flipped), walk(path, rule, flipped))


@on_every_path
@in_both_directions
def test_ddim_is_dpm_solver_plus_plus_1(path, flipped):
    """Lu et al. 2022, "DPM-Solver++", eq. 9 with k = 1."""

    def rule(a, b, x, x0, eps):
        h = math.log(b.alpha / b.sigma) - math.log(a.alpha / a.sigma)
        return b.sigma / a.sigma * x - b.alpha * math.expm1(-h) * x0

    assert_equal(end_of(DDIM(), path, flipped), walk(path, rule, flipped))


@on_every_path
@in_both_directions
def test_ddim_is_the_exponential_adams_method_of_order_1_on_the_noise_line(path, flipped):
    """x_b = (alpha_b/alpha_a) x + alpha_b eps integral ds, with ds = -exp(-lambda) dlambda."""

    def rule(a, b, x, x0, eps):
        integral = math.exp(-b.log_snr) - math.exp(-a.log_snr)
        return b.alpha / a.alpha * x + b.alpha * integral * eps

    assert_equal(end_of(DDIM(), path, flipped), walk(path, rule, flipped))


@on_every_path
@in_both_directions
def test_ddim_is_the_exponential_adams_method_of_order_1_on_the_data_line(path, flipped):
    """x_b = (sigma_b/sigma_a) x + sigma_b x0 integral exp(lambda) dlambda."""

    def rule(a, b, x, x0, eps):
        integral = math.exp(b.log_snr) - math.exp(a.log_snr)
        return b.sigma / a.sigma * x + b.sigma * integral * x0

    assert_equal(end_of(DDIM(), path, flipped), walk(path, rule, flipped))


@in_both_directions
def test_euler_on_a_rectified_flow_is_ddim(flipped):
    """alpha = 1 - t, sigma = t: dx/dt = eps - x0, and a straight line in t is frozen predictions."""
    problem, x = ExactODE(mild_mixture().distribution, RectifiedFlow()), starting_points()
    times = [0.95, 0.8, 0.55, 0.5, 0.2, 0.05]
    times = times[::-1] if flipped else times
    assert_equal(solve(problem, Euler(), x, times).x, solve(problem, DDIM(), x, times).x)


@pytest.mark.parametrize("line", [Rotation(), Rotation(0.5), None], ids=str)
@on_variance_preserving_paths
def test_euler_on_the_rotation_and_on_the_field_as_written_is_not_ddim(path, line):
    assert (end_of(Euler(line), path) - end_of(DDIM(), path)).abs().max() > 1e-3


@on_every_path
def test_ddpm_is_ddim_with_eta_1_and_the_same_noise(path):
    noises = [NoiseStream(3) for _ in range(2)]
    assert_equal(end_of(DDPM(), path, stream=noises[0]), end_of(DDIM(eta=1.0), path, stream=noises[1]))


def noise_of_step(step, seed=3):
    return NoiseStream(seed, counter=step).draw(starting_points())[0]


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("entries", [range(40, 20, -1), (999, 750, 500, 250, 100, 20, 3)], ids=["chain", "skipping"])
def test_ddpm_draws_from_the_posterior_of_its_paper(variance, entries):
    """Ho, Jain & Abbeel 2020, eq. 7, its beta between any two entries of the table."""
    path = VPTable.linear()
    problem, x = ExactODE(mild_mixture().distribution, path), starting_points()
    times = [(entry + 1) / 1000 for entry in entries]
    found = solve(problem, DDPM(variance), x, times, stream=NoiseStream(3)).x

    for step, (entry, previous) in enumerate(pairwise(entries)):
        abar, abar_previous = path.alphas_cumprod[entry], path.alphas_cumprod[previous]
        alpha, beta = abar / abar_previous, 1 - abar / abar_previous
        x0 = problem.predict(path.node((entry + 1) / 1000), x).x0
        mean = (
            math.sqrt(abar_previous) * beta / (1 - abar) * x0 + math.sqrt(alpha) * (1 - abar_previous) / (1 - abar) * x
        )
        posterior_variance = (1 - abar_previous) / (1 - abar) * beta
        x = mean + math.sqrt(posterior_variance if variance == "small" else beta) * noise_of_step(step)
    assert_equal(found, x)


@on_variance_preserving_paths
@pytest.mark.parametrize("eta", [0.2, 0.5, 1.0])
def test_ddim_with_eta_is_equations_12_and_16_of_its_paper(path, eta):
    steps = iter(range(100))

    def rule(a, b, x, x0, eps):
        abar, abar_prev = a.alpha**2, b.alpha**2
        sigma = eta * math.sqrt((1 - abar_prev) / (1 - abar)) * math.sqrt(1 - abar / abar_prev)
        predicted_x0 = (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
        direction = math.sqrt(1 - abar_prev - sigma**2) * eps
        return math.sqrt(abar_prev) * predicted_x0 + direction + sigma * noise_of_step(next(steps))

    assert_equal(end_of(DDIM(eta), path, stream=NoiseStream(3)), walk(path, rule))


@on_variance_preserving_paths
def test_the_larger_variance_is_that_of_the_forward_chain(path):
    """Song, Meng & Ermon 2021, section 5: sigma-hat = sqrt(1 - alpha_t / alpha_{t-1}) in their alphas."""
    for a, b in pairwise(map(PATHS[path].node, times_on(path))):
        assert forward_std(a, b) == pytest.approx(math.sqrt(1 - a.alpha**2 / b.alpha**2), rel=1e-12)


@on_every_path
def test_the_posterior_deviation_is_that_of_two_gaussian_observations(path):
    """Precision of x_b given (x_a, x0): 1/sigma_b^2 from x0, (alpha_a/alpha_b)^2/forward^2 from x_a."""
    for a, b in pairwise(map(PATHS[path].node, times_on(path))):
        forward = a.sigma**2 - (a.alpha * b.sigma / b.alpha) ** 2
        assert forward_std(a, b) == pytest.approx(math.sqrt(forward), rel=1e-12)
        precision = 1 / b.sigma**2 + (a.alpha / b.alpha) ** 2 / forward
        assert posterior_std(a, b) == pytest.approx(precision**-0.5, rel=1e-12)


def test_the_stochastic_deviations_at_the_two_ends():
    path = Trigonometric()
    noise, middle, data = (path.node(t) for t in (math.pi / 2, 0.7, 0.0))
    pure = noise._replace(alpha=0.0)
    assert posterior_std(pure, middle) == middle.sigma
    assert posterior_std(middle, data) == 0
    assert forward_std(middle, data) == 0
    assert forward_std(pure, middle) == 1


def test_heun_on_the_noise_line_is_algorithm_1_of_edm():
    """Karras et al. 2022, algorithm 1 with sigma(t) = t, s(t) = 1, its last step to 0 included."""
    problem = ExactODE(mild_mixture().distribution, VE())
    steps, rho, low, high = 10, 7, 0.002, 80.0
    ramp = np.arange(steps) / (steps - 1)
    t = [*((high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho).tolist(), 0.0]
    t[0] = high
    x = start = high * starting_points()
    for here, following in pairwise(t):
        d = (x - problem.predict(problem.node(here), x).x0) / here
        reached = x + (following - here) * d
        if following != 0:
            d_there = (reached - problem.predict(problem.node(following), reached).x0) / following
            reached = x + (following - here) * (d / 2 + d_there / 2)
        x = reached
    found = solve(problem, Heun(Noise()), start, t)
    assert_equal(found.x, x)
    assert found.stats.nfe == 2 * steps - 1


METHODS = [getattr(solvers, name) for name in solvers.__all__]
METHODS = [m for m in METHODS if isinstance(m, type) and issubclass(m, RungeKutta) and m is not RungeKutta]


def rooted_trees(order):
    """Every rooted tree with ``order`` vertices, as the sorted tuple of its branches."""

    def forests(vertices, largest):
        if vertices == 0:
            yield ()
        for size in range(min(vertices, largest[0]), 0, -1):
            for tree in rooted_trees(size):
                if (size, tree) <= largest:
                    for rest in forests(vertices - size, (size, tree)):
                        yield (tree, *rest)

    yield from forests(order - 1, (order, ((),) * order))


def vertices(tree):
    return 1 + sum(map(vertices, tree))


def density(tree):
    return vertices(tree) * math.prod(map(density, tree))


def stage_values(tree, a):
    """The elementary weight of ``tree`` at every stage."""
    product = np.ones(len(a))
    for branch in tree:
        product = product * (a @ stage_values(branch, a))
    return product


def defects(method, order):
    """How far the method misses each order condition (Hairer, Norsett & Wanner, "Solving ODEs I", theorem II.2.13)."""
    stages = len(method.tableau.c)
    a = np.array([[*row, *[0.0] * (stages - len(row))] for row in method.tableau.a])
    b = np.array(method.tableau.b)
    return [abs(b @ stage_values(tree, a) - 1 / density(tree)) for tree in rooted_trees(order)]


def test_the_generator_of_rooted_trees_knows_how_many_there_are():
    assert [len(set(rooted_trees(order))) for order in range(1, 8)] == [1, 1, 2, 4, 9, 20, 48]
    assert [len(list(rooted_trees(order))) for order in range(1, 8)] == [1, 1, 2, 4, 9, 20, 48]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_tableau_meets_the_order_conditions_up_to_its_order_and_not_beyond(method):
    for order in range(1, method.order + 1):
        assert max(defects(method, order)) < 1e-13, f"order {order}"
    assert max(defects(method, method.order + 1)) > 1e-5


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_tableau_is_explicit_and_its_rows_sum_to_the_stage_times(method):
    tableau = method.tableau
    assert [len(row) for row in tableau.a] == list(range(len(tableau.c)))
    assert len(tableau.b) == len(tableau.c)
    assert [sum(row) for row in tableau.a] == pytest.approx(tableau.c, abs=1e-14)


@pytest.mark.parametrize("method, peer", [(Dopri5, scipy_rk.RK45), (Bosh3, scipy_rk.RK23)])
def test_a_step_of_a_pair_is_a_step_of_scipy(method, peer):
    problem, x, t, h = mild_mixture(), starting_points(), 1.1, -0.3

    def field(time, flat):
        return problem(float(time), torch.from_numpy(flat.copy()).view_as(x)).numpy().ravel()

    flat = x.numpy().ravel()
    stages = np.empty((peer.n_stages + 1, flat.size))
    reached, _ = scipy_rk.rk_step(field, t, flat, field(t, flat), h, peer.A, peer.B, peer.C, stages)
    assert_equal(solve(problem, method(), x, [t, t + h]).x.ravel(), torch.from_numpy(reached), 1e-14)


@pytest.mark.parametrize(
    "method, peer",
    [
        (Dopri5, torchdiffeq_dopri5._DORMAND_PRINCE_SHAMPINE_TABLEAU),
        (Bosh3, torchdiffeq_bosh3._BOGACKI_SHAMPINE_TABLEAU),
    ],
    ids=["Dopri5", "Bosh3"],
)
def test_a_tableau_is_that_of_torchdiffeq(method, peer):
    stages = len(method.tableau.c)
    assert method.tableau.c[1:] == pytest.approx(peer.alpha.tolist()[: stages - 1], abs=1e-15)
    for row, other in zip(method.tableau.a[1:], peer.beta, strict=False):
        assert row == pytest.approx(other.tolist(), abs=1e-14)
    assert method.tableau.b == pytest.approx(peer.c_sol.tolist()[:stages], abs=1e-15)


def test_tsit5_has_the_free_parameters_of_its_paper():
    """Tsitouras 2011, table 1; the order conditions above fix what they leave open."""
    assert Tsit5.tableau.c == (0, 0.161, 0.327, 0.9, 0.9800255409045097, 1)
    assert Tsit5.tableau.b[1] == 0.01
