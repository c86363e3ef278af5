"""One tolerance instead of a grid: what ``rtol=`` means in sampling and inversion."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from odediff.defaults import AutoClosing
from odediff.model import Model
from solvers import AdaptiveAdams, Solver
from solvers.solve import Closing


def follows_tolerance(
    solver: Solver | None, rtol: float | None, steps: int | None, nfe: int | None, grid: object
) -> bool:
    """Whether the arguments of `odediff.sample` describe a solve to a tolerance.

    Raises:
        ValueError: ``rtol`` is given beside a number of steps or calls.
    """
    if rtol is not None:
        for name, value in (("steps", steps), ("nfe", nfe)):
            if value is not None:
                raise ValueError(f"rtol={rtol}, {name}={value}: give one of them, they exclude each other")
        return True
    adaptive = isinstance(solver, Solver) and solver.law == "tolerance"
    return adaptive and steps is None and nfe is None and not isinstance(grid, Tensor)


def at_tolerance(solver: Solver | None, rtol: float | None) -> Solver:
    """``solver`` at ``rtol``, `AdaptiveAdams` unless one is given.

    Raises:
        ValueError: the solver steps on a grid and follows no tolerance.
    """
    if solver is None:
        return AdaptiveAdams() if rtol is None else AdaptiveAdams(rtol=rtol)
    if not isinstance(solver, Solver):
        raise TypeError(f"solver={solver!r} is no solvers.Solver; pass an instance such as solvers.AdaptiveAdams()")
    if rtol is None:
        return solver
    if solver.law != "tolerance":
        raise ValueError(
            f"rtol={rtol}: {solver} steps on a grid and follows no tolerance; use solvers.AdaptiveAdams "
            "(solver=adams) or another adaptive one, or give steps instead"
        )
    return replace(solver, rtol=rtol)  # type: ignore[call-arg]


def tolerance_span(model: Model, solver: Solver, closing: AutoClosing) -> tuple[Tensor, Closing]:
    """The times of a solve to a tolerance, and how it closes.

    A model that knows all times down to 0 is followed to the end; a table as far as its first entry, from where a
    method that can extrapolates and the others denoise.
    """
    path = model.path
    if closing == "auto":
        whole = model.first_defined == 0 and solver.extrapolates
        closing = None if whole else "extrapolate" if solver.extrapolates else "denoise"
    times = (path.start, 0.0) if closing is None else (path.start, path.end, 0.0)
    return torch.tensor(times, dtype=torch.float64), closing
