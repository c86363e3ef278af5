"""What a solve returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from torch import Tensor

from solvers.dense import Dense
from solvers.ode import Node


class Status(IntEnum):
    """How the solve of one sample ended; see `advice` for what to change."""

    SUCCESS = 0
    NON_FINITE = 1
    BUDGET = 2
    STEP_UNDERFLOW = 3
    NOT_CONVERGED = 4
    FLOOR = 5

    @property
    def advice(self) -> str:
        """One sentence for the person who meets this status."""
        return {
            Status.SUCCESS: "the end of the grid was reached",
            Status.NON_FINITE: (
                "the state became infinite or NaN; check what the network returns there, use more steps, or a line "
                "that is regular at both ends (solvers.Rotation)"
            ),
            Status.BUDGET: (
                "max_nfe was spent before the end of the grid; raise max_nfe (or an adaptive solver's max_steps), "
                "loosen rtol, or use fewer steps"
            ),
            Status.STEP_UNDERFLOW: (
                "no step above round-off met the tolerance; loosen rtol and atol (a float32 network cannot be followed "
                "much below 1e-6), or look for a jump or a pole of the field"
            ),
            Status.NOT_CONVERGED: (
                "the equations of an implicit step were not solved to its tolerance; use more steps (shorter ones "
                "converge faster), another line, more iterations, solvers.NewtonKrylov for an inverse, or a tolerance "
                "above the network's rounding (1e-6 for float32); guidance may leave no solution"
            ),
            Status.FLOOR: (
                "the end was reached, but the extrapolation over the last interval is less accurate than rtol; raise "
                "rtol to what the warning names, or, if the field is defined there, use closing=None (for an odediff "
                "model, declare continuous=True)"
            ),
        }[self]


@dataclass(frozen=True)
class Stats:
    """What a solve cost.

    ``evaluations`` counts the field's evaluations for each sample, int64 ``(B,)``. ``nfe`` is the largest of them: the
    number of calls when samples share every call, and no more than that when they are solved one by one.
    ``network_evaluations`` counts passes through the network, twice as many under guidance; ``steps`` counts the grid's
    completed steps. Methods that follow a tolerance count their own, ``accepted`` and ``rejected``, int64 ``(B,)``.
    """

    nfe: int
    network_evaluations: int
    evaluations: Tensor
    steps: int
    accepted: Tensor | None = None
    rejected: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Solution:
    """The end state ``x`` of a solve, and how it was reached.

    ``status`` is int64 ``(B,)`` with the values of `Status`; ``nodes`` is the grid; ``trajectory``, if requested, holds
    the states at all nodes that were reached, ``(N + 1, B, ...)``, and ``dense`` the steps between them, for
    `__call__`; ``state`` is the solver's, for `solve(..., state=)`.
    """

    x: Tensor
    status: Tensor
    stats: Stats
    nodes: Sequence[Node]
    state: Any = None
    trajectory: Tensor | None = None
    dense: Dense | None = None
    node: Callable[[float], Node] | None = None

    def __call__(self, t: float) -> Tensor:
        """The states at a time between the nodes, by the method's own interpolation.

        Raises:
            ValueError: the method has no steps of its own, they were not kept (``trajectory=True`` keeps them), or a
                sample made no step over ``t``.
        """
        if self.dense is None or self.node is None or not any(self.dense.pieces):
            raise ValueError(
                "solution(t) needs the steps of solvers.AdaptiveAdams or solvers.Adaptive, on a line that is regular "
                "in between; keep them with solve(..., trajectory=True)"
            )
        return self.dense(self.node(float(t)), self.x.dtype)

    @property
    def success(self) -> bool:
        """Whether every sample reached the end."""
        return bool(((self.status == Status.SUCCESS) | (self.status == Status.FLOOR)).all())


class SolveError(RuntimeError):
    """Raised after a solve in which samples failed; `solution` holds what was reached."""

    def __init__(self, solution: Solution) -> None:
        self.solution = solution
        counts = [(status, int((solution.status == status).sum())) for status in Status if status is not Status.SUCCESS]
        failures = "; ".join(
            f"{count} of {len(solution.status)} samples {status.name}: {status.advice}"
            for status, count in counts
            if count
        )
        super().__init__(f"{failures} (throw=False returns the partial solution)")

    def __reduce__(self) -> tuple[type, tuple[Solution]]:
        """Pickle by the solution, so that the error can be passed between processes."""
        return type(self), (self.solution,)
