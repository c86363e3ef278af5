"""PNDM: constant-weight Adams that makes its own history by a Runge-Kutta start."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from solvers.exponential import DDIM
from solvers.multistep import History
from solvers.ode import Node, PathODE, combine
from solvers.published import IPNDM
from solvers.solver import Solver, Step

STAGES = ((0.0, 1 / 6), (0.5, 1 / 3), (0.5, 1 / 3), (1.0, 1 / 6))
"""Of Kutta's classical method: where in t each stage lies, reached with the previous stage's slope, and its weight."""
TRAPEZOID = ((0.0, 1 / 2), (1.0, 1 / 2))


@dataclass(frozen=True)
class PNDM(IPNDM):
    """F-PNDM (Liu et al. 2022, "Pseudo numerical methods for diffusion models on manifolds", algorithm 2).

    Along the noise line, with the constant weights of iPNDM. ``warm_up="runge_kutta"`` makes the first three steps by
    the paper's pseudo Runge-Kutta method, of four calls each, whose middle stages lie halfway in t:

        e_1 = eps(a, x),                 e_2 = eps(m, move(x, a -> m, e_1)),
        e_3 = eps(m, move(x, a -> m, e_2)),    e_4 = eps(b, move(x, a -> b, e_3))
        x_b = move(x, a -> b, (e_1 + 2 e_2 + 2 e_3 + e_4) / 6),    move: a DDIM step with the noise given

    ``warm_up="improved_euler"`` is PLMS, as latent diffusion has it and diffusers with skip_prk_steps: one step by the
    average of the slopes at both ends, of two calls, then as many predictions as there are.
    """

    order: int = field(default=4, init=False, repr=False)  # type: ignore[misc]
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
        """One for each step, and three more in each of three, or one more in the first."""
        return n_steps + (3 * min(n_steps, 3) if self.warm_up == "runge_kutta" else min(n_steps, 1))

    def step(self, ode: PathODE, a: Node, b: Node, x: Tensor, state: History | None = None) -> Step:
        """One stage after the other while there is no history, then Adams."""
        if state is None:
            state = self.start(ode, (a, b), x)
        move = state.moves[state.next]
        warmed = len(state.slopes) >= (3 if self.warm_up == "runge_kutta" else 1)
        if warmed or move.predictor is None:
            return super().step(ode, a, b, x, state)
        if move.frozen is None:
            end, slope = self._stages(ode, a, b, x)
        else:
            # Rows are selected before anything is computed: 0 * inf would put NaN into the regular ones.
            end, slope = torch.empty_like(x), torch.zeros_like(x)
            for rows, frozen in ((move.frozen, True), (~move.frozen, False)):
                index = torch.as_tensor(np.flatnonzero(rows), device=x.device)
                from_a, to_b = (Node(*(np.broadcast_to(v, len(x))[rows] for v in node)) for node in (a, b))
                if frozen:
                    end[index] = DDIM().step(ode.rows(index), from_a, to_b, x[index]).x
                else:
                    end[index], slope[index] = self._stages(ode.rows(index), from_a, to_b, x[index])
        kept = self.points - 1
        history = state._replace(
            next=state.next + 1,
            nodes=(a, *state.nodes)[:kept],
            slopes=(slope, *state.slopes)[:kept],
        )
        return Step(end, state=history)

    def _stages(self, ode: PathODE, a: Node, b: Node, x: Tensor) -> tuple[Tensor, Tensor]:
        """The state at b, and the slope at a."""
        line, node, reached = self.line, a, x
        slopes: list[Tensor] = []
        stages = STAGES if self.warm_up == "runge_kutta" else TRAPEZOID
        for place, _ in stages:
            if slopes:
                node = b if place == 1 else ode.node((a.t + b.t) / 2)
                change = line.scale(node) * (line.q(node) - line.q(a))
                reached = combine((line.scale(node) / line.scale(a), x), (change, slopes[-1]))
            slopes.append(line.slope(node, ode.predict(node, reached)))
        change = line.scale(b) * (line.q(b) - line.q(a))
        weights = [change * weight for _, weight in stages]
        return combine((line.scale(b) / line.scale(a), x), *zip(weights, slopes, strict=True)), slopes[0]
