import math
import pickle
import shutil
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch

import solvers
from benchmarks.methods import exported_variants
from odediff.schedule import VE
from solvers import (
    DDIM,
    DDPM,
    ODE,
    RK4,
    Data,
    Euler,
    Heun,
    Midpoint,
    Noise,
    NoiseStream,
    PathODE,
    Prediction,
    Rotation,
    SolveError,
    Status,
    Step,
    UniPC,
    combine,
    fusion,
    solve,
)
from solvers.closing import extrapolate_data
from solvers.counting import counted
from solvers.large import LEAST, reusing
from solvers.requests import Recorded
from solvers.testing import ExactODE, Gaussian, Trigonometric, flow, mild_mixture, starting_points, uneven_times

TIMES = (1.2, 0.9, 0.6, 0.4)
TO_THE_DATA = (*TIMES, 0.0)


class Decay(ODE):
    """dx/dt = -x: an ODE without a path."""

    def __call__(self, t, x):
        return -x


class Untouched(ExactODE):
    """A problem whose field must not be called."""

    def predict(self, node, x):
        raise AssertionError("the field was called before the arguments were checked")


class WithEnds(Trigonometric):
    """alpha is exactly 0 at the noise end, where the cosine of the rounded angle is 6e-17."""

    def node(self, t):
        node = super().node(t)
        return node._replace(alpha=node.alpha * (t != math.pi / 2))


def with_ends():
    return ExactODE(mild_mixture().distribution, WithEnds())


def untouched():
    return Untouched(Gaussian())


def solved(solver=None, x=None, times=TIMES, **options):
    return solve(mild_mixture(), solver or DDIM(), starting_points() if x is None else x, times, **options)


