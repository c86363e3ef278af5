"""Diffusers' schedulers do in the study what they do alone, with no more calls than allowed."""

import warnings

import diffusers
import pytest
import torch

import odediff
import solvers
from benchmarks.diffusers_schedulers import SCHEDULERS, Scheduler, schedulers
from benchmarks.problems import problem
from odediff import grid

NOWHERE = "no/such/folder"
ALL = schedulers(tuple(SCHEDULERS), ["trailing", "karras"])


def peer(scheduler: str, setting: str, place: str) -> Scheduler:
    (found,) = [p for p in schedulers([scheduler], [place]) if p.setting == setting]
    return found


@pytest.mark.parametrize("place", ["leading", "trailing"])
@pytest.mark.parametrize(
    ("scheduler", "solver"), [("DDIM", solvers.DDIM()), ("EulerDiscrete", solvers.Euler(solvers.Noise()))]
)
def test_what_is_ddim_under_another_name_ends_where_our_ddim_ends(scheduler, solver, place):
    one, rows = problem("mixture_16", NOWHERE), range(3, 8)
    found = peer(scheduler, "", place).run(one, rows, 2, 10, None)
    times = grid.uniform_t(one.path, 10, spacing=place)
    expected = odediff.sample(one.model(rows), noise=one.noise(2, rows), solver=solver, grid=times)
    # Their table is float32, and they start at sigma where we start at the end of the path.
    torch.testing.assert_close(found.x.double(), expected, rtol=0, atol=2e-3)
    assert found.calls == found.calls_max == found.network_evaluations == found.steps == 10


def test_the_network_is_told_what_diffusers_tells_it():
    one, rows = problem("network_2", NOWHERE), range(2)
    found = peer("DPMSolverMultistep", "++2M midpoint", "karras").run(one, rows, 0, 4, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, use_karras_sigmas=True)
        scheduler.set_timesteps(4)
    # In the study's layout, for another one's rounding grows to 3e-4 in these four steps.
    network = odediff.zoo.fashion_mnist().network.to(memory_format=torch.channels_last)
    x = one.noise(0, rows)
    with torch.no_grad():
        for t in scheduler.timesteps:
            time = torch.full((2,), float(t))
            free, asked = (network(x, time, label=torch.tensor(label)) for label in ([10, 10], [0, 1]))
            x = scheduler.step(free + 2.0 * (asked - free), t, x).prev_sample
    torch.testing.assert_close(found.x, x, rtol=0, atol=2e-4)
    assert (found.calls, found.network_evaluations) == (4, 8)


@pytest.mark.parametrize("one", ALL, ids=lambda p: f"{p.name}-{p.grid}")
def test_no_setting_exceeds_the_ceiling_and_one_more_step_would(one):
    found = one.run(problem("mixture_2", NOWHERE), range(2), 0, 15, None)
    assert found.calls_max <= 15
    scheduler = getattr(diffusers, f"{one.scheduler}Scheduler")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        longer = scheduler(**one.options)
        longer.set_timesteps(found.steps + 1)
    assert len(longer.timesteps) > 15


@pytest.mark.parametrize("one", [p for p in ALL if not p.deterministic], ids=lambda p: f"{p.name}-{p.grid}")
def test_a_stochastic_setting_draws_the_same_noise_again_and_another_for_another_seed(one):
    target = problem("mixture_2", NOWHERE)
    first, second, other = (one.run(target, range(4), seed, 8, None).x for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.allclose(first, other)


def test_too_few_calls_for_one_step_are_refused():
    one = peer("PNDM", "prk", "trailing")
    assert not one.affordable(problem("mixture_2", NOWHERE), 3)
    with pytest.raises(ValueError, match="nfe=3 is too small for one step"):
        one.run(problem("mixture_2", NOWHERE), range(2), 0, 3, None)
