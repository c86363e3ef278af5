"""What methods with a `solve` of their own share: tolerances, a line, and a step that solves one interval."""

from typing import Any

from torch import Tensor

from solvers.arguments import require_positive
from solvers.lines import Line, require_line
from solvers.ode import Node
from solvers.solver import Solver, Step


class OwnSteps(Solver):
    """A method that overrides `solve`, with ``rtol`` and ``atol`` (None is ``rtol``), on a line or on x(t)."""

    rtol: float
    atol: float | None
    line: Line | None

    def require_settings(self, example: str) -> None:
        """Raise unless the tolerances, for which the message gives an ``example``, and the line can be used."""
        for name, value in (("rtol", self.rtol), ("atol", self.tolerances[1])):
            require_positive(f"{type(self).__name__}: {name}", value, example)
        if self.line is not None:
            require_line(self, self.line)

    @property
    def tolerances(self) -> tuple[float, float]:
        """``rtol`` and ``atol``."""
        return self.rtol, self.rtol if self.atol is None else self.atol

    @property
    def way(self) -> Line | None:
        """The line that is followed."""
        return self.line

    @property
    def reads_past(self) -> bool:
        """False: a solve makes its own history."""
        return False

    @property
    def carries_on(self) -> bool:
        """False: step sizes, history and digits beyond the state's dtype end with the solve."""
        return False

    def calls(self, n_steps: int) -> int:
        """Unknown before the solve.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{self} chooses its own steps, so the number of calls is unknown before the solve; "
            "instead of nfe= or steps=, request an accuracy: rtol=1e-3"
        )

    def step(self, ode: Any, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """A solve from a to b."""
        (step,) = self.solve(ode, (a, b), x, state)
        return step
