import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import odediff
import solvers
from odediff.prediction import FORMS
from odediff.problems import ExactNetwork, KernelDensity, exact_model
from solvers.testing import Gaussian, Mixture

PATHS = [
    odediff.VPTable.linear(),
    odediff.VPLinear(),
    odediff.VPCosine(),
    odediff.SubVP(),
    odediff.VE(),
    odediff.RectifiedFlow(),
]


def images(count: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 3, 4, generator=generator, dtype=torch.float64) * 2 - 1


def states(batch: int = 5, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 1, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal_posterior(
    data: np.ndarray, width: float, alpha: float, sigma: float, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """E[x0 | x] and E[eps | x] for x0 = m_k + width z, one sum over k after another, with nothing rearranged."""
    x0, eps = np.zeros_like(x), np.zeros_like(x)
    variance = alpha**2 * width**2 + sigma**2
    for i in range(len(x)):
        exponents = [-np.sum((x[i] - alpha * m) ** 2) / (2 * variance) for m in data]
        weights = [math.exp(e - max(exponents)) for e in exponents]
        for weight, m in zip(weights, data, strict=True):
            residual = x[i] - alpha * m
            x0[i] += weight / sum(weights) * (m + alpha * width**2 / variance * residual)
            eps[i] += weight / sum(weights) * sigma / variance * residual
    return x0, eps


@pytest.mark.parametrize("width", [0.01, 0.3])
@pytest.mark.parametrize("t", [0.002, 0.1, 0.5, 0.9, 1.0])
def test_kernel_density_is_the_literal_sum_over_its_images(width, t):
    node = PATHS[0].node(t)
    x = node.alpha * images(5, seed=3) + node.sigma * states()
    found = KernelDensity(images(), width).predict(node, x)
    x0, eps = literal_posterior(images().numpy(), width, node.alpha, node.sigma, x.numpy())
    np.testing.assert_allclose(found.x0.numpy(), x0, rtol=0, atol=1e-11)
    np.testing.assert_allclose(found.eps.numpy(), eps, rtol=0, atol=1e-11)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_kernel_density_is_a_mixture_of_equal_kernels(t):
    node, data = PATHS[0].node(t), images()
    mixture = Mixture(torch.ones(12).double() / 12, data.reshape(12, -1), 0.2 * torch.ones(12).double())
    found, expected = (problem.predict(node, states()) for problem in (KernelDensity(data, 0.2), mixture))
    torch.testing.assert_close(found.x0, expected.x0, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.eps, expected.eps, rtol=0, atol=1e-11)


def test_kernel_density_with_a_time_for_every_sample_is_what_each_sample_gets_alone():
    times = np.array([0.05, 0.2, 0.5, 0.8, 1.0])
    problem, x = KernelDensity(images(), 0.1), states()
    together = problem.predict(PATHS[0].node(times), x)
    for i, t in enumerate(times.tolist()):
        alone = problem.predict(PATHS[0].node(t), x[i : i + 1])
        torch.testing.assert_close(together.x0[i : i + 1], alone.x0, rtol=0, atol=1e-13)
        torch.testing.assert_close(together.eps[i : i + 1], alone.eps, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bits_of_a_sample_of_a_kernel_density_do_not_depend_on_its_batch_mates(dtype):
    problem, node, x = KernelDensity(images(40).to(dtype), 0.1), PATHS[0].node(0.4), states(8).to(dtype)
    together = problem.predict(node, x)
    assert together.x0.dtype == together.eps.dtype == dtype
    for index in ([3], [7, 1], [6, 5, 4, 3, 2, 1, 0]):
        apart = problem.predict(node, x[index])
        assert torch.equal(apart.x0, together.x0[index])
        assert torch.equal(apart.eps, together.eps[index])


def test_a_kernel_density_over_real_images_samples_them():
    data, _ = odediff.zoo.test_images()
    data = data[:50]
    model = exact_model(KernelDensity(data, 0.02), odediff.VPTable.linear())
    found = odediff.sample(model, (4, 1, 28, 28), steps=30, seed=1)
    distances = torch.cdist(found.reshape(4, -1), data.reshape(50, -1)).min(dim=1).values
    # A kernel's points lie sqrt(784) widths from its image; another image is several units away.
    assert float(distances.max()) < 1.5 * 0.02 * 28


@pytest.mark.parametrize("width", [0.0, -0.1, math.nan, math.inf])
def test_a_kernel_needs_a_width(width):
    with pytest.raises(ValueError, match="width=.* must be positive and finite"):
        KernelDensity(images(), width)


DISTRIBUTIONS = {
    "gaussian": Gaussian(),
    "mixture": Mixture(
        torch.tensor([0.4, 0.6], dtype=torch.float64),
        torch.stack((images(1)[0].ravel(), images(1, seed=9)[0].ravel())),
        torch.tensor([0.3, 0.5], dtype=torch.float64),
    ),
    "kernel density": KernelDensity(images(), 0.2),
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_exact_model_samples_the_same(distribution, path, form):
    # A flow starts at alpha = 0, where epsilon and score say nothing of the data: start just below.
    times = odediff.grid.log_snr(path, 8)
    times[0] = min(float(times[0]), 0.999 * path.latest) if path.alpha(path.latest) == 0 else times[0]
    ode = odediff.probability_flow(exact_model(distribution, path, form))
    x = odediff.sampling.initial_deviation(ode.node(float(times[0]))) * states()
    found = solvers.solve(ode, solvers.Heun(solvers.Noise()), x, times).x
    expected = solvers.solve(
        odediff.probability_flow(exact_model(distribution, path, "v")), solvers.Heun(solvers.Noise()), x, times
    ).x
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_an_exact_model_predicts_what_its_distribution_does(path):
    distribution = DISTRIBUTIONS["mixture"]
    node = path.node(0.4 * path.start)
    found = odediff.probability_flow(exact_model(distribution, path)).predict(node, states())
    expected = distribution.predict(node, states())
    torch.testing.assert_close(found.x0, expected.x0, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.eps, expected.eps, rtol=0, atol=1e-13)


def test_an_exact_network_may_be_asked_at_a_time_for_every_sample():
    network = ExactNetwork(Gaussian(), PATHS[1], "v")
    times, x = torch.tensor([0.1, 0.5, 0.9, 0.9, 1.0]).double(), states()
    together = network(x, times)
    for i in range(5):
        torch.testing.assert_close(together[i : i + 1], network(x[i : i + 1], times[i : i + 1]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("sigma_max", [14.6, 80.1, 157.0])
def test_float32_states_start_at_a_time_that_float32_rounds_up(sigma_max):
    model = exact_model(Gaussian(), odediff.VE(sigma_max=sigma_max))
    found = odediff.sample(model, (3, 2), steps=5, dtype=torch.float32)
    expected = odediff.sample(model, (3, 2), steps=5, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("form", ["epsilon", "v", "flow"])
def test_an_exact_model_knows_all_times_down_to_the_data(form):
    path = odediff.VPTable.linear()
    model = exact_model(Gaussian(), path, form)
    found = odediff.probability_flow(model).predict(path.node(0.0), states())
    torch.testing.assert_close(found.x0, states(), rtol=0, atol=1e-15)


def test_sampling_an_exact_gaussian_is_its_closed_form_flow():
    distribution, path = Gaussian(mean=0.3, deviation=0.7), odediff.VPLinear()
    ode = odediff.probability_flow(exact_model(distribution, path))
    times = odediff.grid.log_snr(path, 60)
    found = solvers.solve(ode, solvers.Dopri5(solvers.Rotation()), states(), times[:-1]).x
    start, end = (path.node(float(t)) for t in (times[0], times[-2]))
    torch.testing.assert_close(found, distribution.flow(start, end, states()), rtol=0, atol=1e-8)


PEAK = """
import resource, torch, solvers
from solvers.testing import ExactODE, Mixture

torch.set_num_threads(1)
ode = ExactODE(Mixture(torch.full((8,), 1 / 8), torch.randn(8, 64, dtype=torch.float64), torch.full((8,), 0.3)))
x = torch.randn(256, 64, dtype=torch.float64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
solvers.solve(ode, solvers.Heun(solvers.Rotation()), x, torch.linspace(1.5, 0.1, 301, dtype=torch.float64))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count the peak of memory in other units")
def test_many_nodes_of_a_large_batch_leave_the_memory_whole():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000  # kilobytes; a state takes 131, a call 3,000
