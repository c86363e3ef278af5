"""PNDM: constant-weight Adams with a Runge-Kutta start."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from solvers.lines import Line
from solvers.multistep import History
from solvers.named_multistep import IPNDM
from solvers.ode import Node, PathODE
from solvers.plan_cache import kept_plan
from solvers.solver import Solver, Step
from solvers.sums import combine, total

STAGES = ((0.0, 1 / 6), (0.5, 1 / 3), (0.5, 1 / 3), (1.0, 1 / 6))
"""The stages of Kutta's classical method: each one's place in t, reached with the previous slope, and its weight."""
TRAPEZOID = ((0.0, 1 / 2), (1.0, 1 / 2))
"""The stages of the improved Euler method, in the same form."""


@dataclass(frozen=True)
class PNDM(IPNDM):
    """F-PNDM (Liu et al. 2022, "Pseudo numerical methods for diffusion models on manifolds", algorithm 2).

    Along the noise line, with the constant weights of iPNDM. ``warm_up="runge_kutta"`` makes the first three steps by
    the paper's pseudo Runge-Kutta method, of four calls each, whose middle stages lie halfway in t:

        e_1 = eps(a, x),                 e_2 = eps(m, move(x, a -> m, e_1)),
        e_3 = eps(m, move(x, a -> m, e_2)),    e_4 = eps(b, move(x, a -> b, e_3))
        x_b = move(x, a -> b, (e_1 + 2 e_2 + 2 e_3 + e_4) / 6),    move: a DDIM step with the noise given

    ``warm_up="improved_euler"`` is PLMS, as in latent diffusion and in diffusers with skip_prk_steps: one step with the
    average of the slopes at both ends, of two calls, and then as many predictions as there are.
    """

    order: int = field(default=4, init=False, repr=False)  # type: ignore[misc]
    lower_order_below: float = field(default=0, init=False, repr=False)
    warm_up: Literal["runge_kutta", "improved_euler"] = "runge_kutta"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warm_up not in ("runge_kutta", "improved_euler"):
            raise ValueError(f'PNDM: warm_up={self.warm_up!r} is unknown; use "runge_kutta" or "improved_euler"')

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """Both starts."""
        return [cls(), cls(warm_up="improved_euler")]

    def calls(self, n_steps: int) -> int:
        """One for each step, and three more in each of the first three, or one more in the first."""
        return n_steps + (3 * min(n_steps, 3) if self.warm_up == "runge_kutta" else min(n_steps, 1))

    def calls_over(self, ode: PathODE, nodes: Sequence[Node]) -> int:  # type: ignore[override]
        """One for each step, and more in the warm-up, except in DDIM steps."""
        formulas = [move.formula for move in kept_plan(self, ode, (), tuple(nodes), False, None, 0)]
        warming = sum(formula is not None and len(formula.weights) <= self._warming for formula in formulas)
        return len(formulas) + warming * (3 if self.warm_up == "runge_kutta" else 1)

    @property
    def _warming(self) -> int:
        """The largest number of predictions with which a step belongs to the warm-up."""
        return 3 if self.warm_up == "runge_kutta" else 1

    def step(self, ode: PathODE, a: Node, b: Node, x: Tensor, state: History | None = None) -> Step:
        """A step of Adams, or one of the warm-up's stages while the history is too short."""
        if state is None:
            state = self.start(ode, (a, b), x)
        move = state.moves[state.next]
        step = super().step(ode, a, b, x, state)
        if move.formula is None or (move.reads is None and len(move.formula.weights) > self._warming):
            return step
        slope = total(step.state.slopes[:1])
        if move.reads is None:
            return step._replace(x=self._stages(ode, a, b, x, slope))
        # Rows are selected before anything is computed: 0 * inf would put NaN into the regular ones.
        warming = (move.reads > 0) & (move.reads <= self._warming)
        if warming.any():
            index = torch.as_tensor(np.flatnonzero(warming), device=x.device)
            from_a, to_b = (Node(*(np.broadcast_to(v, len(x))[warming] for v in node)) for node in (a, b))
            step.x[index] = self._stages(ode.rows(index), from_a, to_b, x[index], slope[index])
        return step

    def _stages(self, ode: PathODE, a: Node, b: Node, x: Tensor, slope: Tensor) -> Tensor:
        """The state at b, from the slope at a and those of further stages."""
        line, slopes = self.line, [slope]
        stages = STAGES if self.warm_up == "runge_kutta" else TRAPEZOID
        for place, _ in stages[1:]:
            node = b if place == 1 else ode.node((a.t + b.t) / 2)
            reached = _move(line, a, node, x, [(1.0, slopes[-1])])
            slopes.append(line.slope(node, ode.predict(node, reached)))
        return _move(line, a, b, x, [(weight, one) for (_, weight), one in zip(stages, slopes, strict=True)])


def _move(line: Line, a: Node, b: Node, x: Tensor, mean: Sequence[tuple[float, Tensor]]) -> Tensor:
    """From a to b along the line with the weighted mean of slopes."""
    scale_b = line.scale(b)
    change = scale_b * (line.q(b) - line.q(a))
    return combine((scale_b / line.scale(a), x), *((change * weight, slope) for weight, slope in mean))
