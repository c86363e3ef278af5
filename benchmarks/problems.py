"""Problems with known answers: their parameters and seeds, fixed before any tuning."""

from __future__ import annotations

import torch

from odediff import zoo
from odediff.problems import KernelDensity
from solvers.testing import Gaussian, Mixture

MIXTURE_SEEDS = {2: 2001, 16: 2016, 64: 2064, 256: 2256}
"""Dimension -> seed of the mixture's parameters."""
COMPONENTS = 8
KERNEL_WIDTH = 0.1
"""Deviation of the kernel around every image, in units where images span [-1, 1]."""


def gaussian() -> Gaussian:
    """One Gaussian per component of the state; its flow is a closed form."""
    return Gaussian(mean=0.5, deviation=0.6)


def mixture(dimension: int) -> Mixture:
    """Eight components with uneven weights: means uniform in [-1, 1], deviations uniform in [0.1, 0.4]."""
    if dimension not in MIXTURE_SEEDS:
        raise ValueError(f"dimension={dimension} has no seed; use one of {', '.join(map(str, MIXTURE_SEEDS))}")
    generator = torch.Generator().manual_seed(MIXTURE_SEEDS[dimension])

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    weights = 0.5 + uniform(COMPONENTS)
    means = 2 * uniform(COMPONENTS, dimension) - 1
    return Mixture(weights / weights.sum(), means, 0.1 + 0.3 * uniform(COMPONENTS))


def kernel_density() -> KernelDensity:
    """A kernel around each of the 1,000 embedded test images: the network that remembers them all."""
    images, _ = zoo.test_images()
    return KernelDensity(images, KERNEL_WIDTH)