# Arguments


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"solver": DDIM}, TypeError, r"solver=.*solvers\.DDIM\(\)"),
        ({"solver": "ddim"}, TypeError, r"solver='ddim'"),
        ({"ode": lambda t, x: -x}, TypeError, r"ode=.*probability_flow"),
        ({"closing": "late"}, ValueError, r"closing='late'.*denoise.*extrapolate.*None"),
        ({"closing": True}, ValueError, r"closing=True"),
        ({"max_nfe": 0}, ValueError, r"max_nfe=0"),
        ({"max_nfe": -3}, ValueError, r"max_nfe=-3"),
        ({"max_nfe": 2.5}, ValueError, r"max_nfe=2\.5"),
        ({"max_nfe": True}, ValueError, r"max_nfe=True"),
        ({"x": [[1.0, 2.0]]}, TypeError, r"x must be a torch\.Tensor.*list"),
        ({"x": np.zeros((2, 2))}, TypeError, r"x must be a torch\.Tensor.*ndarray"),
        ({"x": torch.zeros(2, 2, dtype=torch.int64)}, TypeError, r"x has dtype torch\.int64.*float"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x has no batch dimension"),
        ({"times": [1.0]}, ValueError, r"times has shape \(1,\).*two"),
        ({"times": []}, ValueError, r"times has shape \(0,\)"),
        ({"times": 1.0}, ValueError, r"times has shape \(\)"),
        ({"times": [[1.0, 0.5]]}, ValueError, r"times has shape \(1, 2\)"),
        ({"times": [1.0, math.nan, 0.5]}, ValueError, r"times\[1\] is not finite"),
        ({"times": [math.inf, 0.5]}, ValueError, r"times\[0\] is not finite"),
        ({"times": [1.0, 1.0]}, ValueError, r"times must be strictly monotone.*times\[0\]=1 is followed by 1"),
        ({"times": [1.0, 0.5, 0.7]}, ValueError, r"times\[1\]=0\.5 is followed by 0\.7"),
        ({"times": [0.2, 0.5, 0.5, 0.7]}, ValueError, r"times\[1\]=0\.5 is followed by 0\.5"),
        ({"times": ["a", "b"]}, (TypeError, ValueError), r"times"),
        ({"times": [[1.0, 0.5], [0.2]]}, (TypeError, ValueError), r"times"),
        ({"times": None}, (TypeError, ValueError), r"times"),
        ({"callback": 3}, TypeError, r"callback=3"),
        ({"throw": "no"}, TypeError, r"throw='no' must be True or False"),
        ({"progress": None}, TypeError, r"progress=None must be True or False"),
        ({"trajectory": 1}, TypeError, r"trajectory=1 must be True or False"),
        ({"compile": "reduce-overhead"}, TypeError, r"compile='reduce-overhead' must be True or False"),
        ({"solver": DDPM()}, ValueError, r"stream=None.*NoiseStream\(seed\)"),
        ({"solver": DDIM(eta=0.5)}, ValueError, r"stream=None.*NoiseStream\(seed\)"),
        ({"solver": DDPM(), "stream": 3}, TypeError, r"stream=3.*NoiseStream"),
        ({"solver": DDPM(), "stream": NoiseStream(0, (1, 2))}, ValueError, r"samples has 2 ids and the batch 4 rows"),
        ({"solver": DDPM(), "stream": NoiseStream(0), "times": TIMES[::-1]}, ValueError, r"times.*noise to data"),
        (
            {"solver": DDIM(eta=0.5), "stream": NoiseStream(0), "times": TIMES[::-1]},
            ValueError,
            r"times.*DDIM\(eta=0\)",
        ),
        ({"solver": DDIM(), "ode": Decay()}, TypeError, r"DDIM.*ode=Decay.*PathODE"),
        ({"solver": DDPM(), "ode": Decay(), "stream": NoiseStream(0)}, TypeError, r"DDPM.*ode=Decay.*PathODE"),
        ({"solver": Heun(Noise()), "ode": Decay()}, TypeError, r"Heun.*ode=Decay.*PathODE"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_argument_is_named_before_anything_is_computed(change, error, message):
    arguments = {"ode": untouched(), "solver": DDIM(), "x": starting_points(), "times": TIMES} | change
    with pytest.raises(error, match=message) as caught:
        solve(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan, "x", None])
def test_eta_lies_between_the_ode_and_ddpm(eta):
    with pytest.raises(ValueError, match=r"eta=.*\[0, 1\]"):
        DDIM(eta)


def test_ddpm_has_two_variances():
    with pytest.raises(ValueError, match=r"variance='huge'.*small.*large"):
        DDPM("huge")


@pytest.mark.parametrize(
    "times",
    [
        list(TIMES),
        np.array(TIMES),
        torch.tensor(TIMES, dtype=torch.float64),
        torch.tensor(TIMES).double().requires_grad_(),
    ],
    ids=["list", "numpy", "torch", "torch with gradient"],
)
def test_times_may_be_a_list_an_array_or_a_tensor(times):
    expected = solved().x
    torch.testing.assert_close(solved(times=times).x, expected, rtol=0, atol=1e-7)


def test_whole_numbers_are_times_too():
    problem, x = ExactODE(Gaussian(), VE()), starting_points()
    assert torch.equal(solve(problem, DDIM(), x, [3, 2, 1]).x, solve(problem, DDIM(), x, [3.0, 2.0, 1.0]).x)


# What a solve returns


@pytest.mark.parametrize("shape", [(4,), (4, 2), (2, 3, 4, 5)])
def test_a_state_keeps_its_shape(shape):
    x = torch.randn(*shape, dtype=torch.float64)
    before = x.clone()
    solution = solve(ExactODE(Gaussian()), Heun(), x, TO_THE_DATA)
    assert solution.x.shape == shape
    assert torch.equal(x, before)
    assert solution.status.tolist() == [Status.SUCCESS] * shape[0]
    assert solution.success


def test_an_empty_batch_ends_empty():
    """The last shard of a sharded run may have no sample."""
    solution = solve(ExactODE(Gaussian()), Heun(), torch.zeros(0, 3), TO_THE_DATA)
    assert solution.x.shape == (0, 3)
    assert solution.status.shape == (0,)
    assert solution.success


@pytest.mark.parametrize(
    "solver, nfe",
    [(DDIM(), 4), (Euler(), 4), (Heun(), 7), (Midpoint(Noise()), 7), (RK4(Rotation()), 13), (DDPM(), 4)],
    ids=str,
)
@pytest.mark.parametrize("progress", [False, True])
def test_a_solve_reports_what_it_cost(solver, nfe, progress, capsys):
    stats = solved(solver, times=TO_THE_DATA, stream=NoiseStream(0), progress=progress).stats
    assert stats.nfe == stats.network_evaluations == nfe
    assert stats.evaluations.tolist() == [nfe] * 4
    assert stats.evaluations.dtype == torch.int64
    assert stats.steps == 4
    assert ("4/4" in capsys.readouterr().err) == progress


def test_guidance_doubles_the_network_evaluations_alone():
    class Guided(ExactODE):
        passes = 2

    stats = solve(Guided(Gaussian()), Heun(), starting_points(), TIMES).stats
    assert stats.nfe == 6
    assert stats.network_evaluations == 12
    assert stats.evaluations.tolist() == [6] * 4


def test_nodes_trajectory_and_callback_tell_the_same_story():
    seen = []
    solution = solved(Heun(), times=TO_THE_DATA, trajectory=True, callback=lambda node, x: seen.append((node, x)))
    assert [node.t for node in solution.nodes] == list(TO_THE_DATA)
    assert [node for node, _ in seen] == solution.nodes[1:]
    assert solution.trajectory.shape == (5, 4, 2)
    assert torch.equal(solution.trajectory[0], starting_points())
    assert torch.equal(solution.trajectory[1:], torch.stack([x for _, x in seen]))
    assert torch.equal(solution.trajectory[-1], solution.x)
    assert solved().trajectory is None


def test_the_trajectory_of_a_prefix_is_a_prefix_of_the_trajectory():
    whole = solved(Heun(Noise()), trajectory=True).trajectory
    for end in (2, 3):
        assert torch.equal(solved(Heun(Noise()), times=TIMES[:end]).x, whole[end - 1])


@pytest.mark.parametrize("solver", [Euler(), Heun(), RK4()], ids=str)
def test_an_ode_without_a_path_is_solved_by_runge_kutta(solver):
    times = np.linspace(0, 1, 41)
    found = solve(Decay(), solver, torch.ones(2, 1, dtype=torch.float64), times)
    assert float(found.x[0]) == pytest.approx(math.exp(-1), abs={1: 1e-2, 2: 1e-4, 4: 1e-8}[solver.order])
    assert found.stats.nfe == 40 * solver.order


# Failures


class Shifted(ExactODE):
    """The mild mixture, with ``shift`` added to one sample's prediction below t = 0.7."""

    def __init__(self, shift):
        super().__init__(mild_mixture().distribution)
        self.shift = shift

    def predict(self, node, x):
        prediction = super().predict(node, x)
        if node.t >= 0.7 or len(x) < 4:
            return prediction
        shift = torch.zeros(len(x), 1, dtype=x.dtype)
        shift[2] = self.shift
        return Prediction(prediction.x0 + shift, prediction.eps + shift)


def broken():
    return Shifted(math.nan)


@pytest.mark.parametrize(
    ("solver", "closing"),
    [
        *product((DDIM(), Heun(), RK4(Noise()), Euler(Data())), ("denoise", "extrapolate", None)),
        *product((DDPM(),), ("denoise", None)),
    ],
)
def test_a_nan_stays_in_its_own_row(solver, closing):
    options = {"times": TO_THE_DATA, "closing": closing, "stream": NoiseStream(0)}
    found = solve(broken(), solver, starting_points(), throw=False, **options)
    whole = solve(Shifted(0.0), solver, starting_points(), **options)
    assert found.status.tolist() == [Status.SUCCESS, Status.SUCCESS, Status.NON_FINITE, Status.SUCCESS]
    assert not found.success
    assert torch.equal(found.x[[0, 1, 3]], whole.x[[0, 1, 3]])
    assert found.stats.nfe == whole.stats.nfe


def test_a_failed_sample_raises_after_the_solve_with_what_was_reached():
    with pytest.raises(SolveError, match=r"1 of 4 samples NON_FINITE: .*throw=False") as caught:
        solve(broken(), Heun(), starting_points(), TO_THE_DATA)
    assert caught.value.solution.status.tolist() == [0, 0, 1, 0]
    assert torch.isfinite(caught.value.solution.x[[0, 1, 3]]).all()
    assert caught.value.solution.stats.steps == 4


def test_an_infinite_start_is_reported_for_its_row():
    x = starting_points()
    x[1, 0] = math.inf
    assert solved(x=x, throw=False).status.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("budget, steps", [(1, 0), (2, 1), (3, 1), (5, 2)])
def test_a_spent_budget_ends_the_solve_at_the_last_whole_step(budget, steps):
    found = solved(Heun(), max_nfe=budget, throw=False, trajectory=True)
    assert found.stats.nfe == budget
    assert found.stats.steps == steps
    assert found.status.tolist() == [Status.BUDGET] * 4
    expected = solved(Heun(), times=TIMES[: steps + 1]).x if steps else starting_points()
    assert torch.equal(found.x, expected)
    assert len(found.trajectory) == steps + 1


def test_a_budget_that_suffices_changes_nothing():
    assert torch.equal(solved(Heun(), max_nfe=6).x, solved(Heun()).x)
    with pytest.raises(SolveError, match=r"4 of 4 samples BUDGET: .*raise max_nfe"):
        solved(Heun(), max_nfe=5)


def test_a_budget_spent_does_not_hide_a_nan():
    found = solve(broken(), DDIM(), starting_points(), TO_THE_DATA, max_nfe=4, throw=False)
    assert found.status.tolist() == [0, 0, 1, 0]
    found = solve(broken(), DDIM(), starting_points(), TO_THE_DATA, max_nfe=3, throw=False)
    assert found.status.tolist() == [2, 2, 1, 2]


@pytest.mark.parametrize("status", list(Status))
def test_every_status_says_what_to_do(status):
    assert len(status.advice.split()) >= 5


# The two ends of time


@pytest.mark.parametrize("solver", [Heun(), RK4(Noise()), Heun(Data()), Midpoint(Rotation())], ids=str)
def test_closing_by_denoising_is_one_ddim_step_for_one_call(solver):
    before = solved(solver)
    closed = solved(solver, times=TO_THE_DATA)
    prediction = mild_mixture().predict(mild_mixture().node(TIMES[-1]), before.x)
    assert torch.equal(closed.x, combine((1.0, prediction.x0), (0.0, prediction.eps)))
    assert closed.stats.nfe == before.stats.nfe + 1


@pytest.mark.parametrize("solver", [Heun(), RK4(Noise()), Heun(Data()), DDIM()], ids=str)
def test_closing_by_extrapolation_costs_no_call(solver):
    assert solved(solver, times=TO_THE_DATA, closing="extrapolate").stats.nfe == solved(solver).stats.nfe


def test_closing_is_the_solvers_own_when_it_is_none():
    own = solved(Heun(Noise()), times=TO_THE_DATA, closing=None)
    assert own.stats.nfe == 8
    node = mild_mixture().node(TIMES[-1])
    x = solved(Heun(Noise())).x
    problem = mild_mixture()
    first = problem.predict(node, x).eps
    y = x / node.alpha
    second = problem.predict(problem.node(0.0), y - node.s * first).eps
    torch.testing.assert_close(own.x, y - node.s * (first + second) / 2, rtol=0, atol=1e-14)


class Quadratic(PathODE):
    """A network whose prediction of x0 is a quadratic in s^2, whatever the state."""

    coefficients = (0.3, -0.7, 0.2)

    def predict(self, node, x):
        value = sum(c * node.s ** (2 * power) for power, c in enumerate(self.coefficients))
        x0 = torch.full_like(x, value)
        return Prediction(x0, (x - node.alpha * x0) / node.sigma)

    def node(self, t):
        return Trigonometric().node(t)

    def node_at(self, log_snr):
        return Trigonometric().node_at(log_snr)

    def rates(self, t):
        return Trigonometric().rates(t)


@pytest.mark.parametrize("solver", [DDIM(), Heun(), RK4(Rotation())], ids=str)
def test_extrapolation_is_exact_for_a_parabola_in_the_squared_ratio(solver):
    found = solve(Quadratic(), solver, starting_points(), TO_THE_DATA, closing="extrapolate")
    torch.testing.assert_close(found.x, torch.full_like(found.x, Quadratic.coefficients[0]), rtol=0, atol=1e-13)


def test_extrapolation_is_far_better_than_denoising_on_a_fine_grid():
    """x0 is even in s: the error falls from second to sixth order in the last s."""
    truth = flow(starting_points(), torch.tensor([1.2, 0.0], dtype=torch.float64))[0]
    times = [*np.linspace(1.2, 0.05, 60).tolist(), 0.0]
    errors = {
        closing: float((solved(RK4(Rotation()), times=times, closing=closing).x - truth).abs().max())
        for closing in ("denoise", "extrapolate")
    }
    assert errors["extrapolate"] < errors["denoise"] / 50


@pytest.mark.parametrize("nodes", [1, 2])
def test_extrapolation_uses_the_nodes_that_there_are(nodes):
    times = TIMES[: nodes + 1]
    found = solved(times=(*times, 0.0), closing="extrapolate")
    problem, x = mild_mixture(), starting_points()
    predictions = []
    for a, b in zip(times, times[1:], strict=False):
        predictions.append((problem.node(a).s ** 2, problem.predict(problem.node(a), x).x0))
        x = solved(x=x, times=(a, b)).x
    if nodes == 1:
        expected = predictions[0][1]
    else:
        (u, first), (v, second) = predictions
        expected = (u * second - v * first) / (u - v)
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-14)
    assert found.stats.nfe == nodes


