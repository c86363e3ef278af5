"""Ancestral sampling by any one-step method: a step to a lower level than the grid's, and fresh noise up to it."""

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
from solvers.multistep import DATA
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node, PathODE
from solvers.plan_cache import kept_plan
from solvers.real import divide, is_zero, log
from solvers.solver import Law, Past, Solver, Step, require_path, require_run
from solvers.staged import Plan, Staged
from solvers.sums import combine

ROUND_OFF = 1e-9
"""By which a stage may miss the end of the grid."""


class Way(NamedTuple):
    """What a step needs of the grid: the node at s_down, and the method's plan of the step there, None for DDIM's."""

    below: Node
    plan: Plan | None

    @property
    def asked(self) -> list[Node]:
        """The nodes at which the method's stages ask the network; none are told of a DDIM step."""
        stages = self.plan.steps[0] if self.plan is not None else None
        return [stage.node for stage in stages[:-1]] if stages else []


class Run(NamedTuple):
    """A run of `Ancestral`: its noise, the ways of the grid and the number of the next."""

    stream: NoiseStream
    ways: tuple[Way, ...]
    next: int


@dataclass(frozen=True)
class Ancestral(Solver):
    """A deterministic step to below the level of b, and fresh noise of the size that is missing there.

    The ancestral samplers of Crowson 2022, "k-diffusion", on any path. With the deviation of the noisier state's
    posterior as in `DDIM`, and z fresh noise,

        std = eta sigma_b sqrt(1 - (s_b / s_a)^2),    s_down = sqrt(s_b^2 - (std / alpha_b)^2)
        x_b = (alpha_b / alpha_down) x_down + std z

    where the one-step method ``solver`` leads from x_a to x_down. A state that has the marginal of the lower level has
    b's afterwards, so that the weak order is that of ``solver``. ``Ancestral(DDIM(), eta)`` is ``DDIM(eta)``; with
    `DPMSolver2` on the noise line it is "DPM2 a", KDPM2Ancestral in diffusers, on the data line "DPM++ 2S a".

    The stage of `DPMSolver2` is the geometric mean of s_a and s_down, which is b itself at eta = 1, and that of
    ``Midpoint(Noise())`` lies above b. Methods with a stage at the end of a step, such as `Heun`, would ask the network
    below the end of the grid, where one with a table is undefined.

    Args:
        solver: deterministic, explicit and of one step.
        eta: the share of the posterior's deviation that is fresh noise, above 0 and at most 1.
    """

    solver: Staged | DDIM = DPMSolver2()
    eta: float = 1.0

    def __post_init__(self) -> None:
        explicit = isinstance(self.solver, Staged | DDIM)
        if not explicit or not self.solver.deterministic or not self.solver.one_step:
            raise TypeError(
                f"Ancestral: solver={self.solver!r} is no deterministic explicit method of one step; pass "
                "solvers.DPMSolver2() or solvers.Midpoint(solvers.Noise())"
            )
        if not 0 < as_number(self.eta) <= 1:
            raise ValueError(
                f"Ancestral: eta={self.eta!r} must lie in (0, 1]; without fresh noise use {self.solver!r} itself"
            )

    @property
    def order(self) -> int:  # type: ignore[override]
        """That of the method."""
        return self.solver.order

    @property
    def law(self) -> Law:  # type: ignore[override]
        """Moments converge."""
        return "weak"

    @property
    def deterministic(self) -> bool:
        """Never."""
        return False

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """The two of the field, and less noise."""
        return [cls(), cls(DPMSolver2(line=Data())), cls(DPMSolver2(), eta=0.5)]

    def calls(self, n_steps: int) -> int:
        """Those of the method."""
        return self.solver.calls(n_steps)

    def calls_over(self, ode: Any, nodes: Sequence[Node]) -> int:
        """Those of the method on its way to the lower levels, with one for a DDIM step."""
        ways: tuple[Way, ...] = kept_plan(self, ode, tuple(nodes))
        return sum(max(len(way.asked), 1) for way in ways)

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
        """Plan the way of every step."""
        require_path(self, ode)
        require_run(self, state, Run)
        stream = start_noise(self, nodes, stream, state.stream if state is not None else None)
        ways: tuple[Way, ...] = kept_plan(self, ode, tuple(nodes))
        if ways:
            self._require_inside(ways[-1], nodes[-1])
        return Run(stream, ways, 0)

    def step(self, ode: PathODE, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """Go down by the method; add what is missing."""
        way: Way = state.ways[state.next]
        reached = self.solver.step(ode, a, way.below, x, way.plan).x
        z, stream = state.stream.draw(x)
        end = combine((divide(b.alpha, way.below.alpha), reached), (self.eta * posterior_std(a, b), z))
        return Step(end, state=Run(stream, state.ways, state.next + 1))

    def plan(self, ode: PathODE, nodes: Sequence[Node]) -> tuple[Way, ...]:
        """The ways between ``nodes``."""
        return tuple(self._way(ode, a, b) for a, b in pairwise(nodes))

    def _way(self, ode: PathODE, a: Node, b: Node) -> Way:
        level = divide(direction(a, b, self.eta), b.alpha)
        below = DATA if is_zero(level) else ode.node_at(-log(level))
        return Way(below, None if isinstance(self.solver, DDIM) else self.solver.plan(ode, (a, below)))

    def _require_inside(self, way: Way, b: Node) -> None:
        """Raise `ValueError` if the method would ask below b, the end of the grid."""
        lowest = min((float(np.min(node.s)) for node in way.asked), default=np.inf)
        if lowest < np.min(b.s) * (1 - ROUND_OFF):
            raise ValueError(
                f"times: {self} would ask the network at sigma/alpha={lowest:.4g}, below the end of the grid, "
                f"{float(np.min(b.s)):.4g}; use a method whose stages lie further up, solvers.DPMSolver2()"
            )
