"""Multistep methods under diffusers' schedulers and under ours: the same states to 1e-10, or the difference named.

The network is the exact one of a mixture, so that a step costs nothing and every digit is the scheduler's. In diffusers
the noise levels are computed in float32, and its DPM-Solver rounds every state to float32; here they are overwritten in
float64, and the rounding is switched off. clip_sample and thresholding are off.
"""

import copy
import math

import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    IPNDMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import scheduling_dpmsolver_multistep

import odediff
import solvers
from odediff.prediction import network_output
from solvers import DEIS, IPNDM, LMS, PNDM, DPMpp, DPMSolver, Noise, UniPC
from solvers.testing import ExactODE, mild_mixture

T = 1000
# diffusers passes tensors to NumPy in a way that NumPy 2 deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*dpmsolver.* is deprecated:FutureWarning"),
]
TABLE = odediff.VPTable.linear(T)
EXACT = ExactODE(mild_mixture().distribution, TABLE)


class InFloat64:
    """torch, for a module that rounds to float32."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(scheduling_dpmsolver_multistep, "torch", InFloat64())


def start():
    return torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def time_of(entry):
    return (entry + 1) / T


def output(x, entry, form="epsilon"):
    """What diffusers' loop passes to its scheduler: the network's output at an entry of the table."""
    node = TABLE.node(time_of(entry))
    prediction = EXACT.predict(node, x)
    return network_output(form, node, prediction)


def prepared(scheduler_class, n, last, **options):
    """A scheduler for n steps with the float64 noise levels of our table, ending at s = 0 or at the table's first."""
    scheduler = scheduler_class(num_train_timesteps=T, **options)
    scheduler.set_timesteps(n)
    entries = [*map(int, scheduler.timesteps.tolist()), *([0] if last == "first entry" else [])]
    levels = [TABLE.node(time_of(entry)).s for entry in entries] + ([0.0] if last == "zero" else [])
    assert torch.allclose(scheduler.sigmas.double(), torch.tensor(levels, dtype=torch.float64), rtol=1e-4, atol=1e-4)
    scheduler.sigmas = torch.tensor(levels, dtype=torch.float64)
    return scheduler


def their_end(scheduler, **extra):
    x = start()
    for t in scheduler.timesteps:
        x = scheduler.step(output(x, float(t)), t, x, **extra).prev_sample
    return x


def our_end(solver, entries, last, x=None, closing=None):
    times = [time_of(entry) for entry in entries] + [0.0 if last == "zero" else time_of(0)]
    return solvers.solve(EXACT, solver, start() if x is None else x, times, closing=closing).x


def difference(scheduler, solver, last, closing=None):
    scheduler = copy.deepcopy(scheduler)  # it can run once
    ours = our_end(solver, scheduler.timesteps.tolist(), last, closing=closing)
    return float((their_end(scheduler) - ours).abs().max())


# --- DPM-Solver ---------------------------------------------------------------------------------------------------


def form_of(order, solver_type):
    """Our settings for diffusers' solver_order and solver_type."""
    if order == 3:
        return {"order": 2, "halved": True, "form": solver_type}
    return {"order": order, "form": solver_type if order == 2 else "heun"}


def dpm(n, order, last, **options):
    final = {"zero": "zero", "first entry": "sigma_min"}[last]
    return prepared(DPMSolverMultistepScheduler, n, last, solver_order=order, final_sigmas_type=final, **options)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 14, 15])
@pytest.mark.parametrize("order", [2, 3])
def test_the_closing_step_is_the_last_of_a_lowered_grid(n, order):
    scheduler = dpm(n, order, "zero")
    assert difference(scheduler, DPMpp(**form_of(order, "midpoint")), "zero", closing="denoise") < 1e-10
    scheduler = prepared(UniPCMultistepScheduler, n, "zero", solver_order=order)
    assert difference(scheduler, UniPC(order, "bh2", lower_order_below=math.inf), "zero", closing="denoise") < 1e-10


@pytest.mark.parametrize("n", [5, 14])
def test_on_the_noise_line_the_closing_step_follows_a_lowered_grid(n):
    """As ``denoise_to_zero`` in the reference code, where sigma = 0 is no singularity."""
    times = [time_of(entry) for entry in torch.linspace(999, 0, n + 1).round().int().tolist()]
    body = solvers.solve(EXACT, DPMSolver(3), start(), times, closing=None).x
    whole = solvers.solve(EXACT, DPMSolver(3), start(), [*times, 0.0]).x
    assert torch.equal(whole, EXACT.predict(TABLE.node(times[-1]), body).x0)


@pytest.mark.parametrize("n", [10, 20])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    ("algorithm", "solver", "last"),
    [
        ("dpmsolver++", DPMpp, "zero"),
        ("dpmsolver++", DPMpp, "first entry"),
        ("dpmsolver", DPMSolver, "first entry"),
    ],
)
def test_dpm_solver_equals_diffusers(algorithm, solver, last, order, solver_type, n):
    scheduler = dpm(n, order, last, algorithm_type=algorithm, solver_type=solver_type)
    ours = solver(**form_of(order, solver_type), lower_order_below=15)
    assert difference(scheduler, ours, last) < 1e-10


@pytest.mark.parametrize(("algorithm", "solver"), [("dpmsolver++", DPMpp), ("dpmsolver", DPMSolver)])
def test_the_third_order_of_diffusers_has_half_of_the_second_difference(algorithm, solver):
    scheduler = dpm(20, 3, "first entry", algorithm_type=algorithm, solver_type="heun")
    assert difference(scheduler, solver(2, halved=True, lower_order_below=0), "first entry") < 1e-10
    assert difference(scheduler, solver(3, lower_order_below=0), "first entry") > 1e-4


