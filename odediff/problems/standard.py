"""The standard exact problems: their parameters and seeds, fixed before any tuning."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from odediff.model import Model
from odediff.problems.base import Problem, Purpose, Reference
from odediff.problems.exact import exact_model
from odediff.schedule import VPTable
from solvers.testing import Gaussian, Mixture

MIXTURE_SEEDS = {2: 2001, 16: 2016, 64: 2064, 256: 2256}
"""Dimension -> seed of the parameters of a mixture on which methods may be chosen."""
HELD_OUT_SEEDS = {2: 3001, 16: 3016, 64: 3064, 256: 3256}
"""Dimension -> seed of the parameters of another mixture, for reporting only."""
COMPONENTS = 8
GAUSSIAN_DIMENSION = 16
DATA_SEED = 7


def gaussian() -> Gaussian:
    """One Gaussian per component of the state; its flow has a closed form."""
    return Gaussian(mean=0.5, deviation=0.6)


def mixture(dimension: int, held_out: bool = False) -> Mixture:
    """Eight components with uneven weights: means uniform in [-1, 1], deviations uniform in [0.1, 0.4]."""
    seeds = HELD_OUT_SEEDS if held_out else MIXTURE_SEEDS
    if dimension not in seeds:
        raise ValueError(f"dimension={dimension} has no seed; use one of {', '.join(map(str, seeds))}")
    generator = torch.Generator().manual_seed(seeds[dimension])

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    weights = 0.5 + uniform(COMPONENTS)
    means = 2 * uniform(COMPONENTS, dimension) - 1
    return Mixture(weights / weights.sum(), means, 0.1 + 0.3 * uniform(COMPONENTS))


@dataclass(frozen=True, eq=False)
class ExactProblem(Problem):
    """A closed-form distribution on the schedule on which most networks were trained; all in float64."""

    name: str
    purpose: Purpose
    distribution: Gaussian | Mixture
    dimension: int
    dtype: torch.dtype = torch.float64
    family: str = "exact"

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """``(dimension,)``."""
        return (self.dimension,)

    @property
    def deviation(self) -> float:
        """The data's standard deviation, in closed form."""
        if isinstance(self.distribution, Gaussian):
            return self.distribution.deviation
        weights, means = self.distribution.weights[:, None], self.distribution.means
        spread = (weights * (means - (weights * means).sum(0)).square()).sum(0).mean()
        return math.sqrt(float(spread + (weights[:, 0] * self.distribution.deviations.square()).sum()))

    def model(self, rows: range) -> Model:
        return self._model

    @cached_property
    def _model(self) -> Model:
        return exact_model(self.distribution, VPTable.linear())

    def data(self, count: int) -> Tensor:
        if isinstance(self.distribution, Mixture):
            return self.distribution.sample(count, DATA_SEED)
        generator = torch.Generator().manual_seed(DATA_SEED)
        normal = torch.randn(count, self.dimension, generator=generator, dtype=torch.float64)
        return self.distribution.mean + self.distribution.deviation * normal

    def modes(self, x: Tensor) -> Tensor:
        """The component of largest responsibility; a Gaussian has one mode."""
        if isinstance(self.distribution, Gaussian):
            return torch.zeros(len(x), dtype=torch.int64)
        weights, means, deviations = (
            v.double() for v in (self.distribution.weights, self.distribution.means, self.distribution.deviations)
        )
        squares = (x.double()[:, None] - means).square().sum(-1)
        return (weights.log() - self.dimension * deviations.log() - 0.5 * squares / deviations.square()).argmax(1)

    def reference(self, noise: Tensor, steps: int | None = None) -> Reference:
        """The closed form if there is one, else two solutions."""
        if isinstance(self.distribution, Mixture):
            return super().reference(noise, steps)
        start, end = (self.path.node(t) for t in (self.path.start, 0.0))
        return Reference(self.distribution.flow(start, end, noise), 0.0)

    def digest(self) -> str:
        if isinstance(self.distribution, Gaussian):
            return hashlib.sha256(repr((self.distribution, self.dimension)).encode()).hexdigest()
        tensors = (self.distribution.weights, self.distribution.means, self.distribution.deviations)
        return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def _mixture_problem(name: str, dimension: int, held_out: bool) -> ExactProblem:
    purpose: Purpose = "reporting" if held_out else "choosing"
    return ExactProblem(name, purpose, mixture(dimension, held_out), dimension)


STANDARD: dict[str, Callable[[], ExactProblem]] = {
    "gaussian": lambda: ExactProblem("gaussian", "choosing", gaussian(), GAUSSIAN_DIMENSION),
    **{
        name: partial(_mixture_problem, name, dimension, held_out)
        for held_out, suffix in ((False, ""), (True, "_held_out"))
        for dimension in MIXTURE_SEEDS
        for name in (f"mixture_{dimension}{suffix}",)
    },
}
"""Name -> the problem."""


def standard(name: str) -> ExactProblem:
    """The standard problem of that name.

    Raises:
        ValueError: the name is unknown; the message lists the names.
    """
    if name not in STANDARD:
        raise ValueError(f"problem={name} is unknown; use one of {', '.join(STANDARD)}")
    return STANDARD[name]()
