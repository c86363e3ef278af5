"""The contract of methods that can be undone: a state with a companion, and the inverse step through both."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from solvers.counting import BudgetSpent
from solvers.lattice import Lattice
from solvers.lines import Line
from solvers.ode import ODE, Node
from solvers.real import Real
from solvers.solution import Status
from solvers.solver import Law, Solver, Step, require_run


@dataclass(frozen=True)
class ReversibleSolver(Solver):
    """A method with an exact inverse: `unstep` undoes `step`, for any field.

    `Solution.state` belongs to the end of the solve: started from it, `Inverse(solver)` retraces ``solver``'s steps
    exactly, and vice versa. Without it the inverse is only as accurate as the method.
    """

    @property
    def one_step(self) -> bool:
        """False: a step reads the companion."""
        return False

    @property
    def reads_past(self) -> bool:
        """False: a companion is made from the state itself."""
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
        """The most evaluations that ``n_steps`` inverse steps cost."""
        return self.calls(n_steps)

    def uncalls_over(self, ode: ODE, nodes: Sequence[Node]) -> int:
        """The most evaluations that the inverse steps over ``nodes`` cost."""
        return self.calls_over(ode, nodes)

    def reverses(self, a: Node, b: Node) -> bool:
        """Whether a step between these nodes has an inverse, whatever the field."""
        return True


class Companion(NamedTuple):
    """What a pair method carries besides its state, in float64 and in the method's own coordinates z.

    ``z`` is the state itself, with more digits than its dtype may hold. ``other`` is the second state, at the run's
    node or, for two-step methods, at ``node``; ``slope`` is a slope. ``rest`` is what rounding to the lattice removed
    from the run's first state, at the time ``origin``; it is added again when the run returns there. ``solver`` is the
    method that made it, and the only one that can carry it on.
    """

    z: Tensor
    other: Tensor | None = None
    slope: Tensor | None = None
    node: Node | None = None
    rest: Tensor | None = None
    origin: Real | None = None
    solver: Solver | None = None

    def moved(self, lattice: Lattice, scale: Real, b: Node, like: Tensor, **companion: Any) -> Step:
        """The step of this run that ends at ``b`` in the state whose digits, and companions, are given."""
        following = Companion(rest=self.rest, origin=self.origin, solver=self.solver, **companion)
        x = lattice.state(scale, following.z, like)
        if self.rest is not None and self.origin is not None and np.array_equal(self.origin, b.t):
            x = x + self.rest
        return Step(x, state=following)


def companion_at(
    solver: ReversibleSolver, lattice: Lattice, scale: Real, a: Node, x: Tensor, state: Companion | None
) -> Companion:
    """The companion of the state ``x = scale z`` at a: the run's own, or that of a run that begins here."""
    z = lattice.digits(scale, x, None if state is None else state.z)
    carried = Companion(z, solver=solver) if state is None else state._replace(z=z)
    if carried.origin is not None and not np.array_equal(carried.origin, a.t):
        return carried
    return carried._replace(rest=x - lattice.state(scale, z, x), origin=a.t)


def require_companion(solver: ReversibleSolver, state: object) -> None:
    """Raise unless ``state`` is None, or a companion that ``solver`` made."""
    require_run(solver, state, Companion, "companion")
    if isinstance(state, Companion) and state.solver not in (None, solver):
        raise ValueError(f"state: it is the companion of {state.solver}; carry it on with that method, not {solver}")


def starts(solver: ReversibleSolver, nodes: Sequence[Node]) -> int:
    """How often a solve over ``nodes`` makes a companion: in its first step, and after steps without an inverse."""
    reverses = [solver.reverses(a, b) for a, b in pairwise(nodes)]
    return sum(here and not before for before, here in pairwise([False, *reverses]))


def meets_singular(line: Line, *nodes: Node) -> bool:
    """Whether any of ``nodes`` is singular on ``line``, for any sample."""
    return any(bool(np.any(line.singular(node))) for node in nodes)


def fresh_step(solver: Solver, ode: Any, a: Node, b: Node, x: Tensor) -> Tensor:
    """One step of a method from its own start.

    Raises:
        BudgetSpent: a sample could not afford it.
    """
    step = solver.step(ode, a, b, x, solver.start(ode, (a, b), x))
    if step.status is not None and bool((step.status == Status.BUDGET).any()):
        raise BudgetSpent
    return step.x


def law_of_steps(base: Solver) -> Law:
    """The law of a method whose steps all start afresh: without history, multistep methods lose their order."""
    return base.law if base.one_step else "bounded"


def require_steps(outer: Solver, base: Solver) -> None:
    """Raise unless ``base`` is deterministic and steps on the grid, without its own `solve`."""
    name = type(outer).__name__
    if not isinstance(base, Solver):
        raise TypeError(f"{name}: base={base!r} must be a solvers.Solver; pass an instance such as solvers.DDIM()")
    if not base.deterministic:
        raise ValueError(f"{name}: base={base} is stochastic; use a deterministic one, such as DDIM(eta=0)")
    if type(base).solve is not Solver.solve:
        raise ValueError(f"{name}: base={base} chooses its own steps; use a one-step method, such as DDIM() or RK4()")
