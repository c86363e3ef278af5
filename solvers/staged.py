"""What explicit one-step methods share: stages planned for the whole grid, and DDIM steps at singular nodes."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers.exponential import DDIM
from solvers.lines import Line, followed, require_line, singular_step
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node, PathODE
from solvers.plan_cache import kept_plan
from solvers.real import Real, anywhere
from solvers.solver import Past, Solver, Step, require_path
from solvers.sums import combine


class Stage(NamedTuple):
    """What a stage needs of the grid: its node, and the coefficients of the state and of the slopes that it reads."""

    node: Node
    state: Real
    slopes: tuple[tuple[int, Real], ...]


class Plan(NamedTuple):
    """The stages of every step of a grid, and the number of the next step."""

    steps: tuple[tuple[Stage, ...] | None, ...]
    next: int


@dataclass(frozen=True)
class Staged(Solver):
    """A one-step method whose stages are combinations of the state and of the slopes at earlier stages.

    A subclass defines them in `stages`. A step that leaves or reaches a `singular` node is a DDIM step, which is
    regular everywhere.
    """

    line: Line | None = None

    def __post_init__(self) -> None:
        if self.line is not None:
            require_line(self, self.line)

    @property
    @abstractmethod
    def calls_per_step(self) -> int:
        """Evaluations of a step."""

    @abstractmethod
    def stages(self, ode: ODE, a: Node, b: Node) -> tuple[Stage, ...]:
        """The stages of a regular step, its end b as the last of them."""

    def singular(self, ode: ODE, a: Node, b: Node) -> bool | np.ndarray:
        """Whether the step from a to b is a DDIM step."""
        return singular_step(self.line, ode, a, b)

    def calls(self, n_steps: int) -> int:
        """The number of stages for each step."""
        return n_steps * self.calls_per_step

    def calls_over(self, ode: ODE, nodes: Sequence[Node]) -> int:
        """The number of stages for each step, one for a DDIM step."""
        plan: Plan = kept_plan(self, ode, tuple(nodes))
        return sum(1 if stages is None else len(stages) - 1 for stages in plan.steps)

    def start(
        self,
        ode: ODE,
        nodes: Sequence[Node],
        x: Tensor,
        *,
        stream: NoiseStream | None = None,
        past: Past = (),
        state: Any = None,
    ) -> Plan:
        """Plan the stages of every step."""
        if self.line is not None:
            require_path(self, ode)
        plan: Plan = kept_plan(self, ode, tuple(nodes))
        return plan

    def plan(self, ode: ODE, nodes: Sequence[Node]) -> Plan:
        """The stages of every step between ``nodes``; None stands for a step that meets a singular node."""
        return Plan(tuple(self._stages(ode, a, b) for a, b in pairwise(nodes)), 0)

    def step(self, ode: Any, a: Node, b: Node, x: Tensor, state: Plan | None = None) -> Step:
        """Evaluate the stages, then combine their slopes."""
        stages = state.steps[state.next] if state is not None else self._stages(ode, a, b)
        following = state._replace(next=state.next + 1) if state is not None else None
        if stages is None:
            return Step(self._step_at_singular(ode, a, b, x), state=following)
        line, slopes = followed(self.line), list[Tensor]()
        reached = x
        for stage, after in zip(stages, stages[1:], strict=False):
            slopes.append(line.slope_at(ode, stage.node, reached))
            reached = combine((after.state, x), *((h, slopes[i]) for i, h in after.slopes))
        return Step(reached, state=following)

    def _stages(self, ode: ODE, a: Node, b: Node) -> tuple[Stage, ...] | None:
        return None if anywhere(self.singular(ode, a, b)) else self.stages(ode, a, b)

    def _step_at_singular(self, ode: PathODE, a: Node, b: Node, x: Tensor) -> Tensor:
        """A DDIM step for the samples at a singular node, the method itself for the others."""
        singular = self.singular(ode, a, b)
        if np.all(singular):
            return DDIM().step(ode, a, b, x).x
        # Rows are selected before anything is computed: 0 * inf would put NaN into the regular ones.
        result = torch.empty_like(x)
        parts: tuple[tuple[Solver, np.ndarray], ...] = ((DDIM(), np.asarray(singular)), (self, ~np.asarray(singular)))
        for solver, mask in parts:
            index = torch.as_tensor(np.flatnonzero(mask), device=x.device)
            from_a, to_b = (Node(*(np.broadcast_to(v, len(x))[mask] for v in node)) for node in (a, b))
            result[index] = solver.step(ode.rows(index), from_a, to_b, x[index]).x
        return result
