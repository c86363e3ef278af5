"""One-step and stochastic solvers under diffusers' schedulers and under ours, on one exact problem: equal to 1e-10.

The schedulers' tables of noise levels are overwritten in float64, and so is the dtype that some of them cast the state
to. Every scheduler gets the same nodes as our solver, and stochastic ones the same draws.
"""

import importlib
import math
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch

from odediff import grid
from odediff.schedule import VE, RectifiedFlow, VPCosine, VPTable
from solvers import (
    DDIM,
    RES2S,
    Ancestral,
    Data,
    DPMSolver2,
    DPMSolver3,
    DPMSolverSDE,
    DPMSolverSinglestep,
    Euler,
    Heun,
    Noise,
    NoiseStream,
    SASolver,
    solve,
)
from solvers.testing import ExactODE, mild_mixture, starting_points

STEPS = 9
VP = ExactODE(mild_mixture().distribution, VPTable.linear())


class Doubled(types.SimpleNamespace):
    """torch, in which float32 is float64: for modules that cast the state."""

    float32 = torch.float64

    def __getattr__(self, name: str):
        return getattr(torch, name)


@pytest.fixture(autouse=True)
def in_double_precision(monkeypatch):
    for name in (
        "dpmsolver_multistep",
        "euler_discrete",
        "euler_ancestral_discrete",
        "flow_match_euler_discrete",
        "edm_euler",
    ):
        monkeypatch.setattr(getattr(diffusers.schedulers, f"scheduling_{name}"), "torch", Doubled())


def nodes_of(ode: ExactODE, last: float | None, steps: int = STEPS) -> list[float]:
    """Times with uneven steps of log-SNR from -2 on; the last is 0, or has that log-SNR."""
    levels = np.linspace(-2.0, 3.0, steps + 1) + 0.15 * np.sin(np.arange(steps + 1.0))
    times = [ode.node_at(float(level)).t for level in levels]
    return [*times[:-1], 0.0 if last is None else ode.node_at(last).t]


def even_times(ode: ExactODE, groups: int, parts: int) -> tuple[list[float], list[float]]:
    """Uneven steps, and the same steps cut into equal parts of log-SNR."""
    levels = np.linspace(-2.0, 3.0, groups + 1) + 0.15 * np.sin(np.arange(groups + 1.0))
    fine = np.interp(np.arange(groups * parts + 1) / parts, np.arange(groups + 1), levels)
    return tuple([ode.node_at(float(level)).t for level in grid] for grid in (levels, fine))


def prepared(scheduler, sigmas: Sequence[float]):
    """The scheduler with its table of noise levels overwritten, before its first step."""
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    scheduler.timesteps = torch.arange(len(sigmas) - 1, 0.0, -1.0).double()
    scheduler.set_begin_index(0)
    scheduler.is_scale_input_called = True
    return scheduler


def walk(scheduler, x: torch.Tensor, output: Callable[[int, torch.Tensor], torch.Tensor], **extra) -> torch.Tensor:
    """diffusers' loop; ``output(i, x)`` is the network's output at the i-th timestep."""
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(output(i, x), t, x, **extra).prev_sample
    return x


def eps_at(ode: ExactODE, times: Sequence[float], scaled: bool = False):
    """The noise prediction at node i; ``scaled``: for schedulers whose state is x/alpha."""

    def output(i: int, x: torch.Tensor) -> torch.Tensor:
        node = ode.node(times[i])
        return ode.predict(node, x * node.alpha if scaled else x).eps

    return output


def levels(ode: ExactODE, times: Sequence[float]) -> list[float]:
    return [float(ode.node(t).s) for t in times]


def feed(monkeypatch, scheduler, like: torch.Tensor, first: int = 0) -> None:
    """Give the scheduler the draws of the stream that `ours` uses."""
    stream = NoiseStream(7, counter=first)

    def draw(*args, **kwargs):
        nonlocal stream
        z, stream = stream.draw(like)
        return z

    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    monkeypatch.setattr(module, "randn_tensor", draw)


def ours(ode: ExactODE, solver, times: Sequence[float], x: torch.Tensor) -> torch.Tensor:
    return solve(ode, solver, x, times, stream=NoiseStream(7)).x


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


# --- single-step DPM-Solver -----------------------------------------------------------------------------------------

SINGLE = [
    ("dpmsolver", "midpoint", 2, DPMSolver2()),
    ("dpmsolver++", "midpoint", 2, DPMSolver2(line=Data())),
    ("dpmsolver", "heun", 2, RES2S(line=Noise())),
    ("dpmsolver++", "heun", 2, RES2S()),
    ("dpmsolver", "midpoint", 3, DPMSolver3(form="diffusers")),
    ("dpmsolver++", "midpoint", 3, DPMSolver3(line=Data(), form="diffusers")),
]
"""diffusers' singlestep has its stages at the nodes of its grid: equal parts of log-SNR are the paper's r1 and r2."""