def test_the_order_falls_at_the_end_only_where_it_is_told_to():
    scheduler = dpm(10, 2, "first entry", solver_type="heun", lower_order_final=False)
    assert difference(scheduler, DPMpp(2, lower_order_below=0), "first entry") < 1e-10
    assert difference(scheduler, DPMpp(2, lower_order_below=15), "first entry") > 1e-6


# --- UniPC --------------------------------------------------------------------------------------------------------


def unipc(n, p, last, **options):
    final = {"zero": "zero", "first entry": "sigma_min"}[last]
    return prepared(UniPCMultistepScheduler, n, last, solver_order=p, final_sigmas_type=final, **options)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("rho", "line", "last", "lowered"),
    [
        ("bh2", solvers.Data(), "zero", True),
        ("bh1", solvers.Data(), "first entry", True),
        ("bh2", solvers.Data(), "first entry", False),
        ("bh1", Noise(), "first entry", True),
        ("bh2", Noise(), "first entry", False),
    ],
)
def test_unipc_equals_diffusers(rho, line, last, lowered, p):
    data = line == solvers.Data()
    scheduler = unipc(10, p, last, solver_type=rho, predict_x0=data, lower_order_final=lowered)
    ours = UniPC(p, rho, line=line, lower_order_below=math.inf if lowered else 0)
    assert difference(scheduler, ours, last) < 1e-10


@pytest.mark.parametrize(("p", "last", "first"), [(2, "zero", 1), (3, "first entry", 2), (2, "zero", 9)])
def test_unipc_without_its_first_corrections_equals_diffusers(p, last, first):
    scheduler = unipc(10, p, last, solver_type="bh2", disable_corrector=list(range(first)))
    settings = {"lower_order_below": math.inf, "uncorrected": first}
    assert difference(scheduler, UniPC(p, "bh2", **settings), last) < 1e-10
    assert difference(scheduler, UniPC(p, "bh2", lower_order_below=math.inf), last) > 1e-5


def test_bh1_of_diffusers_multiplies_zero_by_infinity_at_the_data_and_ours_is_the_predicted_data():
    scheduler = unipc(10, 2, "zero", solver_type="bh1")
    assert their_end(scheduler).isnan().all()
    entries = scheduler.timesteps.tolist()
    found = our_end(UniPC(2, "bh1", lower_order_below=math.inf), entries, "zero")
    finite = our_end(UniPC(2, "bh2", lower_order_below=math.inf), entries, "zero")
    assert (found - finite).abs().max() < 0.1


def test_one_half_in_the_first_steps_is_what_parts_unipc_3_of_diffusers_from_the_solved_one():
    scheduler = unipc(10, 3, "first entry", lower_order_final=False)
    assert difference(scheduler, UniPC(3, lower_order_below=0), "first entry") > 1e-6


# --- DEIS, LMS ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_of_diffusers_is_the_one_in_log_s(order, n):
    scheduler = prepared(DEISMultistepScheduler, n, "first entry", solver_order=order)
    ours = DEIS(order, variable="log_snr", lower_order_below=15)
    assert difference(scheduler, ours, "first entry") < 1e-10
    if order > 1:  # in t it is another method
        assert difference(scheduler, DEIS(order, lower_order_below=15), "first entry") > 1e-4


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_equals_diffusers(order):
    # Linspace over ten timesteps visits whole ones; diffusers' states are x/alpha.
    scheduler = prepared(LMSDiscreteScheduler, 10, "zero")
    entries = scheduler.timesteps.tolist()
    x = start() / TABLE.node(time_of(entries[0])).alpha
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(output(scaled, float(t)), t, x, order=order).prev_sample
    assert (x - our_end(LMS(order), entries, "zero")).abs().max() < 1e-10


# --- PNDM, iPNDM --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("skip", "warm_up"), [(True, "improved_euler"), (False, "runge_kutta")])
@pytest.mark.parametrize("n", [5, 10])
def test_pndm_equals_diffusers(skip, warm_up, n):
    scheduler = PNDMScheduler(num_train_timesteps=T, skip_prk_steps=skip, set_alpha_to_one=True)
    scheduler.alphas_cumprod = torch.from_numpy(TABLE.alphas_cumprod.copy())
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(n)
    ours = PNDM(warm_up=warm_up)
    entries = range(T - T // n, -1, -T // n)
    assert (their_end(scheduler) - our_end(ours, entries, "zero")).abs().max() < 1e-10
    assert len(scheduler.timesteps) == ours.calls(n)


def test_ipndm_equals_diffusers_on_nodes_of_ours():
    # Its own schedule starts at alpha = 0, where it divides by 1e-8 in place of 0.
    entries = [999, 870, 700, 480, 300, 180, 90, 30, 4]
    scheduler = IPNDMScheduler(num_train_timesteps=T)
    scheduler.set_timesteps(len(entries))
    nodes = [TABLE.node(time_of(entry)) for entry in entries] + [TABLE.node(0.0)]
    scheduler.alphas, scheduler.betas = (
        torch.tensor([values[k] for values in nodes], dtype=torch.float64) for k in (1, 2)
    )
    x = start()
    for t, entry in zip(scheduler.timesteps, entries, strict=True):
        x = scheduler.step(output(x, entry, "v"), t, x).prev_sample
    assert (x - our_end(IPNDM(), entries, "zero")).abs().max() < 1e-10