@pytest.mark.parametrize(("solver", "known"), [(RK4(Rotation()), 0), (solvers.DPMpp(2), 1)], ids=["stages", "past"])
def test_extrapolation_reads_the_predictions_at_the_starts_of_steps_alone(solver, known):
    problem, x = mild_mixture(), starting_points()
    options = {"past": [(problem.node(1.3), x)][:known], "trajectory": True}
    found = solve(problem, solver, x, [*TIMES, 0.0], closing="extrapolate", **options)
    states = solve(problem, solver, x, TIMES, **options).trajectory
    nodes = problem.nodes(TIMES)[:-1]
    recent = [(node, problem.predict(node, state).x0) for node, state in zip(nodes, states, strict=False)]
    torch.testing.assert_close(found.x, extrapolate_data(problem.node(0.0), recent), rtol=0, atol=1e-13)


def test_extrapolation_from_a_single_node_is_the_denoising_step():
    assert torch.equal(solved(times=(0.4, 0.0), closing="extrapolate").x, solved(times=(0.4, 0.0)).x)


@pytest.mark.parametrize("nodes", [2, 3])
def test_extrapolation_leaves_out_a_node_of_pure_noise(nodes):
    """There s is infinite, and the node carries no information about the limit s = 0."""

    problem = with_ends()
    times = (math.pi / 2, *TIMES[:nodes], 0.0)
    found = solve(problem, DDIM(), starting_points(), times, closing="extrapolate")
    assert torch.isfinite(found.x).all()
    after = solve(problem, DDIM(), starting_points(), times[:2]).x
    rest = solve(problem, DDIM(), after, times[1:], closing="extrapolate")
    torch.testing.assert_close(found.x, rest.x, rtol=0, atol=1e-14)


