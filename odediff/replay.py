"""The additions of a recorded code to a solve: an offset or a null condition for every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odediff.model import Model
from odediff.problem import ProbabilityFlow
from solvers import Node, NoiseStream, Prediction, Solver, Step
from solvers.ode import ODE
from solvers.solver import Past


class Offsets(NamedTuple):
    """The offsets of all steps, ``(N, B, ...)``, and the number of the next step."""

    values: Tensor
    next: int


@dataclass(frozen=True)
class Silence(NoiseStream):
    """A stream of zeros, with which a stochastic step gives its mean."""

    seed: int = 0

    def draw(self, like: Tensor) -> tuple[Tensor, NoiseStream]:
        """Zeros."""
        return torch.zeros_like(like), self


@dataclass(frozen=True)
class Replayed(Solver):
    """``x_b = mean(a->b, x_a) + offset``: the one-step method ``base``, with its noise replaced by recorded offsets."""

    base: Solver

    @property
    def order(self) -> int:  # type: ignore[override]
        """The order of the base method."""
        return self.base.order

    def start(
        self,
        ode: ODE,
        nodes: Sequence[Node],
        x: Tensor,
        *,
        stream: NoiseStream | None = None,
        past: Past = (),
        state: Tensor | None = None,
    ) -> Offsets:
        """The offsets, beginning with the first."""
        if state is None or len(state) != len(nodes) - 1:
            raise ValueError(
                f"offsets: {len(nodes) - 1} steps need as many offsets; decode the code in which they were recorded"
            )
        return Offsets(state, 0)

    def step(self, ode: Any, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """The mean plus the offset of this step."""
        end = mean_step(self.base, ode, a, b, x) + state.values[state.next]
        return Step(end, state=state._replace(next=state.next + 1))


def mean_step(solver: Solver, ode: Any, a: Node, b: Node, x: Tensor) -> Tensor:
    """One step of ``solver``, without its noise."""
    silence = None if solver.deterministic else Silence()
    return solver.step(ode, a, b, x, solver.start(ode, (a, b), x, stream=silence)).x


class NullConditionedFlow(ProbabilityFlow):
    """The probability flow of a model whose null condition changes from node to node.

    ``times`` are the nodes, noise first; ``nulls`` contains, for each condition, one row of values for every node but
    the last, ``(N, B, ...)``, or one for all nodes, ``(1, B, ...)``.
    """

    def __init__(self, model: Model, times: Sequence[float] | Tensor, nulls: Mapping[str, Tensor]) -> None:
        super().__init__(model)
        self.times, self.nulls = [float(t) for t in times], nulls
        self.steps = {t: i for i, t in enumerate(self.times[:-1])}

    def predict(self, node: Node, x: Tensor) -> Prediction:
        """The model's prediction with the null condition of that node."""
        step = self.steps.get(float(node.t))
        if step is None:
            raise ValueError(
                f"times: the null conditions belong to the nodes of their grid, and t={node.t} is not one of them; "
                "decode with the solver with which they were recorded"
            )
        null = {name: values[step if len(values) > 1 else 0] for name, values in self.nulls.items()}
        return replace(self.model, null={**self.model.null, **null}).predict(node, x)

    def rows(self, index: Tensor) -> NullConditionedFlow:
        selected = {name: values[:, index.to(values.device)] for name, values in self.nulls.items()}
        return NullConditionedFlow(self.model.rows(index), self.times, selected)
