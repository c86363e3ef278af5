"""Implicit Runge-Kutta methods: the Gauss-Legendre family, solved by fixed-point iteration for each sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers.arguments import as_number, require_whole
from solvers.controller import row_norm
from solvers.counting import affording
from solvers.exponential import DDIM
from solvers.lines import Data, Line, Noise, Rotation, followed, require_line, singular_step
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node
from solvers.real import Real, native
from solvers.solution import Status
from solvers.solver import Past, Solver, Step, require_path, require_run
from solvers.sums import combine
from solvers.transfer import as_array, index_on

ROUND_OFFS = 16
"""The smallest tolerance of an iteration, in units of the state's round-off."""
_R3, _R15 = math.sqrt(3), math.sqrt(15)


class Collocation(NamedTuple):
    """Butcher's array of an implicit method: stage times ``c``, the full matrix ``a``, weights ``b``."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


GAUSS_LEGENDRE = {
    1: Collocation((1 / 2,), ((1 / 2,),), (1.0,)),
    2: Collocation(
        (1 / 2 - _R3 / 6, 1 / 2 + _R3 / 6),
        ((1 / 4, 1 / 4 - _R3 / 6), (1 / 4 + _R3 / 6, 1 / 4)),
        (1 / 2, 1 / 2),
    ),
    3: Collocation(
        (1 / 2 - _R15 / 10, 1 / 2, 1 / 2 + _R15 / 10),
        (
            (5 / 36, 2 / 9 - _R15 / 15, 5 / 36 - _R15 / 30),
            (5 / 36 + _R15 / 24, 2 / 9, 5 / 36 - _R15 / 24),
            (5 / 36 + _R15 / 30, 2 / 9 + _R15 / 15, 5 / 36),
        ),
        (5 / 18, 4 / 9, 5 / 18),
    ),
}
"""The arrays of 1 to 3 stages: Hairer, Norsett & Wanner, "Solving ODEs I", tables II.7.3 and II.7.4."""


@dataclass(frozen=True)
class GaussLegendre(Solver):
    """Collocation at the Gauss points, of order 2 (the implicit midpoint rule), 4 or 6, on x(t) or along a line.

    Hairer, Norsett & Wanner 1993, "Solving ODEs I", section II.7. With z = x/scale, dz/dq = slope (on x(t): scale = 1,
    q = t) and h = q_b - q_a, the stages solve

        z_i = z_a + h sum_j a_ij k_j,    k_i = slope(z_i),    z_b = z_a + h sum_i b_i k_i

    by fixed-point iteration, the first k being the slope at a. The method is symmetric: the same solve on the flipped
    grid undoes it, up to the tolerance. A sample is done when no stage moves by more than ``tolerance`` times
    ``1 + |x_a|`` (root mean squares; at least 16 round-offs of the state's dtype); from then on it is left unchanged,
    and so does not depend on its batch mates. A sample that is not done after ``iterations`` becomes NaN with
    `Status.NOT_CONVERGED`; one that cannot afford its iterations keeps the state at a, with `Status.BUDGET`. The
    iteration needs ``|h|`` below the inverse of the slope's Lipschitz constant. With a float32 network a float64 state
    cannot converge below 1e-6. A step that leaves or reaches a singular node of its line is a DDIM step.
    """

    line: Line | None = None
    stages: int = 2
    tolerance: float = 1e-13
    iterations: int = 60

    def __post_init__(self) -> None:
        require_whole("GaussLegendre: stages", self.stages, 1, 3, hint=", for order 2, 4 or 6")
        if not 0 < as_number(self.tolerance) < 1:
            raise ValueError(f"GaussLegendre: tolerance={self.tolerance!r} must lie between 0 and 1, such as 1e-6")
        require_whole("GaussLegendre: iterations", self.iterations, 1)
        if self.line is not None:
            require_line(self, self.line)

    @property
    def order(self) -> int:  # type: ignore[override]
        """Twice the stages."""
        return 2 * self.stages

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """Every order, on x(t) and the lines."""
        return [cls(Rotation(), 1), cls(None, 2), cls(Noise(), 3), cls(Data(), 3), cls(Rotation(0.5), 3)]

    def calls(self, n_steps: int) -> int:
        """One for the first slope and one for each stage and iteration: a bound that few samples approach."""
        return n_steps * (1 + self.stages * self.iterations)

    def start(
        self,
        ode: ODE,
        nodes: Sequence[Node],
        x: Tensor,
        *,
        stream: NoiseStream | None = None,
        past: Past = (),
        state: Any = None,
    ) -> Tensor:
        """The state of a run is the samples' `Status`, int64 ``(B,)``."""
        if self.line is not None:
            require_path(self, ode)
        require_run(self, state, Tensor)
        if state is not None and state.shape != (len(x),):
            raise ValueError(
                f"state: it belongs to {len(state)} samples, but x has {len(x)}; carry on the same samples"
            )
        return torch.zeros(len(x), dtype=torch.int64, device="cpu") if state is None else state

    def step(self, ode: Any, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """Iterate for the samples that have not failed, then combine their slopes."""
        status = np.zeros(len(x), dtype=np.int64) if state is None else as_array(state).copy()
        singular = np.broadcast_to(singular_step(self.line, ode, a, b), len(x))
        end = x.clone()
        left = affording(ode, np.flatnonzero(status == Status.SUCCESS), 1, status)
        for rows, solve in ((left[singular[left]], self._frozen), (left[~singular[left]], self._collocate)):
            if len(rows):
                # In most steps no sample has failed: the whole batch is then solved without a selection.
                whole = len(rows) == len(x)
                index = index_on(x.device, rows)
                part = ode if whole else ode.rows(index)
                from_a, to_b = (a, b) if whole else (_rows(node, rows) for node in (a, b))
                end[index], status[rows] = solve(part, from_a, to_b, x[index])
        known = torch.from_numpy(status)
        return Step(end, state=known, status=known)

    def _frozen(self, ode: Any, a: Node, b: Node, x: Tensor) -> tuple[Tensor, np.ndarray]:
        return DDIM().step(ode, a, b, x).x, np.full(len(x), Status.SUCCESS)

    def _collocate(self, ode: Any, a: Node, b: Node, x: Tensor) -> tuple[Tensor, np.ndarray]:
        """The states at b, and statuses: NaN where the stages did not converge, the state at a without the calls."""
        c, rows, b_weights = GAUSS_LEGENDRE[self.stages]
        line = followed(self.line)
        q_a, q_b = line.q(a), line.q(b)
        nodes = [line.node(ode, q_a + part * (q_b - q_a)) for part in c]
        start, h = line.scale(a), q_b - q_a
        slopes = [line.slope_at(ode, a, x)] * self.stages
        floor = ROUND_OFFS * torch.finfo(x.dtype).eps
        bound = max(self.tolerance, floor) * (1 + row_norm(x))
        stages = self._stages(x, start, h, nodes, rows, slopes)
        status, left = np.full(len(x), Status.NOT_CONVERGED), np.arange(len(x))
        for _ in range(self.iterations):
            left = affording(ode, left, self.stages, status)
            if not len(left):
                break
            if len(left) < len(x):
                index = index_on(x.device, left)
                part = ode.rows(index)
                for i, node in enumerate(nodes):
                    new = line.slope_at(part, _rows(node, left), stages[i][index])
                    slopes[i] = slopes[i].index_copy(0, index, new)
            else:
                slopes = [line.slope_at(ode, node, stage) for node, stage in zip(nodes, stages, strict=True)]
            moved = self._stages(x, start, h, nodes, rows, slopes)
            change = np.max([row_norm(new - old) for new, old in zip(moved, stages, strict=True)], axis=0)
            stages = moved
            done = (change <= bound)[left]
            status[left[done]] = Status.SUCCESS
            left = left[~done]
        end = self._sum(x, start, h, b, b_weights, slopes)
        end[index_on(x.device, np.flatnonzero(status == Status.NOT_CONVERGED))] = math.nan
        spent = index_on(x.device, np.flatnonzero(status == Status.BUDGET))
        return end.index_copy(0, spent, x[spent]), status

    def _stages(
        self,
        x: Tensor,
        start: Real,
        h: Real,
        nodes: Sequence[Node],
        rows: Sequence[Sequence[float]],
        slopes: Sequence[Tensor],
    ) -> list[Tensor]:
        return [self._sum(x, start, h, node, row, slopes) for node, row in zip(nodes, rows, strict=True)]

    def _sum(
        self, x: Tensor, start: Real, h: Real, node: Node, weights: Sequence[float], slopes: Sequence[Tensor]
    ) -> Tensor:
        """``scale (x/start + h sum of w k)`` at ``node``."""
        scale = followed(self.line).scale(node)
        terms = ((scale * h * w, k) for w, k in zip(weights, slopes, strict=True))
        return combine((native(np.divide(scale, start)), x), *terms)


def _rows(node: Node, rows: np.ndarray) -> Node:
    """The node of the samples ``rows``; a shared node stays as it is."""
    return Node(*(value[rows] if isinstance(value, np.ndarray) else value for value in node))