def test_extrapolated_weights_sum_to_one():
    problem, x = mild_mixture(), torch.ones(1, 1, dtype=torch.float64)
    recent = [(problem.node(t), x) for t in (0.3, 0.25, 0.2)]
    assert float(extrapolate_data(problem.node(0.0), recent)) == pytest.approx(1, abs=1e-13)


def test_a_stochastic_solver_may_have_its_closing_step_alone():
    found = solved(DDPM(), times=(0.4, 0.0), stream=NoiseStream(0))
    assert torch.equal(found.x, solved(times=(0.4, 0.0)).x)


@pytest.mark.parametrize("solver", [DDPM(), DDPM("large"), DDIM(eta=0.5), DDIM(eta=1.0)], ids=str)
def test_a_stochastic_solver_adds_no_noise_on_its_last_step(solver):
    ends = [solved(solver, times=(0.4, 0.0), stream=NoiseStream(seed), closing=None).x for seed in (0, 1)]
    assert torch.equal(*ends)


@pytest.mark.parametrize("solver", [DDPM(), DDPM("large"), DDIM(eta=0.5), DDIM(eta=1.0)], ids=str)
def test_a_stochastic_solver_may_start_in_pure_noise(solver):
    problem = with_ends()
    found = solve(problem, solver, starting_points(), (math.pi / 2, 0.8, 0.0), stream=NoiseStream(0))
    assert found.success


@pytest.mark.parametrize("solver", [Heun(), RK4(Noise()), RK4(Data()), RK4(Rotation())], ids=str)
def test_the_flipped_grid_inverts(solver):
    times = uneven_times(1.2, 0.2, 160)
    there = solved(solver, times=times).x
    back = solved(solver, x=there, times=times.flip(0)).x
    assert (there - starting_points()).abs().max() > 0.1
    torch.testing.assert_close(back, starting_points(), rtol=0, atol=2e-4 if solver.order == 2 else 1e-7)


def test_inversion_may_start_at_the_data_itself():
    """With sigma = 0 exact: no closing, whatever the argument says, because the grid does not end there."""
    times = (0.0, 0.4, 0.9)
    for closing in ("denoise", "extrapolate", None):
        found = solved(Heun(), times=times, closing=closing)
        assert found.success
        assert found.stats.nfe == 3


# Carrying on


@pytest.mark.parametrize("solver", [DDPM(), DDIM(eta=0.5), DDIM(), Heun(Noise())], ids=str)
def test_a_solve_is_carried_on_by_its_state(solver):
    whole = solved(solver, stream=NoiseStream(2), times=TO_THE_DATA)
    half = solved(solver, stream=NoiseStream(2), times=TIMES[:3])
    rest = solved(solver, x=half.x, times=TO_THE_DATA[2:], state=half.state)
    assert torch.equal(rest.x, whole.x)


