"""The inverse of a reversible method, as a method of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from solvers.coupled import AsynchronousLeapfrog, Reversible
from solvers.implicit_inverse import FixedPoint
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node
from solvers.reversible import ReversibleSolver
from solvers.runge_kutta import Heun
from solvers.solver import Law, Past, Solver, Step


@dataclass(frozen=True)
class Inverse(Solver):
    """The inverse of a reversible method, as a method of its own: its step is the other's `unstep`.

    Zhuang et al. 2021 ("MALI") integrate neural ODEs backwards by an algebraic inverse in the same way.

    ``solve(ode, Inverse(solver), x, times)`` finds the state from which ``solver`` would reach x over the flipped
    times. As an approximation of the ODE it has the order of ``solver``. The exception is EDICT: its averaging
    contracts the difference of its pair, and every inverse step amplifies it by ``p^-2``.
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
        """The method's order."""
        return self.solver.order

    @property
    def law(self) -> Law:  # type: ignore[override]
        """The method's law."""
        return self.solver.law

    @property
    def own_start_order(self) -> int:
        """The method's order from its own start."""
        return self.solver.own_start_order

    @property
    def reads_past(self) -> bool:
        """False: a method is undone from a state of its own."""
        return False

    @property
    def one_step(self) -> bool:
        """Whether the method is a one-step method whose steps are undone one by one."""
        return self.solver.one_step and self._stepwise

    @property
    def carries_on(self) -> bool:
        """Whether the method carries on, and its steps are undone one by one."""
        return self.solver.carries_on and self._stepwise

    @property
    def _stepwise(self) -> bool:
        return type(self.solver).unsolve is ReversibleSolver.unsolve

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """One of each kind: an inverse that is the method itself, an algebraic one, and one that is solved for."""
        return [cls(AsynchronousLeapfrog()), cls(Reversible(Heun())), cls(FixedPoint())]

    def calls(self, n_steps: int) -> int:
        """The calls of the inverse steps."""
        return self.solver.uncalls(n_steps)

    def calls_over(self, ode: ODE, nodes: Sequence[Node]) -> int:
        """The most evaluations of the inverse steps over ``nodes``."""
        return self.solver.uncalls_over(ode, nodes)

    @property
    def differentiable(self) -> bool:
        """Whether the method is differentiable."""
        return self.solver.differentiable

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
