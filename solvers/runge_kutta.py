"""Explicit Runge-Kutta methods: tableaux as data, one step function."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers.exponential import DDIM
from solvers.lines import Data, Line, Noise, Rotation, singular_step, singular_steps
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node, PathODE, combine
from solvers.real import Real, native
from solvers.solver import Past, Solver, Step, require_path


class Tableau(NamedTuple):
    """Butcher's array of an explicit method: stage times ``c``, rows ``a`` below the diagonal, weights ``b``.

    Only the stages that the weights read are listed: without an error estimate the last stage of a
    first-same-as-last pair is never evaluated.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


class Stage(NamedTuple):
    """What a stage needs of the grid: its node, and the coefficients of the state and of those slopes that it reads."""

    node: Node
    state: Real
    slopes: tuple[tuple[int, Real], ...]


class Plan(NamedTuple):
    """The stages of every step of a grid, and the number of the step that comes next."""

    steps: tuple[tuple[Stage, ...] | None, ...]
    next: int


@dataclass(frozen=True)
class RungeKutta(Solver):
    """An explicit Runge-Kutta method, on x(t) as written (``line=None``) or along a line.

    On a line (z = x/scale, dz/dq = slope), with h = q_b - q_a and stage nodes at ``q_a + c_i h``:

        x_i = (scale_i/scale_a) x_a + scale_i h sum_j a_ij k_j,     k_i = slope(x_i)
        x_b = (scale_b/scale_a) x_a + scale_b h sum_i b_i k_i

    On x(t) the same holds with scale = 1, q = t and k = dx/dt. A step that leaves or reaches a singular node of its
    line (for x(t) of a path: sigma = 0) is a DDIM step, which is regular everywhere.
    """

    tableau: ClassVar[Tableau]
    line: Line | None = None

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """x(t) and the three lines."""
        return [cls(line) for line in (None, Noise(), Data(), Rotation(), Rotation(0.5))]

    def calls(self, n_steps: int) -> int:
        """The number of stages, for each step."""
        return n_steps * len(self.tableau.c)

    def calls_over(self, ode: ODE, nodes: Sequence[Node]) -> int:
        """The number of stages, for each step that is no DDIM step."""
        short = singular_steps(self.line, ode, nodes)
        return self.calls(len(nodes) - 1 - short) + short

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
        return Plan(tuple(self._plan(ode, a, b) for a, b in pairwise(nodes)), 0)

    def step(self, ode: Any, a: Node, b: Node, x: Tensor, state: Plan | None = None) -> Step:
        """Evaluate the stages, then combine their slopes."""
        stages = state.steps[state.next] if state is not None else self._plan(ode, a, b)
        following = state._replace(next=state.next + 1) if state is not None else None
        if stages is None:
            return Step(self._step_at_singular(ode, a, b, x), state=following)
        slopes: list[Tensor] = []
        reached = x
        for stage, after in zip(stages, stages[1:], strict=False):
            slopes.append(self._slope(ode, stage.node, reached))
            reached = combine((after.state, x), *((h, slopes[i]) for i, h in after.slopes))
        return Step(reached, state=following)

    def _slope(self, ode: Any, node: Node, x: Tensor) -> Tensor:
        return ode(node.t, x) if self.line is None else self.line.slope(node, ode.predict(node, x))

    def _plan(self, ode: ODE, a: Node, b: Node) -> tuple[Stage, ...] | None:
        """The stages from a to b, the end b as the last of them; None where the step meets a singular node."""
        if np.any(singular_step(self.line, ode, a, b)):
            return None
        line, tableau = self.line, self.tableau
        q_a, q_b = (a.t, b.t) if line is None else (line.q(a), line.q(b))
        stages = []
        for c, row in zip((*tableau.c, 1.0), (*tableau.a, tableau.b), strict=True):
            # The ends are the nodes themselves: a round trip through q would move them by round-off.
            if c in (0.0, 1.0):
                node = b if c else a
            else:
                q = q_a + c * (q_b - q_a)
                node = ode.node(q) if line is None else line.node(ode, q)  # type: ignore[arg-type]
            scale, ratio = (1.0, 1.0) if line is None else (line.scale(node), line.scale(node) / line.scale(a))
            h = scale * (q_b - q_a)
            stages.append(Stage(node, ratio, tuple((i, native(np.multiply(h, w))) for i, w in enumerate(row) if w)))
        return tuple(stages)

    def _step_at_singular(self, ode: PathODE, a: Node, b: Node, x: Tensor) -> Tensor:
        """DDIM for the samples at a singular node, the method itself for the others."""
        singular = singular_step(self.line, ode, a, b)
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


@dataclass(frozen=True)
class Euler(RungeKutta):
    """Order 1. On the noise line it is DDIM; on x(t) of a rectified flow too."""

    order: ClassVar[int] = 1
    tableau: ClassVar[Tableau] = Tableau((0.0,), ((),), (1.0,))


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """The explicit midpoint rule, order 2 (Runge 1895)."""

    order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = Tableau((0.0, 1 / 2), ((), (1 / 2,)), (0.0, 1.0))


@dataclass(frozen=True)
class Heun(RungeKutta):
    """The explicit trapezoidal rule, order 2; on the noise line EDM's sampler (Karras et al. 2022, algorithm 1)."""

    order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = Tableau((0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2))


@dataclass(frozen=True)
class Ralston(RungeKutta):
    """Order 2 with the least bound on the truncation error (Ralston 1962)."""

    order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = Tableau((0.0, 2 / 3), ((), (2 / 3,)), (1 / 4, 3 / 4))


@dataclass(frozen=True)
class SSPRK3(RungeKutta):
    """The strong-stability-preserving method of order 3 (Shu & Osher 1988)."""

    order: ClassVar[int] = 3
    tableau: ClassVar[Tableau] = Tableau((0.0, 1.0, 1 / 2), ((), (1.0,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3))


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical method of order 4 (Kutta 1901)."""

    order: ClassVar[int] = 4
    tableau: ClassVar[Tableau] = Tableau(
        (0.0, 1 / 2, 1 / 2, 1.0), ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    )


@dataclass(frozen=True)
class Bosh3(RungeKutta):
    """The order-3 method of Bogacki & Shampine (1989), fixed-grid."""

    order: ClassVar[int] = 3
    tableau: ClassVar[Tableau] = Tableau((0.0, 1 / 2, 3 / 4), ((), (1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9))


@dataclass(frozen=True)
class Dopri5(RungeKutta):
    """The order-5 method of Dormand & Prince (1980), fixed-grid."""

    order: ClassVar[int] = 5
    tableau: ClassVar[Tableau] = Tableau(
        (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    )


@dataclass(frozen=True)
class Tsit5(RungeKutta):
    """The order-5 method of Tsitouras (2011), "Runge-Kutta pairs of order 5(4)", table 1, fixed-grid."""

    order: ClassVar[int] = 5
    tableau: ClassVar[Tableau] = Tableau(
        (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0),
        (
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        ),
        (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
    )
