"""What is compared: a method on a grid, ours or a peer's, behind a common interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, NamedTuple

from torch import Tensor

import solvers
from odediff.defaults import AutoClosing, default_grid, fixed_closing
from odediff.own_code import code_hash
from odediff.problems import Problem
from odediff.sampling import steps_within, times_at_most
from odediff.schedule import Schedule
from solvers import Solver
from solvers.implicit_inverse import ImplicitInverse
from solvers.settings import parts, undeclared
from solvers.solve import Closing

ADAPTIVE_GRID = "adaptive"
"""The grid label of methods that choose their own steps."""


class Outcome(NamedTuple):
    """End states and their cost: calls of the field per sample, counted by the wrapper around it."""

    x: Tensor
    calls: float
    calls_max: int
    network_evaluations: int
    steps: int


class Method(ABC):
    """A sampler with all its settings except the cost, which is a ceiling on the calls or a tolerance."""

    # Some methods compute these: mypy calls a read-only property in an attribute's place an incompatible override.
    name: str
    algorithm: str
    """The algorithm of which the method is a setting."""
    source: Literal["odediff", "diffusers", "k-diffusion"]
    grid: str
    closing: str
    deterministic: bool

    @property
    def adaptive(self) -> bool:
        """Whether the method takes a tolerance instead of a number of calls."""
        return False

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Everything that the result depends on, for the cell's hash."""

    @abstractmethod
    def affordable(self, problem: Problem, nfe: int) -> bool:
        """Whether ``nfe`` calls suffice for a solve."""

    @abstractmethod
    def run(self, problem: Problem, rows: range, seed: int, nfe: int | None, tolerance: float | None) -> Outcome:
        """Solve from the noise of the samples ``rows`` of ``seed`` to the end."""


@dataclass(frozen=True, eq=False)
class Ours(Method):
    """A solver of this package."""

    name: str
    solver: Solver
    grid: str
    place: Callable[..., Tensor]
    rule: Closing = "denoise"
    source: Literal["odediff"] = "odediff"

    @property
    def algorithm(self) -> str:  # type: ignore[override]
        """The solver's class."""
        return type(self.solver).__name__

    @property
    def closing(self) -> str:  # type: ignore[override]
        """The name of the closing rule; methods that follow a tolerance have their own."""
        return "auto" if self.adaptive else str(self.rule)

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        """Whether the solver draws no noise."""
        return self.solver.deterministic

    @property
    def adaptive(self) -> bool:
        return self.solver.law == "tolerance"

    def settings(self) -> Mapping[str, Any]:
        if " at 0x" in repr(self.solver):
            raise ValueError(
                f"solvers: {self.name} is {self.solver!r}, whose address differs between runs, so that its cells "
                "would never be found again; let its fields be plain values"
            )
        if hidden := [name for part in parts(self.solver) for name in undeclared(part)]:
            raise ValueError(
                f"solvers: {self.name} is {self.solver!r}, whose {', '.join(hidden)} it does not show, so that cells "
                "of different settings would be taken for one; let every setting be a field of a frozen dataclass"
            )
        return {
            "solver": f"{type(self.solver).__module__}.{self.solver!r}",
            "grid": f"{getattr(self.place, 'func', self.place).__name__}{getattr(self.place, 'keywords', {})}",
            "closing": self.closing,
            **({} if (code := code_hash(self.solver)) is None else {"code": code}),
        }

    def affordable(self, problem: Problem, nfe: int) -> bool:
        steps = _steps(self.solver, nfe, self.rule)
        return steps is not None and _exists(self.place, problem.path, steps)

    def run(self, problem: Problem, rows: range, seed: int, nfe: int | None, tolerance: float | None) -> Outcome:
        closing: AutoClosing = "auto" if tolerance is not None else self.rule
        solution = problem.solve(self.solver, seed, rows, grid=self.place, nfe=nfe, rtol=tolerance, closing=closing)
        stats = solution.stats
        calls = float(stats.evaluations.double().mean())
        return Outcome(solution.x, calls, stats.nfe, stats.network_evaluations, stats.steps)


# A study asks for every problem, method and number of calls, but there are few different answers.
@cache
def _steps(solver: Solver, nfe: int, closing: Closing) -> int | None:
    """The steps that ``nfe`` calls allow on any grid; None if they allow none."""
    try:
        return steps_within(solver, nfe, closing)
    except ValueError:
        return None


@cache
def _exists(place: Callable[..., Tensor], path: Schedule, steps: int) -> bool:
    """Whether the grid of so many steps exists on the schedule."""
    try:
        times_at_most(place, path, steps)
    except ValueError:
        return False
    return True


def ours(
    configured: Mapping[str, Solver],
    grids: Mapping[str, Callable[..., Tensor]],
    closings: list[str],
    variants: bool,
) -> list[Ours]:
    """Every configured solver on every grid and closing; with ``variants``, all variants of exported ones too."""
    chosen = dict(configured)
    if variants:
        known = set(configured.values())
        chosen |= {str(v): v for v in exported_variants() if v not in known}
    # A solver may have two names (kdpm2 is a setting of DPM-Solver-2); it is measured under the first.
    first: dict[Solver, str] = {}
    for name, solver in chosen.items():
        if not is_inverse(solver):
            first.setdefault(solver, name)
    methods = []
    for solver, name in first.items():
        if solver.law == "tolerance":
            methods.append(Ours(name, _together(solver), ADAPTIVE_GRID, next(iter(grids.values()))))
            continue
        if solver.closes:
            # The nodes and the last step belong to the method.
            own = default_grid(solver)
            methods.append(Ours(name, solver, own.__name__, own, fixed_closing(solver, "auto")))
            continue
        # A stochastic path has nothing smooth to extrapolate.
        rules = [rule for rule in map(_rule, closings) if solver.deterministic or rule != "extrapolate"]
        for grid, place in grids.items():
            methods += [Ours(name, solver, grid, place, rule) for rule in rules]
    return methods


def is_inverse(solver: Solver) -> bool:
    """Whether ``solver`` inverts another solver; run as a sampler, it would be that solver."""
    return isinstance(solver, solvers.Inverse | ImplicitInverse | solvers.TrajectoryInverse)


def exported_variants() -> list[Solver]:
    """The variants of every solver that `solvers` exports."""
    exported = [getattr(solvers, name) for name in solvers.__all__]
    classes = [c for c in exported if isinstance(c, type) and issubclass(c, Solver) and not c.__abstractmethods__]
    return [v for c in classes if c is not solvers.RungeKutta for v in c.variants()]


def _together(solver: Solver) -> Solver:
    """A library's adaptive method on the whole batch at once; sample by sample, a second's work would take minutes."""
    return replace(solver, batched=True) if hasattr(solver, "batched") else solver  # type: ignore[call-arg]


def _rule(closing: str) -> Closing:
    if closing not in ("denoise", "extrapolate", "None"):
        raise ValueError(f"closings={closing} is unknown; use denoise, extrapolate or None")
    return None if closing == "None" else closing  # type: ignore[return-value]
