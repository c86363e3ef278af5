"""What a solver is measured on: a model, its noise, its exact flow, and the modes of its end states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from odediff import grid as grids
from odediff.defaults import AutoClosing, Grid, fixed_closing
from odediff.model import Model
from odediff.problem import probability_flow
from odediff.sampling import initial_noise, make_times, require_ceiling
from odediff.schedule import Schedule
from odediff.tolerance import tolerance_span
from solvers import Dopri5, NoiseStream, Rotation, Solution, Solver, solve
from solvers.solve import Closing

Purpose = Literal["choosing", "reporting"]
"""Whether defaults may be chosen on a problem, or it is kept for the published figures."""


class Reference(NamedTuple):
    """The end of the exact flow, and its rms difference to a solution in half the steps: a bound on its error."""

    x: Tensor
    error: float


class Flow(NamedTuple):
    """How the exact flow is computed."""

    solver: Solver
    grid: Callable[[Schedule, int], Tensor]
    steps: int


class Problem(ABC):
    """A problem of the benchmarks. States are ``(B, *shape)`` in ``dtype``."""

    flow: Flow = Flow(Dopri5(Rotation()), grids.angle, 200)
    """The exact flow of analytic fields: order 5, uniform steps on the line that is regular at both ends."""

    name: str
    purpose: Purpose
    family: str
    """The kind of problem: one family has about one cost, and one number of samples."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    most_data: int = 2**31
    """The number of samples of the data that exist."""

    @property
    @abstractmethod
    def deviation(self) -> float:
        """The data's standard deviation, the root of the mean variance of the components: the unit of errors."""

    @abstractmethod
    def model(self, rows: range) -> Model:
        """The model under the conditions of the samples ``rows``."""

    @abstractmethod
    def data(self, count: int) -> Tensor:
        """Samples of the data in float64, the same for the same ``count``."""

    @abstractmethod
    def modes(self, x: Tensor) -> Tensor:
        """The mode to which each end state belongs, int64 ``(B,)``: if a path switches modes, the pictures differ."""

    @abstractmethod
    def digest(self) -> str:
        """A hash of everything on which the flow depends: parameters or weights."""

    @cached_property
    def fingerprint(self) -> str:
        """The digest, computed once."""
        return self.digest()

    @property
    def path(self) -> Schedule:
        """The schedule."""
        return self.model(range(1)).path

    def noise(self, seed: int, rows: range) -> Tensor:
        """The states at which the samples ``rows`` of a seed start, the same for every method."""
        like = torch.empty(len(rows), *self.shape, dtype=self.dtype)
        return initial_noise(self.path.node(self.path.start), like, NoiseStream(seed, rows))[0]

    def reference(self, noise: Tensor, steps: int | None = None) -> Reference:
        """The exact flow of the samples 0 to B - 1 in float64, from two solutions, one in half the ``steps``."""
        model, steps = self.model(range(len(noise))), steps or self.flow.steps
        coarse, fine = (exact_end(model, noise.double(), self.flow._replace(steps=n)) for n in (steps // 2, steps))
        return Reference(fine, float((fine - coarse).square().mean().sqrt()))

    def solve(
        self,
        solver: Solver,
        seed: int,
        rows: range,
        *,
        grid: Grid | None,
        nfe: int | None = None,
        rtol: float | None = None,
        closing: AutoClosing = "auto",
    ) -> Solution:
        """Solve from the noise of the samples ``rows`` of a seed with at most ``nfe`` calls.

        A method that chooses its own steps gets a tolerance instead, with the times of `odediff.sample`. Failed samples
        do not raise: the solution has their status.

        Raises:
            ValueError: ``nfe`` is too small for one step, or the solver made more calls than it declares.
        """
        model = self.model(rows)
        ode = probability_flow(model)
        rule: Closing
        if rtol is None:
            rule = fixed_closing(solver, closing)
            times = self.times(solver, grid, nfe, rule)
        else:
            solver = replace(solver, rtol=rtol)  # type: ignore[call-arg]
            times, rule = tolerance_span(model, solver, closing)
        stream = NoiseStream(seed, rows, counter=1)
        with torch.no_grad():
            solution = solve(ode, solver, self.noise(seed, rows), times, closing=rule, stream=stream, throw=False)
        require_ceiling(solver, nfe, solution)
        return solution

    def times(self, solver: Solver, grid: Grid | None, nfe: int | None, closing: AutoClosing = "auto") -> Tensor:
        """The grid of `solve`.

        Raises:
            ValueError: ``nfe`` is too small for one step.
        """
        return make_times(
            probability_flow(self.model(range(1))), solver, grid, None, nfe, fixed_closing(solver, closing)
        )


def exact_end(model: Model, noise: Tensor, flow: Flow) -> Tensor:
    """The end of the probability flow.

    A model that is not defined below the last time of its grid is denoised from there, as in sampling.
    """
    closing: Closing = None if model.continuous else "denoise"
    with torch.no_grad():
        return solve(probability_flow(model), flow.solver, noise, flow.grid(model.path, flow.steps), closing=closing).x
