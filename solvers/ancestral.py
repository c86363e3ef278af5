"""Ancestral sampling by any one-step method: a step to below the grid's next level, then fresh noise up to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from solvers.arguments import as_number
from solvers.dpm_solver import DPMSolver2
from solvers.exponential import DDIM, direction, posterior_std, start_noise
from solvers.lines import Data
from solvers.noise import NoiseStream
from solvers.ode import DATA, ODE, Node, PathODE
from solvers.plan_cache import kept_plan
from solvers.real import divide, is_zero, log
from solvers.solver import Law, Past, Solver, Step, require_path, require_run
from solvers.staged import Plan, Staged
from solvers.sums import combine

ROUND_OFF = 1e-9
"""The relative amount by which a stage may lie below the end of the grid."""


class DescendingStep(NamedTuple):
    """What a step needs of the grid: the node at s_down, and the method's plan of the step there, None for DDIM."""

    below: Node
    plan: Plan | None

    @property
    def stage_nodes(self) -> list[Node]:
        """The nodes at which the method's stages evaluate the network; empty for a DDIM step."""
        stages = self.plan.steps[0] if self.plan is not None else None
        return [stage.node for stage in stages[:-1]] if stages else []


class Run(NamedTuple):
    """A run of `Ancestral`: its noise, the steps of the grid and the number of the next."""

    stream: NoiseStream
    steps: tuple[DescendingStep, ...]
    next: int


@dataclass(frozen=True)
class Ancestral(Solver):
    """A deterministic step to below the level of b, then fresh noise of the missing size.

    The ancestral samplers of Crowson 2022, "k-diffusion", on any path. With the deviation of the noisier state's
    posterior as in `DDIM`, and fresh noise z,

        std = eta sigma_b sqrt(1 - (s_b / s_a)^2),    s_down = sqrt(s_b^2 - (std / alpha_b)^2)
        x_b = (alpha_b / alpha_down) x_down + std z

    where the one-step method ``solver`` leads from x_a to x_down. The noise turns the marginal of the lower level into
    that of b, so the weak order is that of ``solver``. ``Ancestral(DDIM(), eta)`` is ``DDIM(eta)``; with `DPMSolver2`
    on the noise line it is "DPM2 a", KDPM2Ancestral in diffusers, on the data line "DPM++ 2S a".

    The stage of `DPMSolver2` lies at the geometric mean of s_a and s_down, which is b itself at eta = 1, and that of
    ``Midpoint(Noise())`` lies above b. Methods with a stage at the end of a step, such as `Heun`, would evaluate the
    network below the end of the grid, where one trained on a table is undefined.

    Args:
        solver: a deterministic, explicit one-step method.
        eta: the share of the posterior's deviation that is fresh noise, above 0 and at most 1.
    """

    solver: Staged | DDIM = DPMSolver2()
    eta: float = 1.0

    def __post_init__(self) -> None:
        explicit = isinstance(self.solver, Staged | DDIM)
        if not explicit or not self.solver.deterministic or not self.solver.one_step:
            raise TypeError(
                f"Ancestral: solver={self.solver!r} must be a deterministic, explicit one-step method; pass "
                "solvers.DPMSolver2() or solvers.Midpoint(solvers.Noise())"
            )
        if not 0 < as_number(self.eta) <= 1:
            raise ValueError(
                f"Ancestral: eta={self.eta!r} must lie in (0, 1]; without fresh noise use {self.solver!r} itself"
            )

    @property
    def order(self) -> int:  # type: ignore[override]
        """The method's order."""
        return self.solver.order

    @property
    def law(self) -> Law:  # type: ignore[override]
        """Weak: moments converge."""
        return "weak"

    @property
    def deterministic(self) -> bool:
        """False: every step draws noise."""
        return False

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """The two established samplers, and less noise."""
        return [cls(), cls(DPMSolver2(line=Data())), cls(DPMSolver2(), eta=0.5)]

    def calls(self, n_steps: int) -> int:
        """The calls of the method."""
        return self.solver.calls(n_steps)

    def calls_over(self, ode: Any, nodes: Sequence[Node]) -> int:
        """The calls of the method to the lower levels, one for a DDIM step."""
        steps: tuple[DescendingStep, ...] = kept_plan(self, ode, tuple(nodes))
        return sum(max(len(step.stage_nodes), 1) for step in steps)

    def start(
        self,
        ode: ODE,
        nodes: Sequence[Node],
        x: Tensor,
        *,
        stream: NoiseStream | None = None,
        past: Past = (),
        state: Run | None = None,
    ) -> Run:
        """Plan every step."""
        require_path(self, ode)
        require_run(self, state, Run)
        stream = start_noise(self, nodes, stream, state.stream if state is not None else None)
        steps: tuple[DescendingStep, ...] = kept_plan(self, ode, tuple(nodes))
        if steps:
            self._require_inside(steps[-1], nodes[-1])
        return Run(stream, steps, 0)

    def step(self, ode: PathODE, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """Descend by the method, then add the missing noise."""
        below, plan = state.steps[state.next]
        reached = self.solver.step(ode, a, below, x, plan).x
        z, stream = state.stream.draw(x)
        end = combine((divide(b.alpha, below.alpha), reached), (self.eta * posterior_std(a, b), z))
        return Step(end, state=Run(stream, state.steps, state.next + 1))

    def plan(self, ode: PathODE, nodes: Sequence[Node]) -> tuple[DescendingStep, ...]:
        """The steps between ``nodes``."""
        return tuple(self._descending(ode, a, b) for a, b in pairwise(nodes))

    def _descending(self, ode: PathODE, a: Node, b: Node) -> DescendingStep:
        level = divide(direction(a, b, self.eta), b.alpha)
        below = DATA if is_zero(level) else ode.node_at(-log(level))
        return DescendingStep(below, None if isinstance(self.solver, DDIM) else self.solver.plan(ode, (a, below)))

    def _require_inside(self, step: DescendingStep, b: Node) -> None:
        """Raise `ValueError` if the method would evaluate the network below b, the end of the grid."""
        lowest = min((float(np.min(node.s)) for node in step.stage_nodes), default=np.inf)
        if lowest < np.min(b.s) * (1 - ROUND_OFF):
            raise ValueError(
                f"times: {self} would evaluate the field at sigma/alpha={lowest:.4g}, below the end of the grid, "
                f"{float(np.min(b.s)):.4g}; use a method whose stages lie further up, solvers.DPMSolver2()"
            )