@pytest.mark.parametrize(("algorithm", "form", "order", "solver"), SINGLE, ids=str)
def test_singlestep_dpm_solver(algorithm, form, order, solver):
    coarse, fine = even_times(VP, 4, order)
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        algorithm_type=algorithm, solver_order=order, solver_type=form, final_sigmas_type="sigma_min"
    )
    scheduler = prepared(scheduler, levels(VP, fine))
    close(ours(VP, solver, coarse, starting_points()), walk(scheduler, starting_points(), eps_at(VP, fine)))


@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
def test_singlestep_dpm_solver_of_order_1_is_ddim(algorithm):
    times = nodes_of(VP, 3.0)
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        algorithm_type=algorithm, solver_order=1, final_sigmas_type="sigma_min"
    )
    scheduler = prepared(scheduler, levels(VP, times))
    close(ours(VP, DDIM(), times, starting_points()), walk(scheduler, starting_points(), eps_at(VP, times)))


@pytest.mark.parametrize("line", [Noise(), Data()], ids=str)
def test_the_heun_type_of_the_last_stage_is_the_taylor_form(line):
    # diffusers ends with the differences of the Taylor form, and its order-2 heun is the stage with phi_2 that the
    # paper's DPM-Solver-3 has in the middle.
    coarse, fine = even_times(VP, 4, 3)
    algorithm = "dpmsolver++" if line == Data() else "dpmsolver"
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        algorithm_type=algorithm, solver_order=3, solver_type="heun", final_sigmas_type="sigma_min"
    )
    scheduler = prepared(scheduler, levels(VP, fine))
    found = ours(VP, DPMSolver3(line=line, form="taylor"), coarse, starting_points())
    close(found, walk(scheduler, starting_points(), eps_at(VP, fine)))


@pytest.mark.parametrize("steps", range(1, 10))
@pytest.mark.parametrize("form", ["midpoint", "heun"])
@pytest.mark.parametrize("intervals", [1, 2, 3])
@pytest.mark.parametrize("line", [Noise(), Data()], ids=str)
def test_singlestep_on_the_nodes_of_any_grid(line, intervals, form, steps):
    times = nodes_of(VP, None if line == Data() else 3.0, steps)
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        algorithm_type="dpmsolver++" if line == Data() else "dpmsolver",
        solver_order=intervals,
        solver_type=form,
        final_sigmas_type="zero" if line == Data() else "sigma_min",
    )
    scheduler = prepared(scheduler, levels(VP, times))
    found = ours(VP, DPMSolverSinglestep(intervals, line, form), times, starting_points())
    close(found, walk(scheduler, starting_points(), eps_at(VP, times)))


# --- k-diffusion's relatives, whose state is x/alpha -------------------------------------------------------------


def scaled_start(ode: ExactODE, t: float) -> torch.Tensor:
    return starting_points() / ode.node(t).alpha


@pytest.mark.parametrize("solver", [Euler(Noise()), DDIM()], ids=str)
def test_euler(solver):
    times = nodes_of(VP, None)
    scheduler = prepared(diffusers.EulerDiscreteScheduler(), levels(VP, times))
    expected = walk(scheduler, scaled_start(VP, times[0]), eps_at(VP, times, scaled=True))
    close(ours(VP, solver, times, starting_points()), expected)


def test_euler_ancestral_is_ddim_with_eta_1(monkeypatch):
    times = nodes_of(VP, None)
    scheduler = prepared(diffusers.EulerAncestralDiscreteScheduler(), levels(VP, times))
    feed(monkeypatch, scheduler, starting_points())
    expected = walk(scheduler, scaled_start(VP, times[0]), eps_at(VP, times, scaled=True))
    close(ours(VP, DDIM(eta=1.0), times, starting_points()), expected)


@pytest.mark.parametrize(
    ("scheduler", "solver", "middle"),
    [(diffusers.HeunDiscreteScheduler, Heun(Noise()), False), (diffusers.KDPM2DiscreteScheduler, DPMSolver2(), True)],
    ids=["Heun", "KDPM2"],
)
def test_two_stage_schedulers(scheduler, solver, middle):
    times = nodes_of(VP, None)
    s = levels(VP, times)
    one = scheduler()
    one.set_timesteps(STEPS)
    # They keep inner levels twice, once for each of their two half steps.
    one.sigmas = torch.tensor([s[0], *np.repeat(s[1:-1], 2), s[-1]], dtype=torch.float64)
    called = [s[0], *np.repeat(s[1:-1], 2)]
    if middle:
        between = [math.sqrt(a * b) for a, b in zip(s, s[1:], strict=False)]
        one.sigmas_interpol = torch.tensor([s[0], *np.repeat(between[:-1], 2), 0.0], dtype=torch.float64)
        called = [s[0], *(level for pair in zip(between, s[1:-1], strict=False) for level in pair)]
    one.timesteps = torch.arange(len(called), 0.0, -1.0).double()
    one.set_begin_index(0)
    at = [VP.node_at(-math.log(level)).t for level in called]
    expected = walk(one, scaled_start(VP, times[0]), eps_at(VP, at, scaled=True))
    close(ours(VP, solver, times, starting_points()), expected)


