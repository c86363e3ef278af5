"""k-diffusion's samplers in the study end where ours do that are the same method, with no more calls than allowed."""

import pytest
import torch

import odediff
import solvers
from benchmarks import peers
from benchmarks.k_diffusion_samplers import CALLS, Sampler, samplers
from benchmarks.problems import problem
from odediff import grid

NOWHERE = "no/such/folder"
ALL = samplers(tuple(CALLS), ["karras"]) + [Sampler("dpm_fast", "exponential")]


def installed() -> None:
    pytest.importorskip(
        "k_diffusion", reason="k-diffusion, which brings a torchvision, is not installed: pip install k-diffusion"
    )


def test_its_samplers_are_peers_by_name_on_the_grids_that_they_share():
    assert {"dpmpp_2m", "dpm_adaptive", "DDIM"} <= set(peers.NAMES)
    assert [s.grid for s in samplers(["dpmpp_2m", "dpm_fast"], ["trailing", "karras", "linspace"])] == [
        "karras",
        "linspace",
        "exponential",
    ]


def test_where_it_is_missing_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(peers, "available", lambda package: package != "k_diffusion")
    peers.say_once.cache_clear()
    assert {method.source for method in peers.peers(["dpmpp_2m", "lms", "DDIM"], ["trailing"])} == {"diffusers"}
    assert capsys.readouterr().err == ("k-diffusion is not installed: its rows are skipped (pip install k-diffusion)\n")


@pytest.mark.parametrize(
    ("name", "solver", "tolerance"),
    [
        # Their sigmas are float32.
        ("euler", solvers.DDIM(), 1e-4),
        ("heun", solvers.Heun(solvers.Noise()), 1e-4),
        ("dpm_2", solvers.DPMSolver2(r1=0.5), 1e-4),
        ("dpmpp_2m", solvers.DPMpp(2, form="midpoint", lower_order_below=0), 1e-4),
        # Its weights are integrals by an adaptive rule, to a relative 1e-4.
        ("lms", solvers.LMS(lower_order_below=0), 2e-3),
    ],
)
@pytest.mark.parametrize("place", ["karras", "linspace"])
def test_a_sampler_ends_where_ours_of_that_name_ends(name, solver, tolerance, place):
    installed()
    one, rows, steps = problem("mixture_16", NOWHERE), range(3, 8), 10
    nfe = CALLS[name] * steps - (CALLS[name] == 2)
    found = Sampler(name, place).run(one, rows, 2, nfe, None)
    times = grid.karras(one.path, steps) if place == "karras" else grid.uniform_t(one.path, steps, spacing="linspace")
    expected = odediff.sample(one.model(rows), noise=one.noise(2, rows), solver=solver, grid=times)
    torch.testing.assert_close(found.x, expected, rtol=0, atol=tolerance)
    assert (found.calls, found.steps) == (nfe, steps)


@pytest.mark.parametrize("one", ALL, ids=lambda s: s.name)
@pytest.mark.parametrize("nfe", [2, 5, 8])
def test_no_sampler_exceeds_the_ceiling(one, nfe):
    installed()
    found = one.run(problem("mixture_2", NOWHERE), range(2), 0, nfe, None)
    assert nfe - 1 <= found.calls <= nfe
    assert found.x.isfinite().all()


@pytest.mark.parametrize("one", [s for s in ALL if not s.deterministic], ids=lambda s: s.name)
def test_a_stochastic_sampler_draws_the_same_noise_again_and_another_for_another_seed(one):
    installed()
    target = problem("mixture_2", NOWHERE)
    first, second, other = (one.run(target, range(4), seed, 8, None).x for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.allclose(first, other)


def test_its_adaptive_sampler_follows_a_tolerance():
    installed()
    one, rows = problem("mixture_16", NOWHERE), range(8)
    truth = one.reference(one.noise(0, rows)).x
    loose, tight = (Sampler("dpm_adaptive", "adaptive").run(one, rows, 0, None, rtol) for rtol in (1e-1, 1e-3))
    errors = [(found.x - truth).square().mean().sqrt() for found in (loose, tight)]
    assert loose.calls < tight.calls
    assert errors[1] < 0.3 * errors[0]
