"""The exact inverse of a method with history: one iteration for the whole trajectory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.arguments import as_number, require_whole
from solvers.counting import affording
from solvers.exponential import DDIM
from solvers.implicit_inverse import Effort, column, require_digits
from solvers.krylov import largest
from solvers.lines import Data, Noise
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node
from solvers.real import native
from solvers.reversible import ReversibleSolver, meets_singular, require_steps
from solvers.solution import Status
from solvers.solver import Law, Past, Solver, Step
from solvers.sums import combine


@dataclass(frozen=True)
class TrajectoryInverse(ReversibleSolver):
    """The inverse of a whole multistep solve: find the states from which the method, with its own start, reaches x.

    The start determines the history, so no step can be undone before all those nearer the noise are known. The unknowns
    are the states ``x_1 .. x_N`` at all nodes. A sweep runs the method towards the data, each step from the current
    estimate, N steps and their calls, and then corrects the estimates from the data upwards:

        x_i <- x_i + P_i (x_{i-1} - landed_{i-1}),     P_i = min(alpha_i/alpha_{i-1}, sigma_i/sigma_{i-1})

    with ``x_0 = x`` (waveform relaxation: Lelarasmee, Ruehli & Sangiovanni-Vincentelli 1982). Each sample stops when
    the largest of its ``|x_{i-1} - landed_{i-1}|``, relative to the larger of 1 and the state's max-norm, is at most
    ``tolerance`` (None: 100 times the rounding of its dtype). The first estimate is DDIM's inversion. A sweep costs the
    memory and time of a trajectory.
    """

    base: Solver = field(default_factory=DDIM)
    tolerance: float | None = None
    max_iterations: int = 200

    def __post_init__(self) -> None:
        require_steps(self, self.base)
        if self.tolerance is not None and not as_number(self.tolerance) > 0:
            raise ValueError(f"TrajectoryInverse: tolerance={self.tolerance!r} must be positive, or None for round-off")
        require_whole("TrajectoryInverse: max_iterations", self.max_iterations, 1)

    @property
    def order(self) -> int:  # type: ignore[override]
        """The base method's order."""
        return self.base.order

    @property
    def own_start_order(self) -> int:
        """The base method's order from its own start."""
        return self.base.own_start_order

    @property
    def law(self) -> Law:  # type: ignore[override]
        """The base method's law."""
        return self.base.law

    @property
    def carries_on(self) -> bool:
        """Whether the base method carries on."""
        return self.base.carries_on

    @property
    def reads_past(self) -> bool:
        """Whether the base method reads the past."""
        return self.base.reads_past

    @property
    def one_step(self) -> bool:
        """Whether the base method is a one-step method."""
        return self.base.one_step

    def calls(self, n_steps: int) -> int:
        """The calls of the base method."""
        return self.base.calls(n_steps)

    def calls_over(self, ode: ODE, nodes: Sequence[Node]) -> int:
        """The calls of the base method."""
        return self.base.calls_over(ode, nodes)

    def uncalls(self, n_steps: int) -> int:
        """The base method's calls for each sweep allowed and one more, and those of DDIM's inversion."""
        return self.base.calls(n_steps) * (self.max_iterations + 1) + n_steps

    def uncalls_over(self, ode: ODE, nodes: Sequence[Node]) -> int:
        """The most evaluations: the base method's over ``nodes`` for each sweep, and those of DDIM's inversion."""
        return self.base.calls_over(ode, nodes[::-1]) * (self.max_iterations + 1) + len(nodes) - 1

    def reverses(self, a: Node, b: Node) -> bool:
        """Whether neither node is the data (sigma = 0) or pure noise (alpha below 1e-3)."""
        return not (meets_singular(Noise(), a, b) or meets_singular(Data(), a, b))

    def start(
        self,
        ode: ODE,
        nodes: Sequence[Node],
        x: Tensor,
        *,
        stream: NoiseStream | None = None,
        past: Past = (),
        state: Any = None,
    ) -> Any:
        """The base method's state; the record of an inverse is of no use to it."""
        return self.base.start(ode, nodes, x, past=past, state=None if isinstance(state, Effort) else state)

    def step(self, ode: Any, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """The base method's step."""
        return self.base.step(ode, a, b, x, state)

    def unstart(self, ode: ODE, nodes: Sequence[Node], x: Tensor, state: Any = None) -> None:
        """A trajectory is solved for as a whole: there is nothing to carry on.

        Raises:
            ValueError: the states are of half precision, and no tolerance is given.
        """
        require_digits(self, x)

    def unstep(self, ode: Any, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """The inverse of a solve of one step."""
        return next(iter(self.unsolve(ode, (a, b), x, state)))

    def unsolve(self, ode: Any, nodes: Sequence[Node], x: Tensor, state: Any) -> Iterator[Step]:
        """Solve for all states, then yield them."""
        if not all(self.reverses(a, b) for a, b in pairwise(nodes)):
            raise ValueError(f"times: {self} has no inverse at alpha = 0 or sigma = 0; end the grid before")
        way = [x]
        for a, b in pairwise(nodes):
            way.append(DDIM().step(ode, a, b, way[-1]).x)
        bound = 100 * torch.finfo(x.dtype).eps if self.tolerance is None else self.tolerance
        residual = torch.full((len(x),), float("inf"), dtype=torch.float64, device="cpu")
        iterations = torch.zeros(len(x), dtype=torch.int64, device="cpu")
        status = torch.full((len(x),), int(Status.NOT_CONVERGED), device="cpu")
        active = torch.arange(len(x), device="cpu")
        cost = self.base.calls_over(ode, nodes[::-1])
        for sweep in range(self.max_iterations + 1):
            active = torch.from_numpy(affording(ode, active.numpy(), cost, status.numpy()))
            if not len(active):
                break
            rows = active.to(x.device)
            some = [state[rows] for state in way]
            landed = self._descend(ode if len(rows) == len(x) else ode.rows(rows), nodes, some)
            residual[active] = self._residual(some, landed)
            go_on = (residual[active] > bound) & torch.isfinite(residual[active])
            active, keep = active[go_on], go_on.to(x.device)
            if not len(active) or sweep == self.max_iterations:
                break
            for i, (a, b) in enumerate(pairwise(nodes)):
                ratio = native(np.minimum(np.divide(b.alpha, a.alpha), np.divide(b.sigma, a.sigma)))
                below = way[i][active.to(x.device)]
                above = combine((1.0, some[i + 1][keep]), (ratio, below - landed[i][keep]))
                way[i + 1] = way[i + 1].index_copy(0, active.to(x.device), above)
            iterations[active] += 1
        converged = residual <= bound
        status[converged] = int(Status.SUCCESS)
        lost = torch.where(column(status == Status.BUDGET, x), x, float("nan"))
        for found in way[1:]:
            reached = torch.where(column(converged, x), found, lost)
            yield Step(reached, state=Effort(residual, iterations, status), status=status)

    def _descend(self, ode: Any, nodes: Sequence[Node], way: Sequence[Tensor]) -> list[Tensor]:
        """The states that the base method reaches at all nodes but the last, each step from the state in ``way``."""
        state = self.base.start(ode, nodes[::-1], way[-1])
        landed = []
        for (a, b), x in zip(pairwise(nodes[::-1]), way[:0:-1], strict=True):
            step = self.base.step(ode, a, b, x, state)
            state = step.state
            landed.append(step.x)
        return landed[::-1]

    def _residual(self, way: Sequence[Tensor], landed: Sequence[Tensor]) -> Tensor:
        """The largest residual of each sample."""
        each = [largest(x - y) / largest(x).clamp(min=1) for x, y in zip(way, landed, strict=False)]
        return torch.stack(each).amax(0)