def test_kdpm2_ancestral(monkeypatch):
    times = nodes_of(VP, None)
    s = np.array(levels(VP, times))
    up = s[1:] * np.sqrt(1 - (s[1:] / s[:-1]) ** 2)
    down = np.sqrt(s[1:] ** 2 - up**2)
    between = np.sqrt(s[:-1] * down)
    one = diffusers.KDPM2AncestralDiscreteScheduler()
    one.set_timesteps(STEPS)

    def kept(values):
        """As the scheduler keeps them: twice, once for each of its two half steps."""
        return torch.from_numpy(np.array([values[0], *np.repeat(values[1:], 2)]))

    one.sigmas, one.sigmas_up, one.sigmas_down, one.sigmas_interpol = map(kept, (s, up, down, between))
    called = [level for pair in zip(s[:-2], between[:-1], strict=True) for level in pair] + [s[-2]]
    one.timesteps = torch.arange(len(called), 0.0, -1.0).double()
    one.set_begin_index(0)
    feed(monkeypatch, one, starting_points())
    at = [VP.node_at(-math.log(level)).t for level in called]
    expected = walk(one, scaled_start(VP, times[0]), eps_at(VP, at, scaled=True))
    close(ours(VP, Ancestral(), times, starting_points()), expected)


def test_dpm_solver_sde(monkeypatch):
    # It imports a package for its Brownian motion, which is fed to it here.
    monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    times = nodes_of(VP, None)
    s = levels(VP, times)
    one = module.DPMSolverSDEScheduler()
    one.set_timesteps(STEPS)
    one.sigmas = torch.tensor([s[0], *np.repeat(s[1:-1], 2), s[-1]], dtype=torch.float64)
    between = [math.sqrt(a * b) for a, b in pairwise(s[:-1])]
    called = [*(level for pair in zip(s, between, strict=False) for level in pair), s[-2]]
    one.timesteps = torch.arange(len(called), 0.0, -1.0).double()
    one.set_begin_index(0)
    stream, motion = NoiseStream(7), {}

    def increment(upper, lower):
        """The motion from the upper level on, of size 1: its later part is the next draw."""
        nonlocal stream
        upper, lower = float(upper), float(lower)
        reached, there = motion.get(upper, (upper, 0.0))
        z, stream = stream.draw(starting_points())
        motion[upper] = lower, there + math.sqrt(reached - lower) * z
        return motion[upper][1] / math.sqrt(upper - lower)

    one.noise_sampler = increment
    at = [VP.node_at(-math.log(level)).t for level in called]
    expected = walk(one, scaled_start(VP, times[0]), eps_at(VP, at, scaled=True))
    close(ours(VP, DPMSolverSDE(), times, starting_points()), expected)


def test_edm_euler_is_ddim_on_the_variance_exploding_path():
    ode = ExactODE(mild_mixture().distribution, VE())
    times = nodes_of(ode, None)
    scheduler = prepared(diffusers.EDMEulerScheduler(sigma_data=0.5), levels(ode, times))

    def output(i: int, x: torch.Tensor) -> torch.Tensor:
        """EDM's raw network output: x0 = c_skip x + c_out F."""
        s, data = times[i], 0.5
        skip, out = data**2 / (s**2 + data**2), s * data / math.hypot(s, data)
        return (ode.predict(ode.node(s), x).x0 - skip * x) / out

    start = starting_points() * ode.node(times[0]).sigma
    close(ours(ode, DDIM(), times, start), walk(scheduler, start, output))


def test_flow_match_euler_is_euler_on_a_rectified_flow():
    ode = ExactODE(mild_mixture().distribution, RectifiedFlow())
    times = nodes_of(ode, None)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas = torch.tensor(times, dtype=torch.float64)
    scheduler.timesteps = scheduler.sigmas[:-1] * 1000
    scheduler.set_begin_index(0)
    expected = walk(scheduler, starting_points(), lambda i, x: ode(times[i], x))
    close(ours(ode, Euler(), times, starting_points()), expected)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("name", "solver"), [("Euler", Euler()), ("Heun", Heun())])
