"""The problems that solvers are ranked on: their exact flows, noise, data and modes."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import solvers
from benchmarks.problems import PROBLEMS, problem
from odediff import grid, probability_flow
from odediff.problems import STANDARD, KernelDensity, standard
from odediff.problems.base import exact_end

NOWHERE = "no/such/folder"


def field(mixture, u: float, x: np.ndarray) -> np.ndarray:
    """dx/du = cos(u) E[eps | x] - sin(u) E[x0 | x] at alpha = cos u, sigma = sin u, one component after another."""
    weights, means, deviations = (v.numpy() for v in (mixture.weights, mixture.means, mixture.deviations))
    variances = (math.cos(u) * deviations) ** 2 + math.sin(u) ** 2
    residuals = [x - math.cos(u) * mean for mean in means]
    logs = [
        math.log(w) - len(x) / 2 * math.log(v) - r @ r / (2 * v)
        for w, v, r in zip(weights, variances, residuals, strict=True)
    ]
    share = np.exp(np.array(logs) - max(logs))
    share /= share.sum()
    x0 = sum(
        p * (m + math.cos(u) * d**2 / v * r)
        for p, m, d, v, r in zip(share, means, deviations, variances, residuals, strict=True)
    )
    eps = sum(p * math.sin(u) / v * r for p, v, r in zip(share, variances, residuals, strict=True))
    return math.cos(u) * eps - math.sin(u) * x0


@pytest.mark.parametrize("name", ["mixture_2", "mixture_16_held_out", "mixture_64"])
def test_the_exact_flow_is_that_of_scipy_on_the_literal_field(name):
    one = standard(name)
    noise = one.noise(3, range(2))
    found = one.reference(noise)
    start = float(one.path.node(one.path.start).angle)
    for x, end in zip(noise, found.x, strict=True):
        expected = solve_ivp(
            lambda u, x: field(one.distribution, u, x), (start, 0), x.numpy(), method="DOP853", rtol=1e-11, atol=1e-12
        ).y[:, -1]
        np.testing.assert_allclose(end.numpy(), expected, rtol=0, atol=1e-8)
    assert found.error < 1e-6


def test_the_stated_error_of_a_flow_bounds_its_distance_to_a_finer_one():
    one = standard("mixture_16")
    noise = one.noise(0, range(8))
    coarse, fine = one.reference(noise, steps=40), one.reference(noise, steps=320)
    true = float((coarse.x - fine.x).square().mean().sqrt())
    assert fine.error < true < coarse.error


def test_the_gaussians_flow_is_what_a_solver_finds():
    one = standard("gaussian")
    noise = one.noise(1, range(3))
    found = exact_end(one.model(range(3)), noise, one.flow)
    torch.testing.assert_close(one.reference(noise).x, found, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", STANDARD)
def test_the_stated_deviation_and_modes_are_those_of_the_data(name):
    one = standard(name)
    data = one.data(20_000)
    assert float(data.var(0).mean().sqrt()) == pytest.approx(one.deviation, rel=0.02)
    assert torch.equal(one.data(20_000), data)
    modes = one.modes(data[:2000])
    if one.name == "gaussian":
        assert not modes.any()
    else:
        shares = torch.bincount(modes, minlength=8).double() / 2000
        # In the plane components overlap, and the sharp ones win ground.
        assert float((shares - one.distribution.weights).abs().max()) < (0.2 if one.dimension == 2 else 0.03)


def test_noise_depends_on_the_seed_and_the_row_alone():
    one = standard("mixture_2")
    assert torch.equal(one.noise(5, range(3, 6)), one.noise(5, range(8))[3:6])
    assert not torch.equal(one.noise(5, range(3)), one.noise(6, range(3)))


def test_half_of_the_problems_are_untouched_by_choices():
    purposes = {name: problem(name, NOWHERE).purpose for name in PROBLEMS}
    assert sorted(purposes.values()).count("reporting") == len(purposes) / 2
    fingerprints = [problem(name, NOWHERE).fingerprint for name in PROBLEMS if name != "network_2"]
    assert len(set(fingerprints)) == len(fingerprints)


@pytest.mark.parametrize("name", [n for n in STANDARD if n != "gaussian"])
def test_the_parameters_stay_what_they_were_when_figures_were_published(name):
    """A change of seeds or of the generator shows here, not as a silent change of every figure."""
    one = standard(name)
    assert one.fingerprint.startswith(PUBLISHED[name])


PUBLISHED = {
    "mixture_2": "ff04bd12386b",
    "mixture_16": "baa3206c9b97",
    "mixture_64": "25a0de133c8d",
    "mixture_256": "f85d1e073b59",
    "mixture_2_held_out": "0f64c8eb74de",
    "mixture_16_held_out": "a6989db0453a",
    "mixture_64_held_out": "1e806c8be199",
    "mixture_256_held_out": "77ec596f22a4",
}


@pytest.mark.parametrize("memory", [1, 40 * 32, 2**30])
@pytest.mark.parametrize("t", [0.01, 0.4, 1.0])
def test_a_kernel_density_in_chunks_is_that_sample_by_sample(memory, t):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(23, 1, 3, 4, generator=generator, dtype=torch.float64) * 2 - 1
    x = torch.randn(5, 1, 3, 4, generator=generator, dtype=torch.float64)
    node = standard("mixture_2").path.node(t)
    expected, found = (KernelDensity(images, 0.1, m).predict(node, x) for m in (None, memory))
    torch.testing.assert_close(found.x0, expected.x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.eps, expected.eps, rtol=0, atol=1e-12)


def test_a_kernel_density_in_chunks_takes_a_time_for_every_sample():
    images = torch.rand(9, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, times = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64), [0.1, 0.5, 0.9]
    path, density = standard("mixture_2").path, KernelDensity(images, 0.1, 2**20)
    together = density.predict(path.node(np.array(times)), x)
    for i, t in enumerate(times):
        torch.testing.assert_close(together.x0[i : i + 1], density.predict(path.node(t), x[i : i + 1]).x0)


def test_the_kernel_densitys_modes_are_its_nearest_images():
    one = problem("kernel_density", NOWHERE)
    assert one.modes(one.data(30) + 0.01).tolist() == list(range(30))
    assert torch.isfinite(one.reference(one.noise(0, range(1)), steps=12).x).all()


def test_the_networks_flow_converges_to_one_end():
    one = problem("network_1", NOWHERE)
    noise = one.noise(0, range(1))
    found = one.reference(noise, steps=32)
    times = grid.log_snr(one.path, 40)
    with torch.no_grad():
        other = solvers.solve(
            probability_flow(one.model(range(1))), solvers.Dopri5(solvers.Noise()), noise.double(), times
        ).x
    assert float((found.x - other).square().mean().sqrt()) < 3e-2 * one.deviation


def test_an_unknown_problem_is_answered_by_the_names():
    with pytest.raises(ValueError, match="problem=nope is unknown; use one of gaussian, mixture_2"):
        standard("nope")


def test_memory_must_be_positive():
    with pytest.raises(ValueError, match="memory=0"):
        KernelDensity(torch.zeros(2, 3), 0.1, 0)


def test_a_solve_to_a_tolerance_closes_as_it_is_told():
    one, adams = standard("gaussian"), solvers.AdaptiveAdams()
    own, extrapolated, denoised = (
        one.solve(adams, 0, range(2), grid=None, rtol=1e-3, closing=rule) for rule in ("auto", "extrapolate", "denoise")
    )
    assert [len(found.nodes) for found in (own, extrapolated, denoised)] == [2, 3, 3]
    assert not torch.equal(extrapolated.x, denoised.x)
    with pytest.raises(ValueError, match="closing='nonsense' is unknown"):
        one.solve(adams, 0, range(2), grid=None, rtol=1e-3, closing="nonsense")


def test_a_kernel_density_in_chunks_computes_where_its_images_are():
    density = KernelDensity(torch.rand(9, 1, 2, 2, dtype=torch.float64, device="meta"), 0.1, 2**10)
    found = density.predict(standard("mixture_2").path.node(0.4), torch.rand(3, 1, 2, 2, device="meta"))
    assert found.x0.device.type == found.eps.device.type == "meta" and found.x0.shape == (3, 1, 2, 2)


class Uncounted(solvers.Heun):
    """It declares one of the two calls of a step."""

    def calls(self, n_steps):
        return n_steps

    def calls_over(self, ode, nodes):
        return len(nodes) - 1


def test_nobody_is_ranked_with_more_calls_than_there_are():
    with pytest.raises(ValueError, match=r"nfe=6: Uncounted.* made 11 calls.*let calls\(n_steps\) return"):
        standard("gaussian").solve(Uncounted(), 0, range(2), grid=grid.karras, nfe=6)