def test_the_state_of_a_stochastic_solve_is_the_stream_after_it():
    assert solved(DDPM(), stream=NoiseStream(2, counter=5)).state == NoiseStream(2, counter=8)


def test_a_carried_state_wins_over_a_stream():
    state = NoiseStream(2, counter=5)
    found = solved(DDPM(), stream=NoiseStream(9), state=state)
    assert torch.equal(found.x, solved(DDPM(), stream=state).x)


# Precision and gradients


@pytest.mark.parametrize("solver", [DDIM(), Heun(Noise()), RK4(Rotation()), Euler(Data()), DDPM()], ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float16, 2e-2), (torch.bfloat16, 0.15)])
def test_states_of_lower_precision_keep_it_and_agree_with_float64(solver, dtype, tolerance):
    options = {"times": TO_THE_DATA, "stream": NoiseStream(0)}
    found = solved(solver, x=starting_points(dtype), **options)
    assert found.x.dtype == dtype
    torch.testing.assert_close(found.x.double(), solved(solver, **options).x, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("solver", "closing"),
    [
        *product((DDIM(), Heun(Noise()), RK4(Data()), RK4(), Midpoint(Rotation())), ("denoise", "extrapolate")),
        (DDPM(), "denoise"),
    ],
)
def test_the_gradient_of_a_solve_is_that_of_finite_differences(solver, closing):
    options = {"times": TO_THE_DATA, "closing": closing, "stream": NoiseStream(0)}

    def end(x):
        return solved(solver, x=x, **options).x

    assert torch.autograd.gradcheck(end, starting_points()[:2].requires_grad_(), eps=1e-6, atol=1e-7)


# Nodes per sample

STARTS = np.array([1.2, 0.7, 0.3, 0.9])
ENDS = np.array([0.8, 0.75, 0.2, 0.1])
WITH_SINGULAR = np.array([0.0, 0.7, math.pi / 2, 0.9]), np.array([0.5, 0.0, 0.6, 1.1])
EVERY_SOLVER = [DDIM(), *(s for c in (Euler, Midpoint, Heun, RK4) for s in c.variants())]