def test_flow_match_schedulers_are_plain_methods_between_their_levels(name, solver, shift):
    scheduler = getattr(diffusers, f"FlowMatch{name}DiscreteScheduler")(shift=shift)
    scheduler.set_timesteps(STEPS)
    path = RectifiedFlow(time_scale=1000)
    times = grid.custom(path, sorted(set(scheduler.sigmas.tolist()), reverse=True))
    ode, states = ExactODE(mild_mixture().distribution, path), starting_points()
    found = walk(scheduler, states, lambda i, x: ode(float(scheduler.timesteps[i]) / 1000, x))
    # Levels and timesteps are float32 there.
    torch.testing.assert_close(ours(ode, solver, times.tolist(), states), found, rtol=0, atol=1e-6)


# --- stochastic Adams -----------------------------------------------------------------------------------------------

SDE = [
    ("sde-dpmsolver++", "midpoint", 1, SASolver(predictor_order=1, corrector_order=0)),
    ("sde-dpmsolver++", "midpoint", 2, SASolver(corrector_order=0, form="midpoint")),
    ("sde-dpmsolver++", "heun", 2, SASolver(corrector_order=0)),
    ("sde-dpmsolver++", "midpoint", 3, SASolver(predictor_order=3, corrector_order=0, form="diffusers")),
    ("sde-dpmsolver", "midpoint", 1, SASolver(line=Noise(), predictor_order=1, corrector_order=0)),
    ("sde-dpmsolver", "midpoint", 2, SASolver(line=Noise(), corrector_order=0, form="midpoint")),
    ("sde-dpmsolver", "heun", 2, SASolver(line=Noise(), corrector_order=0)),
]


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize(("algorithm", "form", "order", "solver"), SDE, ids=str)
def test_sde_dpm_solver(monkeypatch, algorithm, form, order, solver, lower):
    to_data = algorithm.endswith("++")
    times = nodes_of(VP, None if to_data else 3.0)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type=algorithm,
        solver_order=order,
        solver_type=form,
        lower_order_final=lower,
        final_sigmas_type="zero" if to_data else "sigma_min",
    )
    scheduler = prepared(scheduler, levels(VP, times))
    feed(monkeypatch, scheduler, starting_points())
    expected = walk(scheduler, starting_points(), eps_at(VP, times))
    solver = replace(solver, lower_order_below=15 if lower else 0)
    close(ours(VP, solver, times, starting_points()), expected)


def test_sde_dpm_solver_plus_plus_keeps_its_history_from_next_to_pure_noise_on(monkeypatch):
    ode = ExactODE(mild_mixture().distribution, VPCosine())
    nodes = [ode.node_at(float(level)) for level in np.linspace(-8.1, 3.0, STEPS)]
    assert nodes[0].alpha < 4e-4
    times = [*(node.t for node in nodes), 0.0]
    scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", lower_order_final=False)
    scheduler = prepared(scheduler, levels(ode, times))
    feed(monkeypatch, scheduler, starting_points())
    expected = walk(scheduler, starting_points(), eps_at(ode, times))
    close(ours(ode, SASolver(corrector_order=0, form="midpoint"), times, starting_points()), expected)


SA = [
    (2, 2, "data_prediction", SASolver(form="reference")),
    (3, 4, "data_prediction", SASolver(predictor_order=3, corrector_order=4, form="reference")),
    (1, 1, "data_prediction", SASolver(predictor_order=1, corrector_order=1, form="reference")),
    (2, 2, "noise_prediction", SASolver(line=Noise())),
    (3, 3, "noise_prediction", SASolver(line=Noise(), predictor_order=3, corrector_order=3)),
]


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("tau", [1.0, 0.6])
@pytest.mark.parametrize(("predictor", "corrector", "algorithm", "solver"), SA, ids=str)
def test_sa_solver(monkeypatch, predictor, corrector, algorithm, solver, tau, lower):
    times = nodes_of(VP, 3.0)
    window = levels(VP, times)[2], levels(VP, times)[7]
    # diffusers' tau is a function of its timestep, here the number of steps left: on from the third node to the eighth.
    scheduler = diffusers.SASolverScheduler(
        predictor_order=predictor,
        corrector_order=corrector,
        algorithm_type=algorithm,
        lower_order_final=lower,
        tau_func=lambda t: torch.tensor(tau if STEPS - 7 <= t <= STEPS - 2 else 0.0, dtype=torch.float64),
    )
    scheduler = prepared(scheduler, levels(VP, times))
    feed(monkeypatch, scheduler, starting_points())
    expected = walk(scheduler, starting_points(), eps_at(VP, times))
    solver = replace(
        solver, tau=tau, s_min=window[1] * 0.999, s_max=window[0] * 1.001, lower_order_below=math.inf if lower else 0
    )
    close(ours(VP, solver, times, starting_points()), expected)
