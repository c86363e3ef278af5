"""The contract of methods that can be undone: a state with a companion, and the way back through both."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers.lines import Line
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node
from solvers.real import Real
from solvers.solver import Law, Past, Solver, Step
from solvers.sums import combine


@dataclass(frozen=True)
class ReversibleSolver(Solver):
    """A method with an exact inverse: `unstep` undoes `step`, for any field.

    The state that a solve ends with, `Solution.state`, belongs to its end: `Inverse(solver)` started from it goes
    back the way that ``solver`` came, and the other way round. Started afresh, it returns to the accuracy of the
    method, and no closer.
    """

    @property
    def one_step(self) -> bool:
        """Not: a step reads the companion."""
        return False

    @abstractmethod
    def unstep(self, ode: Any, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """Leave ``a`` for ``b`` and undo the step from ``b`` to ``a``."""

    def unstart(self, ode: ODE, nodes: Sequence[Node], x: Tensor, state: Any = None) -> Any:
        """The state of a run of `unstep` over ``nodes``."""
        return self.start(ode, nodes, x, state=state)

    def unsolve(self, ode: ODE, nodes: Sequence[Node], x: Tensor, state: Any) -> Iterator[Step]:
        """Yield one `Step` for every node after the first, each the inverse of a step."""
        for a, b in pairwise(nodes):
            step = self.unstep(ode, a, b, x, state)
            x, state = step.x, step.state
            yield step

    def uncalls(self, n_steps: int) -> int:
        """Evaluations that ``n_steps`` inverse steps cost at most."""
        return self.calls(n_steps)

    def reverses(self, a: Node, b: Node) -> bool:
        """Whether a step between these nodes has an inverse, whatever the field."""
        return True


@dataclass(frozen=True)
class Inverse(Solver):
    """The inverse of a reversible method, as a method of its own: its step is the other's `unstep`.

    Integrating backwards by an algebraic inverse is what Zhuang et al. 2021 ("MALI") do to neural ODEs.

    ``solve(ode, Inverse(solver), x, times)`` finds the state from which ``solver`` would come to x over the flipped
    times. As an approximation of the ODE it has the order of ``solver``. The exception is EDICT: averaging contracts
    the difference of its pair on the way there and amplifies it by ``p^-2`` in every step of the way back.
    """

    solver: ReversibleSolver

    def __post_init__(self) -> None:
        if not isinstance(self.solver, ReversibleSolver):
            raise TypeError(
                f"Inverse: solver={self.solver!r} has no exact inverse; use a reversible method such as "
                "solvers.AsynchronousLeapfrog(), or solvers.FixedPoint(solver), which solves for it"
            )

    @property
    def order(self) -> int:  # type: ignore[override]
        """That of the method."""
        return self.solver.order

    @property
    def law(self) -> Law:  # type: ignore[override]
        """That of the method."""
        return self.solver.law

    @property
    def own_start_order(self) -> int:
        """That of the method."""
        return self.solver.own_start_order

    @property
    def one_step(self) -> bool:
        """That of the method."""
        return self.solver.one_step

    @property
    def carries_on(self) -> bool:
        """That of the method."""
        return self.solver.carries_on

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """One of each kind: an inverse that is the method itself, an algebraic one, and one that is solved for."""
        from solvers.coupled import AsynchronousLeapfrog, Reversible
        from solvers.implicit_inverse import FixedPoint
        from solvers.runge_kutta import Heun

        return [cls(AsynchronousLeapfrog()), cls(Reversible(Heun())), cls(FixedPoint())]

    def calls(self, n_steps: int) -> int:
        """Those of the inverse steps."""
        return self.solver.uncalls(n_steps)

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
        """The method's `unstart`."""
        return self.solver.unstart(ode, nodes, x, state)

    def step(self, ode: Any, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """The method's `unstep`."""
        return self.solver.unstep(ode, a, b, x, state)

    def solve(self, ode: ODE, nodes: Sequence[Node], x: Tensor, state: Any) -> Iterator[Step]:
        """The method's `unsolve`."""
        return self.solver.unsolve(ode, nodes, x, state)


class Companion(NamedTuple):
    """What a pair method carries beside its state, in float64 and in the method's own coordinates z.

    ``z`` are the digits of the state itself: more than its dtype may hold. ``other`` is the second state, at the run's
    node or, for two-step methods, at ``node``; ``slope`` a slope.
    """

    z: Tensor
    other: Tensor | None = None
    slope: Tensor | None = None
    node: Node | None = None


def starts(solver: ReversibleSolver, nodes: Sequence[Node]) -> int:
    """How often a solve over ``nodes`` makes a companion: at its first step, and after steps without an inverse."""
    reverses = [solver.reverses(a, b) for a, b in pairwise(nodes)]
    return sum(here and not before for before, here in pairwise([False, *reverses]))


class Lattice:
    """The numbers that the states of a pair method are made of: multiples of ``spacing``, a power of two, in float64.

    Sums of such numbers are exact, so what one step adds the step back subtracts, to the last bit, and the network is
    asked the same questions. Rounding alone would not do: a change in the last digit of a float64 state crosses, once
    in a while, a rounding boundary of a float32 network, and a difference of 1e-7 in its answer grows on the way. A
    factor r >= 1 is undone as well, by `grow` and `shrink`: the way to the noise and back is exact where the way there
    expands, as it does in every method here. Levesque & Verlet 1993, "Molecular dynamics and time
    reversibility", made the leapfrog method exact in this way.

    Exactness ends where a state exceeds ``2^53 spacing``, ordinary float64 rounding takes over there.
    """

    def __init__(self, spacing: float) -> None:
        self.spacing = spacing

    def snap(self, z: Tensor) -> Tensor:
        """The nearest multiples of the spacing, in float64; to a derivative, the number itself."""
        z = z.double()
        fixed = z.detach()
        # Where z is finite the difference is exact, and so is the sum.
        return z + torch.round(fixed / self.spacing).mul_(self.spacing).sub_(fixed)

    def grow(self, z: Tensor, r: Real) -> Tensor:
        """``r z`` for r >= 1, on the lattice: ``n + round((r - 1) n)`` for z = n times the spacing."""
        return z + self.snap(combine((r - 1, z)))

    def shrink(self, z: Tensor, r: Real) -> Tensor:
        """``z / r`` for r >= 1, which undoes `grow`: ``m - round((r - 1)/r m)``.

        With ``(r - 1) n = k + e``, k whole and |e| <= 1/2, the number rounded here is ``k + e/r``. A product
        ``r n`` rounded as a whole would be undone just so, were it not for the digits that a large n leaves for it.
        """
        # 1 - 1/r would have lost the digits that r - 1 has.
        return z - self.snap(combine(((r - 1) / r, z)))

    def digits(self, scale: Real, x: Tensor, carried: Tensor | None) -> Tensor:
        """The z of ``x = scale z``: what was carried on, wherever it rounds to x, and x itself elsewhere."""
        fresh = self.snap(combine((1 / scale, x.double())))
        if carried is None:
            return fresh
        return torch.where(combine((scale, carried)).to(x.dtype) == x, carried, fresh)


FINE = Lattice(2.0**-44)
"""For x itself: exact up to 512, accurate to 6e-14."""
FINEST = Lattice(2.0**-49)
"""For x in methods of high order: exact up to 16, accurate to 2e-15."""
WIDE = Lattice(2.0**-38)
"""For the lines, whose x/alpha or x0 may grow large at one end: exact up to 32,768, accurate to 4e-12."""


def meets_singular(line: Line, *nodes: Node) -> bool:
    """Whether any of ``nodes`` is singular on ``line``, for any sample."""
    return any(bool(np.any(line.singular(node))) for node in nodes)
