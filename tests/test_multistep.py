"""Multistep methods: published formulas, written literally, their histories, and what they refuse."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import odediff
import solvers
from benchmarks.overhead import HISTORIES, peak_states
from solvers import (
    DDIM,
    DEIS,
    IPNDM,
    LMS,
    PNDM,
    Data,
    DPMpp,
    DPMSolver,
    ExponentialAdams,
    Node,
    Noise,
    NoiseStream,
    Rotation,
    UniPC,
    solve,
)
from solvers.testing import ExactODE, Trigonometric, mild_mixture, starting_points

PATHS = {
    "trigonometric": Trigonometric(),
    "table": odediff.VPTable.linear(),
    "sub-VP": odediff.SubVP(),
    "rectified flow": odediff.RectifiedFlow(shift=3.0),
}
KEPT = {"lower_order_below": 0}
"""The order is kept to the end of the short grids of these tests."""
METHODS = [ExponentialAdams(), DPMSolver(**KEPT), DPMpp(**KEPT), UniPC(**KEPT), DEIS(), LMS(), IPNDM(), PNDM()]
on_every_path = pytest.mark.parametrize("path", PATHS)
in_both_directions = pytest.mark.parametrize("flipped", [False, True], ids=["sampling", "inversion"])


def problem_on(path="trigonometric"):
    return ExactODE(mild_mixture().distribution, PATHS[path])


def nodes_on(path="trigonometric", flipped=False):
    """Eight uneven steps from half log-SNR -2 to 2.5."""
    log_snr = np.linspace(-2, 2.5, 9) + 0.1 * np.sin(np.arange(9.0))
    nodes = [problem_on(path).node_at(float(level)) for level in log_snr]
    return nodes[::-1] if flipped else nodes


def walk(path, rule, flipped=False):
    """The end of the published ``rule(nodes, predictions, i, x)``, applied along the grid."""
    problem, x, nodes, predictions = problem_on(path), starting_points(), nodes_on(path, flipped), []
    for i, a in enumerate(nodes[:-1]):
        predictions.append(problem.predict(a, x))
        x = rule(nodes, predictions, i, x)
    return x


def end_of(solver, path="trigonometric", flipped=False, **options):
    times = [node.t for node in nodes_on(path, flipped)]
    return solve(problem_on(path), solver, starting_points(), times, closing=None, **options).x


def assert_equal(found, expected, tolerance=1e-11):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# Published formulas


@on_every_path
@in_both_directions
@pytest.mark.parametrize(
    "solver",
    [
        ExponentialAdams(1, Noise()),
        ExponentialAdams(1, Data()),
        ExponentialAdams(1, Noise(), "t"),
        DPMSolver(1, **KEPT),
        DPMpp(1, **KEPT),
        DEIS(1),
        LMS(1),
        IPNDM(1),
    ],
    ids=str,
)
def test_every_method_of_order_1_is_ddim(solver, path, flipped):
    assert_equal(end_of(solver, path, flipped), end_of(DDIM(), path, flipped), 1e-13)


@pytest.mark.parametrize("solver", [UniPC(1, **KEPT), ExponentialAdams(1, Rotation(), "q")], ids=str)
def test_unipc_1_corrects_and_adams_1_on_the_rotation_freezes_v_so_they_are_not_ddim(solver):
    assert (end_of(solver) - end_of(DDIM())).abs().max() > 1e-3


@on_every_path
@in_both_directions
@pytest.mark.parametrize("form", ["midpoint", "heun"])
def test_dpm_solver_plus_plus_2m(path, flipped, form):
    """Lu et al. 2022, "DPM-Solver++", algorithm 2, is the midpoint form; the other takes the integral of the line."""

    def rule(nodes, predictions, i, x):
        a, b = nodes[i], nodes[i + 1]
        h = b.log_snr - a.log_snr
        data = predictions[i].x0
        x = b.sigma / a.sigma * x - b.alpha * math.expm1(-h) * data
        if i == 0:
            return x
        slope = (data - predictions[i - 1].x0) / (a.log_snr - nodes[i - 1].log_snr) * h
        weight = -math.expm1(-h) / 2 if form == "midpoint" else math.expm1(-h) / h + 1
        return x + b.alpha * weight * slope

    assert_equal(end_of(DPMpp(2, form=form, **KEPT), path, flipped), walk(path, rule, flipped))


def test_the_published_2m_is_not_the_exponential_adams_method_and_the_other_form_is():
    adams = end_of(ExponentialAdams(2, Data()))
    assert (end_of(DPMpp(2, form="midpoint", **KEPT)) - adams).abs().max() > 1e-4
    assert torch.equal(end_of(DPMpp(2, **KEPT)), adams)


@pytest.mark.parametrize(
    ("named", "general"),
    [
        (DPMSolver(3, **KEPT), ExponentialAdams(3, Noise())),
        (DPMpp(3, **KEPT), ExponentialAdams(3, Data())),
        (DEIS(3, variable="log_snr"), DPMSolver(3, **KEPT)),
        (UniPC(2, **KEPT), ExponentialAdams(3, Data(), corrector=True)),
        (UniPC(3, **KEPT), ExponentialAdams(4, Data(), corrector=True)),
        (LMS(4), ExponentialAdams(4, Noise(), "s")),
        (UniPC(3, "bh1", **KEPT), UniPC(3, "bh1", line=Data(), **KEPT)),
    ],
    ids=str,
)
def test_a_named_method_is_a_setting(named, general):
    assert_equal(end_of(named), end_of(general), 1e-14)


@in_both_directions
def test_unipc_with_solved_coefficients_is_the_linear_system_of_its_paper(flipped):
    """Zhao et al. 2023, "UniPC", eqs. 3, 5 and 8 on the data, with B(h) = e^h - 1, which drops out; two steps of p = 2.

    The third state: predicted from one, corrected; predicted from two, corrected with three; predicted from two.
    """
    problem, x, nodes = problem_on(), starting_points(), nodes_on(flipped=flipped)[:4]
    times = [node.t for node in nodes]
    found = solve(problem, UniPC(2, **KEPT), x, times, closing=None).x

    def unified(a, b, base, current, others):
        """Through the data at a and at the others, given as (node, data): corrector if b is among them."""
        h = b.log_snr - a.log_snr
        rate = [(node.log_snr - a.log_snr) / h for node, _ in others]
        phi = [-math.expm1(-h) / h]  # phi_k(-h): integral of e^{-h(1-r)} r^{k-1}/(k-1)! dr
        for k in range(1, len(others) + 1):
            phi.append((1 / math.factorial(k) - phi[-1]) / h)
        matrix = np.array([[r**k for r in rate] for k in range(1, len(others) + 1)])
        moments = np.array([math.factorial(k) * phi[k] for k in range(1, len(others) + 1)])
        rho = np.linalg.solve(matrix, moments) if others else []
        state = b.sigma / a.sigma * base + b.alpha * h * phi[0] * current
        return state + sum(b.alpha * h * r * (data - current) for r, (_, data) in zip(rho, others, strict=True))

    def data_at(node, state):
        return problem.predict(node, state).x0

    first = data_at(nodes[0], x)
    predicted = unified(nodes[0], nodes[1], x, first, [])
    second = data_at(nodes[1], predicted)
    corrected = unified(nodes[0], nodes[1], x, first, [(nodes[1], second)])
    predicted = unified(nodes[1], nodes[2], corrected, second, [(nodes[0], first)])
    third = data_at(nodes[2], predicted)
    corrected = unified(nodes[1], nodes[2], corrected, second, [(nodes[2], third), (nodes[0], first)])
    assert_equal(found, unified(nodes[2], nodes[3], corrected, third, [(nodes[1], second)]))


@on_every_path
@in_both_directions
def test_lms_is_adams_bashforth_of_variable_step(path, flipped):
    """The formula of Zhou et al. 2024, "Fast ODE-based sampling", for three, its misplaced bracket put right."""

    def rule(nodes, predictions, i, x):
        s = [node.s for node in nodes]
        h = [b - a for a, b in pairwise(s)]
        weights = [1.0]
        if i == 1:
            weights = [1 + h[1] / h[0] / 2, -h[1] / h[0] / 2]
        if i > 1:
            now, one, two = h[i], h[i - 1], h[i - 2]
            curvature = (1 - now / (3 * (now + one))) * now * (now + one) / (one * (one + two)) / 2
            weights = [
                1 + now / one / 2 + curvature,
                -now / one / 2 - curvature * (1 + one / two),
                curvature * one / two,
            ]
        change = sum(w * predictions[i - j].eps for j, w in enumerate(weights))
        return nodes[i + 1].alpha * (x / nodes[i].alpha + h[i] * change)

    assert_equal(end_of(LMS(3), path, flipped), walk(path, rule, flipped))


@on_every_path
@in_both_directions
def test_ipndm_has_the_weights_of_pndm_between_ddim_steps(path, flipped):
    """Liu et al. 2022, "PNDM", eqs. 11 and 12."""
    rows = [(1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24)]

    def rule(nodes, predictions, i, x):
        a, b = nodes[i], nodes[i + 1]
        eps = sum(w * predictions[i - j].eps for j, w in enumerate(rows[min(i, 3)]))
        return b.alpha * (x - a.sigma * eps) / a.alpha + b.sigma * eps

    assert_equal(end_of(IPNDM(), path, flipped), walk(path, rule, flipped))


def test_constant_weights_are_right_on_nodes_that_are_even_in_s():
    problem = problem_on()
    times = [math.atan(s) for s in np.linspace(2.0, 0.3, 12)]
    ends = [solve(problem, solver, starting_points(), times).x for solver in (IPNDM(), LMS(), IPNDM(3))]
    assert_equal(ends[0], ends[1], 1e-12)
    assert (ends[0] - ends[2]).abs().max() > 1e-6


def test_deis_in_t_is_the_integral_of_its_paper():
    """Zhang & Chen 2023, eq. 15: C = alpha_b integral (ds/dt) Lagrange(t) dt; here by the trapezoidal rule."""

    def rule(nodes, predictions, i, x):
        a, b = nodes[i], nodes[i + 1]
        order = min(i + 1, 3)
        t = np.linspace(a.t, b.t, 20_001)
        rate = 1 / np.cos(t) ** 2  # of s = tan t
        x = b.alpha / a.alpha * x
        for j in range(order):
            others = [nodes[i - m].t for m in range(order) if m != j]
            lagrange = math.prod((t - other) / (nodes[i - j].t - other) for other in others) * np.ones_like(t)
            x = x + b.alpha * float(np.trapezoid(rate * lagrange, t)) * predictions[i - j].eps
        return x

    assert_equal(end_of(DEIS(3)), walk("trigonometric", rule), 1e-8)


# Histories


def run(solver, problem, nodes, x):
    """The states of a run that `solve` does not make: nodes may be (B,) arrays."""
    state = solver.start(problem, nodes, x, stream=NoiseStream(0))
    states = [x]
    for a, b in pairwise(nodes):
        step = solver.step(problem, a, b, states[-1], state)
        states.append(step.x)
        state = step.state
    return states, state


CORRECTED = [UniPC(), UniPC(p=3), ExponentialAdams(4, Rotation(), "q", corrector=True), solvers.GPMultistep()]


@pytest.mark.parametrize("solver", CORRECTED, ids=str)
@pytest.mark.parametrize("apart", [1e-2, 1e-8])
@pytest.mark.parametrize("path", ["table", "rectified flow"])
def test_nodes_that_nearly_coincide_do_no_harm(solver, path, apart):
    problem = problem_on(path)
    times = odediff.grid.plateau(PATHS[path], 25)[:-1].tolist()
    x = starting_points() * problem.node(times[0]).sigma
    exact = solve(problem, solvers.Adaptive(solvers.DOP853(), 1e-11), x, [times[0], times[-1]], closing=None).x
    error = (solve(problem, solver, x, times, closing=None).x - exact).abs().max()
    for i in (12, 20):
        doubled = [*times[: i + 1], times[i] + apart * (times[i + 1] - times[i]), *times[i + 1 :]]
        found = solve(problem, solver, x, doubled, closing=None)
        assert (found.x - exact).abs().max() < 1.5 * error + 1e-4


@pytest.mark.parametrize("solver", [DPMpp(3), DEIS(3), LMS()], ids=str)
def test_nodes_that_nearly_coincide_do_not_multiply_the_rounding_of_the_network(solver):
    problem, times = problem_on(), [node.t for node in nodes_on()]
    doubled = [*times[:5], times[4] + 1e-6 * (times[5] - times[4]), *times[5:]]
    exact, rounded = (
        solve(problem, solver, starting_points().to(dtype), doubled, closing=None).x
        for dtype in (torch.float64, torch.float32)
    )
    torch.testing.assert_close(rounded.double(), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", METHODS, ids=str)
def test_samples_that_keep_their_own_times_end_where_each_ends_alone(solver):
    problem, x = problem_on(), starting_points()
    # The second starts at pure noise, the third at the data: DDIM steps for them alone, and shorter histories.
    spans = ((1.3, 0.4), (math.pi / 2, 0.3), (0.0, 1.2), (0.3, 1.0))
    rows = [np.linspace(*span, 9) for span in spans]
    together, _ = run(solver, problem, [problem.node(column) for column in np.stack(rows, axis=1)], x)
    for i, row in enumerate(rows):
        alone, _ = run(solver, problem, [problem.node(float(t)) for t in row], x[i : i + 1])
        assert_equal(together[-1][i : i + 1], alone[-1], 1e-12)


@pytest.mark.parametrize("solver", METHODS, ids=str)
@pytest.mark.parametrize("path", ["trigonometric", "table"])
def test_a_solve_in_three_parts_is_one_solve_bit_for_bit(solver, path):
    problem, times = problem_on(path), [node.t for node in nodes_on(path)]
    whole = solve(problem, solver, starting_points(), times, closing=None)
    x, state = starting_points(), None
    for part in (times[:3], times[2:4], times[3:]):
        solution = solve(problem, solver, x, part, closing=None, state=state)
        x, state = solution.x, solution.state
    assert torch.equal(x, whole.x)


@pytest.mark.parametrize("solver", [*METHODS, UniPC(2, "bh2", **KEPT)], ids=str)
def test_the_state_holds_the_predictions_that_the_next_step_reads_and_no_copies(solver):
    problem, nodes = problem_on(), nodes_on()
    seen = []

    class Watched(ExactODE):
        def predict(self, node, x):
            seen.append(super().predict(node, x))
            return seen[-1]

    watched = Watched(problem.distribution, problem.path)
    _, state = run(solver, watched, nodes, starting_points())
    corrects = isinstance(solver, UniPC)
    assert len(state.slopes) == solver.points - (not corrects)
    assert state.predicted == corrects
    if not isinstance(solver, PNDM):  # whose stages lie between
        latest = zip(reversed(nodes[:-1]), reversed(seen), state.slopes, strict=False)
        for node, prediction, (factor, slope) in latest:
            assert factor == 1
            assert slope is solver.line.slope(node, prediction)


@pytest.mark.parametrize("solver", [DPMpp(3, **KEPT), DPMSolver(3, **KEPT), DEIS(4), LMS(3)], ids=str)
def test_exact_history_spares_the_start_and_is_paid_for(solver):
    problem, times = problem_on(), torch.linspace(1.3, 0.4, 24, dtype=torch.float64)
    exact = solve(problem, solvers.Scipy("DOP853", rtol=1e-12), starting_points(), times, trajectory=True).trajectory
    past = [(problem.node(float(times[i])), exact[i]) for i in (3, 2, 1, 0)]
    with_past = solve(problem, solver, exact[4], times[4:], past=past)
    without = solve(problem, solver, exact[4], times[4:])
    assert (with_past.x - exact[-1]).abs().max() < 0.5 * (without.x - exact[-1]).abs().max()
    assert with_past.stats.nfe == without.stats.nfe + solver.points - 1


def test_a_history_is_read_as_far_as_its_first_singular_node():
    class Refuses(ExactODE):
        def predict(self, node, x):
            assert node.sigma > 0
            return super().predict(node, x)

    problem, x = Refuses(mild_mixture().distribution), starting_points()
    past = [(problem.node(t), x) for t in (0.3, 0.0)]
    state = DPMpp(3, **KEPT).start(problem, [problem.node(t) for t in (0.5, 0.8)], x, past=past)
    assert len(state.slopes) == 1


@pytest.mark.parametrize("solver", METHODS, ids=str)
def test_a_step_without_a_start_is_the_first_of_its_grid(solver):
    problem, x, (a, b, *_) = problem_on(), starting_points(), nodes_on()
    found = solver.step(problem, a, b, x)
    states, _ = run(solver, problem, [a, b], x)
    assert torch.equal(found.x, states[-1])


@pytest.mark.parametrize("times", [[math.pi / 2, 1.3, 1.1, 0.8], [0.0, 0.3, 0.5, 0.8]], ids=["noise", "data"])
@pytest.mark.parametrize(
    "solver", [ExponentialAdams(3, Noise()), ExponentialAdams(3, Data()), ExponentialAdams(3, Rotation())], ids=str
)
def test_a_singular_node_is_left_by_ddim_and_enters_no_history(solver, times):
    problem, x = problem_on(), starting_points()
    nodes = [problem.node(t) for t in times]
    nodes[0] = nodes[0]._replace(alpha=0.0) if times[0] > 1 else nodes[0]
    singular = solver.line.singular(nodes[0]) or solver.line == Rotation() or (solver.line == Noise() and times[0] == 0)
    states, _ = run(solver, problem, nodes, x)
    if singular:
        ddim = DDIM().step(problem, nodes[0], nodes[1], x).x
        assert torch.equal(states[1], ddim)
        afresh, _ = run(solver, problem, nodes[1:], ddim)
        assert torch.equal(states[-1], afresh[-1])
    assert all(torch.isfinite(state).all() for state in states)


def test_no_polynomial_in_s_passes_through_a_node_near_pure_noise():
    problem, x, solver = problem_on(), starting_points(), ExponentialAdams(3, Data(), "s")
    nodes = [problem.node(t) for t in (math.acos(5e-4), 1.3, 1.1, 0.9)]
    states, _ = run(solver, problem, nodes, x)
    ddim = DDIM().step(problem, nodes[0], nodes[1], x).x
    afresh, _ = run(solver, problem, nodes[1:], ddim)
    assert torch.equal(states[-1], afresh[-1])


def test_the_order_falls_to_one_at_the_end_of_short_grids_alone():
    problem, nodes = problem_on(), nodes_on()
    lowered, _ = run(DPMpp(3, lower_order_below=9), problem, nodes, starting_points())
    plain, _ = run(DPMpp(3, **KEPT), problem, nodes, starting_points())
    long, _ = run(DPMpp(3, lower_order_below=8), problem, nodes, starting_points())
    assert torch.equal(long[-1], plain[-1])
    assert torch.equal(lowered[-3], plain[-3])
    assert torch.equal(lowered[-1], DDIM_on_the_data_line(problem, nodes[-2], nodes[-1], lowered[-2]))
    assert not DPMpp(3, lower_order_below=9).carries_on


def DDIM_on_the_data_line(problem, a, b, x):
    return run(DPMpp(1, **KEPT), problem, [a, b], x)[0][-1]


@pytest.mark.parametrize(
    ("solver", "steps", "calls"),
    [(UniPC(), 7, 7), (DPMpp(), 7, 7), (PNDM(), 2, 8), (PNDM(), 7, 16), (PNDM(warm_up="improved_euler"), 7, 8)],
    ids=str,
)
def test_calls(solver, steps, calls):
    times = torch.linspace(1.3, 0.4, steps + 1, dtype=torch.float64)
    assert solve(problem_on(), solver, starting_points(), times).stats.nfe == calls == solver.calls(steps)


# What they refuse


class NeverCalled(ExactODE):
    def predict(self, node, x):
        raise AssertionError("the field was called before the arguments were checked")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ExponentialAdams(0), ValueError, "ExponentialAdams: order=0 must be a whole number from 1 to 6"),
        (lambda: ExponentialAdams(7), ValueError, "order=7"),
        (lambda: ExponentialAdams(2.5), ValueError, "order=2.5"),
        (lambda: ExponentialAdams(True), ValueError, "order=True"),
        (lambda: ExponentialAdams(1, corrector=True), ValueError, "order=1 must be a whole number from 2 to 7"),
        (lambda: ExponentialAdams(line="data"), TypeError, r"line='data' must be a solvers\.Line"),
        (lambda: ExponentialAdams(variable="lambda"), ValueError, "variable='lambda' is unknown; use one of log_snr"),
        (lambda: ExponentialAdams(lower_order_below=-1), ValueError, "lower_order_below=-1"),
        (lambda: DPMpp(4), ValueError, "DPMpp: order=4 must be a whole number from 1 to 3"),
        (lambda: DPMSolver(3, halved=True), ValueError, "order 2, not order=3"),
        (lambda: DPMpp(3, form="midpoint"), ValueError, 'form="midpoint" is of order 2, not order=3'),
        (lambda: DPMpp(2, form="euler"), ValueError, "form='euler' is unknown"),
        (lambda: UniPC(0), ValueError, "UniPC: p=0 must be a whole number from 1 to 6"),
        (lambda: UniPC(2, "bh3"), ValueError, "rho='bh3' is unknown"),
        (lambda: UniPC(2, "bh1", line=Rotation()), ValueError, 'use rho="solved"'),
        (lambda: DEIS(2, variable="s"), ValueError, "variable='s'"),
        (lambda: IPNDM(5), ValueError, "IPNDM: order=5 must be a whole number from 1 to 4"),
        (lambda: PNDM(warm_up="euler"), ValueError, "warm_up='euler' is unknown"),
    ],
)
def test_a_setting_that_has_no_meaning_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("history", [[0.8], [1.0], [1.1, 1.05]], ids=["ahead", "at the start", "oldest first"])
def test_a_history_that_does_not_lie_behind_is_refused_before_the_first_call(history):
    problem, x = NeverCalled(mild_mixture().distribution), starting_points()
    past = [(problem.node(t), x) for t in history]
    with pytest.raises(ValueError, match=r"(past|times): DPMpp.*log_snr, where .* coincide or turn back"):
        solve(problem, DPMpp(), x, [1.0, 0.9, 0.7], past=past)


def test_nodes_that_coincide_in_the_variable_are_refused_before_the_first_call():
    class Clipped(Trigonometric):
        def node(self, t):
            return super().node(min(t, 1.2))._replace(t=t)

    problem = NeverCalled(mild_mixture().distribution, Clipped())
    with pytest.raises(ValueError, match="times: DPMpp.* nodes 0 and 1 coincide or turn back"):
        solve(problem, DPMpp(), starting_points(), [1.4, 1.3, 1.0, 0.8])


def test_a_past_of_another_shape_and_a_past_beside_a_state_are_refused():
    problem, x = problem_on(), starting_points()
    with pytest.raises(ValueError, match=r"past\[0\] has the state \(2, 2\) for x of \(4, 2\)"):
        solve(problem, DPMpp(), x, [1.0, 0.9], past=[(problem.node(1.1), x[:2])])
    state = solve(problem, DPMpp(), x, [1.1, 1.0]).state
    with pytest.raises(ValueError, match="past, state: both carry a history"):
        solve(problem, DPMpp(), x, [1.0, 0.9], past=[(problem.node(1.1), x)], state=state)
    with pytest.raises(TypeError, match="state: a NoiseStream is not a history of DPMpp"):
        solve(problem, DPMpp(), x, [1.0, 0.9], state=NoiseStream(0))


def test_a_plain_ode_is_refused():
    class Plain(solvers.ODE):
        def __call__(self, t, x):
            return x

    with pytest.raises(TypeError, match="DPMpp.* needs predictions of data and noise"):
        solve(Plain(), DPMpp(), starting_points(), [1.0, 0.9])


def test_single_nodes_stay_floats():
    state = UniPC().start(problem_on(), nodes_on(), starting_points())
    for move in state.moves:
        assert move.formula is None or all(type(c) is float for c in (move.formula.ratio, *move.formula.weights))
    assert isinstance(nodes_on()[0], Node)


@pytest.mark.parametrize(("solver", "reads"), HISTORIES, ids=str)
def test_a_solve_holds_its_history_and_two_states(solver, reads):
    assert peak_states(solver) < reads + 2.01