@pytest.mark.parametrize("solver", EVERY_SOLVER, ids=str)
@pytest.mark.parametrize(
    "starts, ends", [(STARTS, ENDS), (ENDS, STARTS), WITH_SINGULAR], ids=["down", "up", "singular"]
)
def test_a_step_with_one_time_per_sample_is_the_steps_one_by_one(solver, starts, ends):
    problem, x = with_ends(), starting_points()
    together = solver.step(problem, problem.node(starts), problem.node(ends), x)
    assert torch.isfinite(together.x).all()
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        alone = solver.step(problem, problem.node(start), problem.node(end), x[i : i + 1])
        torch.testing.assert_close(together.x[i : i + 1], alone.x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("solver", [DDIM(eta=0.5), DDPM(), DDPM("large")], ids=str)
def test_a_stochastic_step_with_one_time_per_sample_is_the_steps_one_by_one(solver):
    problem, x = mild_mixture(), starting_points()
    ends = np.array([0.8, 0.0, 0.2, 0.1])
    together = solver.step(problem, problem.node(STARTS), problem.node(ends), x, NoiseStream(1))
    for i, (start, end) in enumerate(zip(STARTS.tolist(), ends.tolist(), strict=True)):
        stream = NoiseStream(1, (i,))
        alone = solver.step(problem, problem.node(start), problem.node(end), x[i : i + 1], stream)
        torch.testing.assert_close(together.x[i : i + 1], alone.x, rtol=0, atol=1e-14)
    assert together.state == NoiseStream(1, counter=1)


def test_rows_at_singular_nodes_are_counted_by_sample():
    """Two DDIM rows cost one call each, the others four, although the step is taken together."""
    problem, x = with_ends(), starting_points()
    wrapped = counted(problem, len(x), None)
    starts, ends = WITH_SINGULAR
    RK4(Data()).step(wrapped, problem.node(starts), problem.node(ends), x)
    assert wrapped.ledger.evaluations.tolist() == [1, 1, 4, 4]


def test_a_record_of_some_samples_is_read_by_their_numbers():
    problem, x = mild_mixture(), starting_points()[:3]
    node = problem.node(0.9)
    record = Recorded(node, problem.predict(node, x), torch.tensor([1, 3, 4]))
    assert torch.equal(record.data(torch.tensor([3, 4])), record.prediction.x0[[1, 2]])


# Compiled combinations


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("solver", [DDIM(), UniPC(), RK4(Noise())], ids=str)
def test_compiled_combinations_give_the_same_states(solver):
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        x = starting_points(dtype)
        plain, compiled = (solved(solver, x, compile=compile).x for compile in (False, True))
        assert compiled.dtype == dtype
        torch.testing.assert_close(compiled, plain, rtol=0, atol=tolerance)


def test_no_case_of_a_compiled_sum_spends_the_compilations_of_another(monkeypatch):
    """After so many of one piece of code the compiler gives up, and leaves it as it is."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    fusion._kernel.cache_clear()
    x = torch.randn(LEAST // 8 + 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True), reusing(x):
        for state in (x, x.float(), x[:50], x[:50].float()):
            for modes in (torch.enable_grad, torch.no_grad, torch.inference_mode):
                with modes():
                    (found,) = fusion.fused([(0.5, 3.0)], (state, state.square()))
                torch.testing.assert_close(found, 0.5 * state + 3 * state.square())
    fusion._kernel.cache_clear()


def test_without_a_compiler_compile_is_refused_before_the_first_call(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found\nin many lines")

    fusion.require_compiler.cache_clear()
    monkeypatch.setattr(fusion, "fused", broken)
    problem = Untouched(mild_mixture().distribution)
    with pytest.raises(ValueError, match=r"compile=True needs a C\+\+ .*\(InvalidCxxCompiler[^\n]*leave it out"):
        solve(problem, DDIM(), starting_points(), TIMES, compile=True)
    assert not fusion.fusing.get()


def test_one_interval_is_denoised_where_a_method_would_extrapolate():
    x = starting_points()
    problem = mild_mixture().watching(x, (0.6, 1.3))
    found = solve(problem, solvers.AdaptiveAdams(), x, [0.6, 0.0], closing="extrapolate")
    assert found.x.equal(solve(problem, DDIM(), x, [0.6, 0.0]).x) and found.stats.nfe == 1


def test_a_sum_that_overflows_is_no_state_that_does():
    x = torch.full((2, 64), 2e38)
    x[1, 3] = math.inf
    found = solve(Decay(), solvers.Euler(), x, [0.0, 1e-3], throw=False)
    assert found.status.tolist() == [Status.SUCCESS, Status.NON_FINITE]


def test_a_pair_of_methods_names_its_solver():
    for pair in (solvers.DOP853(), solvers.DPM12()):
        with pytest.raises(TypeError, match=r"must be a solvers.Solver; pass solvers.Adaptive\(D"):
            solve(mild_mixture(), pair, starting_points(), [1.2, 0.9])


@pytest.mark.parametrize("kind", [solvers.Heun, DDIM])
def test_a_class_is_refused_for_one_of_its_instances(kind):
    with pytest.raises(TypeError, match=rf"must be a solvers.Solver; pass an instance, solvers.{kind.__name__}\(\)"):
        solve(mild_mixture(), kind, starting_points(), [1.2, 0.9])


def test_samples_without_a_component_are_refused():
    with pytest.raises(ValueError, match=r"x has shape \(3, 0\)"):
        solve(mild_mixture(), DDIM(), torch.zeros(3, 0), [1.2, 0.9])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fused_coefficients_keep_their_digits_in_half_precision(dtype, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    fusion._kernel.cache_clear()
    x = torch.tensor([1.0, 2.0], dtype=dtype)
    (found,) = fusion.fused([(1e5, -1.2345678)], (x * 1e-3, x))
    fusion._kernel.cache_clear()
    truth = 1e5 * (x * 1e-3).double() - 1.2345678 * x.double()
    assert found.dtype is dtype
    torch.testing.assert_close(found, truth.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solvers.Heun(Noise), "Heun: line=<class .*Noise'> must be a solvers.Line"),
        (lambda: solvers.GaussLegendre(3), "GaussLegendre: line=3"),
        (lambda: solvers.Torchdiffeq(line="noise"), "Torchdiffeq: line='noise'"),
        (lambda: solvers.AdaptiveAdams(line="noise"), "AdaptiveAdams: line='noise'"),
        (lambda: solvers.AsynchronousLeapfrog(None), "AsynchronousLeapfrog: line=None"),
        (lambda: solvers.Leapfrog(None), "Leapfrog: line=None"),
        (lambda: solvers.RungeKutta(), "RungeKutta has no tableau"),
    ],
)
def test_a_line_is_checked_where_it_is_given(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_whole_numbers_of_numpy_are_whole_numbers():
    assert solvers.AdaptiveAdams(max_order=np.int64(5)).order == 6
    found = solve(
        mild_mixture(),
        solvers.SASolver(predictor_order=np.int64(2)),
        starting_points(),
        [1.2, 0.9, 0.5],
        stream=NoiseStream(np.int64(3)),
        max_nfe=np.int64(5),
    )
    assert found.success


def test_a_state_of_another_method_is_refused():
    x, grid, later = starting_points(), [1.5, 1.4, 1.3], [1.3, 1.2, 1.1]
    history = solve(mild_mixture(), solvers.DPMSolver(3), x, grid)
    companion = solve(mild_mixture(), solvers.Leapfrog(), x, grid)
    for solver, earlier, error in (
        (solvers.DPMpp(3, lower_order_below=0), history, ValueError),
        (solvers.Leapfrog(), history, TypeError),
        (solvers.EDICT(), history, TypeError),
        (solvers.Leapfrog(solvers.Data()), companion, ValueError),
        (solvers.BDIA(), companion, ValueError),
        (solvers.EDICT(), companion, ValueError),
        (solvers.Reversible(), history, TypeError),
        (solvers.DPMpp(2), companion, TypeError),
        (DDIM(1.0), companion, TypeError),
    ):
        with pytest.raises(error, match="state: "):
            solve(mild_mixture(), solver, earlier.x, later, state=earlier.state)


def test_slopes_of_a_stochastic_method_along_another_line_are_refused():
    earlier = solve(mild_mixture(), solvers.SASolver(), starting_points(), [1.5, 1.4, 1.3], stream=NoiseStream(0))
    with pytest.raises(ValueError, match=r"state: it has slopes along Data\(\)"):
        solve(mild_mixture(), solvers.SASolver(line=solvers.Noise()), earlier.x, [1.3, 1.2], state=earlier.state)


@pytest.mark.parametrize(
    "solver",
    [
        DDIM(),
        Heun(),
        solvers.SASolver(),
        solvers.AdaptiveAdams(),
        solvers.EDICT(),
        solvers.Reversible(Heun()),
        solvers.FixedPoint(),
        solvers.Inverse(solvers.AsynchronousLeapfrog()),
        solvers.Torchdiffeq("rk4"),
        solvers.DPMFast(),
        solvers.UniPC(1),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_a_past_that_nothing_would_read_is_refused(solver):
    problem, x = mild_mixture(), starting_points()
    with pytest.raises(ValueError, match="past: .* reads no exact states at earlier nodes; leave it out"):
        solve(problem, solver, x, [1.3, 1.2], past=[(problem.node(1.35), x)])


@pytest.mark.parametrize(
    "solver",
    [DDIM(), solvers.Leapfrog(), UniPC(), solvers.GPMultistep(), solvers.PNDM()],
    ids=lambda solver: type(solver).__name__,
)
@pytest.mark.parametrize(
    ("past", "message"),
    [
        (None, "past=None must be a sequence of .* leave it out for none"),
        (3, "past=3 must be a sequence"),
        ([3], r"past\[0\] must be a pair \(node, state\)"),
        ([Trigonometric().node(1.3)], r"past\[0\] must be a pair"),
        ([(1.3, starting_points())], r"past\[0\] must be a pair .*ode\.node\(t\)"),
    ],
    ids=["nothing", "a number", "numbers", "a node", "a time"],
)
def test_a_past_that_holds_no_pairs_is_named_before_the_first_call(solver, past, message):
    if isinstance(past, list) and not solver.reads_past:
        message = "past: .* leave it out"
    with pytest.raises((TypeError, ValueError), match=message):
        solve(untouched(), solver, starting_points(), [1.2, 1.1, 1.0], past=past)


@pytest.mark.parametrize("solver", [one for one in exported_variants() if one.reads_past], ids=str)
def test_a_past_that_is_read_changes_the_solve(solver):
    problem, x, times = mild_mixture(), starting_points(), [1.2, 1.1, 1.0]
    past = [(problem.node(t), flow(x, torch.tensor([1.2, t], dtype=torch.float64))[0]) for t in (1.25, 1.3, 1.35)]
    with_past, without = (solve(problem, solver, x, times, past=known).x for known in (past, ()))
    assert not torch.equal(with_past, without)


def test_two_solutions_may_be_compared():
    one, other = (solved() for _ in range(2))
    assert one == one and one != other and len({one, other}) == 2


def test_a_failure_is_carried_to_another_process_whole():
    with pytest.raises(SolveError) as failure:
        solve(mild_mixture(), Heun(), starting_points(), [1.5, 1.0, 0.5], max_nfe=2)
    again = pickle.loads(pickle.dumps(failure.value))
    assert str(again) == str(failure.value)
    assert torch.equal(again.solution.status, failure.value.solution.status)


def test_the_past_of_a_two_step_method_is_checked():
    problem, x = mild_mixture(), starting_points()
    state = solve(problem, solvers.Leapfrog(), x, [1.5, 1.4]).state
    for past, more, message in (
        ([(problem.node(1.5), x)], {"state": state}, "past, state"),
        ([(problem.node(1.5), x[:1])], {}, r"past\[0\] has the state"),
        ([(problem.node(1.3), x)], {}, "past: its node t=1.3 does not lie behind"),
        ([(problem.node(1.4), x)], {}, "past: its node t=1.4 does not lie behind"),
    ):
        with pytest.raises(ValueError, match=message):
            solve(problem, solvers.Leapfrog(), x, [1.4, 1.3], past=past, **more)


class Careless(DDIM):
    def step(self, ode, a, b, x, state=None):
        return super().step(ode, a, b, x, state)._replace(x=x.copy_(super().step(ode, a, b, x, state).x))


class Bare(DDIM):
    def step(self, ode, a, b, x, state=None):
        return super().step(ode, a, b, x, state).x


def test_a_step_that_writes_to_its_state_is_found_out():
    with pytest.raises(ValueError, match=r"step writes to the state x"):
        solved(Careless())
    # And what later checks compare with is left alone.
    with pytest.raises(ValueError, match=r"step writes to the state x"):
        solvers.testing.check(Careless())
    solvers.testing.check(DDIM())


class Swapping(DDIM):
    """It computes in two tensors in turn: its own, and one that it takes from the state at the start."""

    def start(self, ode, nodes, x, *, stream=None, past=(), state=None):
        return torch.empty_like(x)

    def step(self, ode, a, b, x, state=None):
        return Step(state.copy_(super().step(ode, a, b, x).x), state=x)


class Alternating(Swapping):
    """It computes in two tensors of its own in turn."""

    def step(self, ode, a, b, x, state=None):
        here, there = state if isinstance(state, tuple) else (state, torch.empty_like(x))
        return Step(here.copy_(DDIM().step(ode, a, b, x).x), state=(there, here))


def test_a_step_that_writes_to_an_earlier_state_is_found_out():
    message = r"step writes to a state from which an earlier step began"
    with pytest.raises(ValueError, match=message):
        solved(Swapping())
    with pytest.raises(ValueError, match=message):
        solved(Alternating(), trajectory=True)
    assert torch.equal(solved(Alternating()).x, solved(DDIM()).x)
    for careless in (Swapping(), Alternating()):
        with pytest.raises(ValueError, match=message):
            solvers.testing.check(careless)


def test_a_callback_may_record_the_states_in_the_tensor_whose_first_row_is_the_start():
    times = [0.9, 0.6, 0.3]
    record = torch.full((3, 4, 2), math.nan, dtype=torch.float64)
    record[0] = start = torch.linspace(-2, 2, 8, dtype=torch.float64).reshape(4, 2)
    end = solved(x=record[0], times=times, callback=lambda node, x: record[times.index(node.t)].copy_(x) is None)
    expected = solved(x=start, times=times, trajectory=True)
    assert torch.equal(record, expected.trajectory) and torch.equal(end.x, expected.x)


@dataclass(frozen=True)
class Reporting(DDIM):
    """Its steps report ``status`` for a batch of 4."""

    status: object = None

    def step(self, ode, a, b, x, state=None):
        return super().step(ode, a, b, x, state)._replace(status=self.status)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (torch.ones(4, dtype=torch.bool), r"the status is \(4,\) of torch.bool; let it be None, or an int64 tensor"),
        (torch.zeros(3, dtype=torch.int64), r"the status is \(3,\) of torch.int64"),
        (torch.tensor(0), r"the status is \(\) of torch.int64"),
        ([0, 0, 0, 0], "the status is a list"),
        (Status.SUCCESS, "the status is a Status"),
    ],
    ids=str,
)
def test_a_status_that_is_not_one_number_for_each_sample_is_named(status, message):
    with pytest.raises(ValueError, match=r"Reporting.*step: " + message):
        solved(Reporting(status=status))
    assert solved(Reporting(status=torch.zeros(4, dtype=torch.int64))).success


class Answering(ODE):
    """A field that returns what it is told to."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, t, x):
        return self.answer(x)


class Predicting(ExactODE):
    """A path whose prediction is changed by a function of the exact one and the state."""

    def __init__(self, change):
        super().__init__(Gaussian())
        self.change = change

    def predict(self, node, x):
        return self.change(super().predict(node, x), x)


PLAIN = (
    Euler(),
    RK4(),
    solvers.GaussLegendre(),
    solvers.AdaptiveAdams(line=None),
    solvers.Adaptive(),
    solvers.Scipy(),
    solvers.Torchdiffeq(),
    solvers.Torchdiffeq("rk4"),
)


@pytest.mark.parametrize("solver", PLAIN, ids=str)
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: None, "ode=Answering returned a NoneType as dx/dt for a state of"),
        (lambda x: 1.0, "ode=Answering returned a float as dx/dt for a state of"),
        (lambda x: -x[0], r"ode=Answering returned \(2,\) of torch.float64 as dx/dt for a state of"),
        (lambda x: -x[:, :1], r"ode=Answering returned \(\d, 1\) of torch.float64 as dx/dt for a state of"),
        (lambda x: 1j * x, "ode=Answering returned .*complex128 as dx/dt for a state of .* real floating-point tensor"),
        (lambda x: x.neg_(), "ode=Answering writes to the state x"),
    ],
    ids=["nothing", "a number", "one row", "one column", "complex", "in place"],
)
def test_a_field_that_returns_no_slope_is_named(solver, answer, message):
    with pytest.raises(ValueError, match=message):
        solve(Answering(answer), solver, torch.ones(3, 2, dtype=torch.float64), [0.0, 0.5, 1.0])


