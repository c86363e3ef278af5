"""Ancestral sampling by any one-step method: a step to a lower level than the grid's, and fresh noise up to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from solvers.arguments import as_number
from solvers.dpm_solver_singlestep import DPMSolver2
from solvers.exponential import DDIM, direction, posterior_std, start_noise
from solvers.lines import Data
from solvers.multistep import DATA
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node, PathODE
from solvers.real import divide, is_zero, log
from solvers.solver import Law, Past, Solver, Step, require_path
from solvers.staged import Staged
from solvers.sums import combine

ROUND_OFF = 1e-9
"""By which a stage may miss the end of the grid."""


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
        """Those of the method on its way to the lower levels."""
        ways = ((a, self._below(ode, a, b)) for a, b in pairwise(nodes))
        return sum(1 if self._is_ddim(ode, a, below) else self.solver.calls(1) for a, below in ways)

    def start(
        self,
        ode: ODE,
        nodes: Sequence[Node],
        x: Tensor,
        *,
        stream: NoiseStream | None = None,
        past: Past = (),
        state: Any = None,
    ) -> NoiseStream:
        """The state of a run is its noise stream."""
        require_path(self, ode)
        stream = start_noise(self, nodes, stream, state)
        if len(nodes) > 1:
            self._require_inside(ode, nodes[-2], nodes[-1])
        return stream

    def step(self, ode: PathODE, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """Go down by the method; add what is missing."""
        below = self._below(ode, a, b)
        reached = self.solver.step(ode, a, below, x).x
        z, stream = state.draw(x)
        std = self.eta * posterior_std(a, b)
        return Step(combine((divide(b.alpha, below.alpha), reached), (std, z)), state=stream)

    def _require_inside(self, ode: Any, a: Node, b: Node) -> None:
        """Raise `ValueError` if the method would ask below b, the end of the grid."""
        below = self._below(ode, a, b)
        if self._is_ddim(ode, a, below):
            return
        *asked, _ = self.solver.stages(ode, a, below)  # type: ignore[union-attr]
        lowest = min(float(np.min(stage.node.s)) for stage in asked)
        if lowest < np.min(b.s) * (1 - ROUND_OFF):
            raise ValueError(
                f"times: {self} would ask the network at sigma/alpha={lowest:.4g}, below the end of the grid, "
                f"{float(np.min(b.s)):.4g}; use a method whose stages lie further up, solvers.DPMSolver2()"
            )

    def _is_ddim(self, ode: PathODE, a: Node, below: Node) -> bool:
        return isinstance(self.solver, DDIM) or bool(np.any(self.solver.singular(ode, a, below)))

    def _below(self, ode: PathODE, a: Node, b: Node) -> Node:
        """The node at s_down."""
        level = divide(direction(a, b, self.eta), b.alpha)
        return DATA if is_zero(level) else ode.node_at(-log(level))
