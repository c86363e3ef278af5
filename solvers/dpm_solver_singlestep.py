"""Single-step DPM-Solver on any grid: steps over several intervals, with the nodes between as stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from solvers.arguments import require_whole
from solvers.dpm_solver import EULER, DPMSolver2, DPMSolver3
from solvers.exponential_runge_kutta import RES2S, ExponentialTableau, exponential_stages, require_exponential
from solvers.lines import Data, Line, Noise, singular_log_snr
from solvers.multistep import CLOSE
from solvers.noise import NoiseStream
from solvers.ode import Node, PathODE
from solvers.plan_cache import kept_plan
from solvers.solver import Past, Solver, Step, require_path, require_run
from solvers.staged import Stage
from solvers.sums import Term, combine, single

MOST_INTERVALS = 3


class Run(NamedTuple):
    """The last stages of all steps, None for DDIM steps; the number of the next; and what is known of the group.

    ``start`` is the state at the first node of the group; ``slopes`` are those at its nodes so far, in order.
    """

    moves: tuple[Stage | None, ...]
    next: int
    start: Tensor | None = None
    slopes: tuple[Term, ...] = ()


@dataclass(frozen=True)
class DPMSolverSinglestep(Solver):
    """DPM-Solver-2 or 3 over groups of ``intervals``, with the nodes between as stages: one call per interval.

    From the first node of a group the next one is reached by DDIM, the one after by `DPMSolver2`, the third by
    `DPMSolver3`, each from that first node and with the ratios r1 and r2 given by the grid; a last group may be
    shorter. These are the single-step samplers of Lu et al. 2022 ("DPM-Solver"; on the data line "DPM-Solver++"),
    spread over a given grid as in diffusers. Its DPMSolverSinglestepScheduler uses the same orders, except with
    ``lower_order_final`` on a grid that ends above sigma = 0 with a complete group.

    Nodes inside a group are reached with a local error of h^2, so that the order there is 2. `DPMSolver3` is as
    accurate as with its own stages if these nodes lie at a third and two thirds of the group in log-SNR.

    Args:
        intervals: the number of intervals in a group, 1 to 3.
        line: `Noise` or `Data`.
        form: "midpoint", the papers' weights; "heun", those of diffusers' ``solver_type="heun"``, which are `RES2S` and
            ``DPMSolver3(form="taylor")``.
    """

    intervals: int = 3
    line: Line = Data()
    form: Literal["midpoint", "heun"] = "midpoint"

    def __post_init__(self) -> None:
        require_whole("DPMSolverSinglestep: intervals", self.intervals, 1, MOST_INTERVALS)
        require_exponential(self, self.line)
        if self.form not in ("midpoint", "heun"):
            raise ValueError(f'DPMSolverSinglestep: form={self.form!r} is unknown; use "midpoint" or "heun"')

    @property
    def order(self) -> int:  # type: ignore[override]
        """At most 2, because of the nodes inside a group, which DDIM reaches first."""
        return min(self.intervals, 2)

    @property
    def one_step(self) -> bool:
        """Whether a group is one interval."""
        return self.intervals == 1

    @property
    def reads_past(self) -> bool:
        """False: a group begins without history."""
        return False

    @property
    def carries_on(self) -> bool:
        """Whether a group is one interval: otherwise a solve may end within a group."""
        return self.intervals == 1

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """Both lines, groups and forms."""
        return [cls(), cls(2, Noise(), "heun"), cls(3, Noise())]

    def start(
        self,
        ode: Any,
        nodes: Sequence[Node],
        x: Tensor,
        *,
        stream: NoiseStream | None = None,
        past: Past = (),
        state: Run | None = None,
    ) -> Run:
        """Compute the coefficients of every step; a new grid begins a new group."""
        require_path(self, ode)
        require_run(self, state, Run)
        if any(isinstance(value, np.ndarray) for node in nodes for value in node):
            raise TypeError(f"nodes: {self} plans one grid for all samples; give each node one time")
        return Run(kept_plan(self, ode, tuple(nodes)), 0)

    def step(self, ode: PathODE, a: Node, b: Node, x: Tensor, state: Run | None = None) -> Step:
        """Predict at a; move from the first node of the group to b."""
        if state is None:
            state = self.start(ode, (a, b), x)
        move, prediction = state.moves[state.next], ode.predict(a, x)
        if move is None:
            return Step(prediction.mix(b.alpha, b.sigma), state=Run(state.moves, state.next + 1))
        slopes = (*state.slopes, single(self.line.terms(a, prediction)))
        # The network's output would be one more state beside the slopes that are kept.
        del prediction
        start = x if state.start is None else state.start
        end = combine((move.state, start), *((weight * slopes[i][0], slopes[i][1]) for i, weight in move.slopes))
        ended = len(slopes) == self.intervals
        following = Run(state.moves, state.next + 1) if ended else Run(state.moves, state.next + 1, start, slopes)
        return Step(end, state=following)

    def plan(self, ode: PathODE, nodes: Sequence[Node]) -> tuple[Stage | None, ...]:
        """The last stage of every step between ``nodes``, from the first node of its group by the group's slopes."""
        moves: list[Stage | None] = []
        group: list[Node] = []
        for a, b in pairwise(nodes):
            if np.any(singular_log_snr(a, b)):
                moves.append(None)
                group = []
                continue
            group = [*group, a] if len(group) < self.intervals else [a]
            moves.append(self._from_first(ode, group, b))
        return tuple(moves)

    def _from_first(self, ode: PathODE, group: Sequence[Node], b: Node) -> Stage:
        """The last stage of the step from the first node of ``group`` to b, by the slopes at its nodes.

        Of two nodes that nearly coincide, only the slope at the older one is read.
        """
        levels = [float(node.log_snr) for node in (*group, b)]
        read = [0]
        for i in range(1, len(group)):
            if abs(levels[i] - levels[read[-1]]) >= CLOSE * abs(levels[-1] - levels[0]):
                read.append(i)
        ratios = [(levels[i] - levels[0]) / (levels[-1] - levels[0]) for i in read[1:]]
        last = exponential_stages(self.line, self._tableau(ratios), ode, group[0], b)[-1]
        return last._replace(slopes=tuple((read[i], weight) for i, weight in last.slopes))

    def _tableau(self, ratios: Sequence[float]) -> ExponentialTableau:
        """The tableau of a step with stages at those fractions of it."""
        if not ratios:
            return EULER
        if len(ratios) == 1:
            return (DPMSolver2(r1=ratios[0]) if self.form == "midpoint" else RES2S(c2=ratios[0])).tableau
        return DPMSolver3(r1=ratios[0], r2=ratios[1], form="published" if self.form == "midpoint" else "taylor").tableau