@pytest.mark.parametrize(
    "solver",
    [DDIM(), Euler(), UniPC(), solvers.GPMultistep(), solvers.AdaptiveAdams(), solvers.BDIA(), solvers.ETDRK4()],
    ids=lambda solver: type(solver).__name__,
)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda found, x: (found.x0, found.eps), TypeError, r"predict returned a tuple; let it return solvers.Pred"),
        (
            lambda found, x: Prediction(found.x0[0], found.eps[0]),
            ValueError,
            r"returned \(2,\) of torch.float64 as (x0|eps)",
        ),
        (
            lambda found, x: Prediction(lambda: found.x0[:, :1], lambda: 0.0),
            ValueError,
            r"returned (\(4, 1\) of.* as x0|a float as eps)",
        ),
        (lambda found, x: Prediction(x.mul_(2), x), ValueError, "ode=Predicting writes to the state x"),
    ],
    ids=["a pair", "one row", "later", "in place"],
)
def test_predictions_of_another_shape_are_named(solver, change, error, message):
    with pytest.raises(error, match=message):
        solve(Predicting(change), solver, starting_points()[:4, :2].clone(), TIMES)


class Halves(Prediction):
    """A prediction with parts of its own."""

    def __init__(self, x):
        self.x = x

    @property
    def x0(self):
        return 0.5 * self.x

    @property
    def eps(self):
        return 0.25 * self.x


