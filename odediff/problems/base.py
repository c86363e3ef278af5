"""What a solver is measured on: a model, its noise, its exact flow, and what can be told of an end state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from odediff import grid
from odediff.model import Model
from odediff.problem import probability_flow
from odediff.sampling import initial_deviation
from odediff.schedule import Schedule
from solvers import Dopri5, NoiseStream, Rotation, Solver, solve
from solvers.solve import Closing

Purpose = Literal["choosing", "reporting"]
"""Defaults are chosen on one half of the problems; the other half is left for the figures that are published."""


class Reference(NamedTuple):
    """Where the exact flow ends, and the rms difference to a solution of half the steps: a bound on its own error."""

    x: Tensor
    error: float


class Flow(NamedTuple):
    """How the exact flow is computed."""

    solver: Solver
    grid: Callable[[Schedule, int], Tensor]
    steps: int


class Problem(ABC):
    """A problem of the benchmarks. States are ``(B, *shape)`` in ``dtype``."""

    flow: Flow = Flow(Dopri5(Rotation()), grid.angle, 200)
    """Analytic fields: order 5 on the line that is regular at both ends, uniform in its variable."""

    name: str
    purpose: Purpose
    family: str
    """Problems of one family cost about as much, and take as many samples."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    most_data: int = 2**31
    """How many samples of the data there are."""

    @property
    @abstractmethod
    def deviation(self) -> float:
        """The data's deviation, the root of the mean variance of the components: the unit of errors."""

    @abstractmethod
    def model(self, count: int) -> Model:
        """The model, under the conditions of the samples 0 to ``count - 1``."""

    @abstractmethod
    def data(self, count: int) -> Tensor:
        """Samples of the data in float64, always the same; a longer list begins with a shorter one."""

    @abstractmethod
    def modes(self, x: Tensor) -> Tensor:
        """The mode that each end state belongs to, int64 ``(B,)``: where a path switched, the pictures differ."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of everything that the flow depends on: parameters or weights."""

    def noise(self, seed: int, count: int) -> Tensor:
        """The states from which the samples 0 to ``count - 1`` of a seed start, the same for every method."""
        like = torch.empty(count, *self.shape, dtype=self.dtype)
        path = self.model(1).path
        return NoiseStream(seed).draw(like)[0] * initial_deviation(path.node(path.start))

    def reference(self, noise: Tensor, steps: int | None = None) -> Reference:
        """The exact flow of ``noise``, by two solutions of which one has half of the ``steps``; states in float64."""
        model, steps = self.model(len(noise)), steps or self.flow.steps
        coarse, fine = (exact_end(model, noise.double(), self.flow._replace(steps=n)) for n in (steps // 2, steps))
        return Reference(fine, float((fine - coarse).square().mean().sqrt()))


def exact_end(model: Model, noise: Tensor, flow: Flow) -> Tensor:
    """The end of the probability flow.

    A model that is not defined below the last time of its grid is denoised from there, as samplers do.
    """
    closing: Closing = None if model.continuous else "denoise"
    with torch.no_grad():
        return solve(probability_flow(model), flow.solver, noise, flow.grid(model.path, flow.steps), closing=closing).x