@pytest.mark.parametrize("solver", [DDIM(), Euler(), UniPC()], ids=lambda solver: type(solver).__name__)
def test_a_prediction_may_compute_its_parts_by_properties_of_its_own(solver):
    x = starting_points()
    plain = solve(Predicting(lambda found, x: Prediction(0.5 * x, 0.25 * x)), solver, x, TIMES)
    assert torch.equal(solve(Predicting(lambda found, x: Halves(x)), solver, x, TIMES).x, plain.x)


def test_a_step_that_returns_a_bare_tensor_is_told_what_to_return():
    with pytest.raises(TypeError, match=r"step returned a Tensor; let it return solvers\.Step\(x\)"):
        solved(Bare())


@pytest.mark.parametrize("solver", [DDIM(), Heun(), solvers.UniPC(), solvers.AdaptiveAdams()], ids=str)
def test_a_callback_that_writes_to_the_state_is_refused(solver):
    with pytest.raises(ValueError, match="callback writes to the state.*clone"):
        solved(solver, times=TO_THE_DATA, callback=lambda node, x: x.clamp_(-1, 1))


def test_a_solve_that_ends_before_its_first_step_has_accepted_none():
    solution = solved(solvers.AdaptiveAdams(), times=TO_THE_DATA, max_nfe=1, throw=False)
    assert solution.stats.accepted.tolist() == solution.stats.rejected.tolist() == [0] * len(starting_points())
