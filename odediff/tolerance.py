"""Solving to a tolerance instead of on a grid: the meaning of ``rtol=`` in sampling and inversion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from odediff import grid as grids
from odediff.defaults import AutoClosing
from odediff.model import Model
from odediff.problem import ProbabilityFlow
from solvers import AdaptiveAdams, Solver
from solvers.arguments import require_positive
from solvers.backends import Backend
from solvers.lines import singular_step
from solvers.solve import Closing
from solvers.tolerance import Tolerance


def require_one_budget(steps: int | None, nfe: int | None, rtol: float | None = None) -> None:
    """Raise `ValueError` if more than one of the arguments that set the effort of a solve is given."""
    given = [f"{k}={v}" for k, v in (("rtol", rtol), ("steps", steps), ("nfe", nfe)) if v is not None]
    if len(given) > 1:
        raise ValueError(f"{', '.join(given)}: these exclude each other; give one of them")


def follows_tolerance(
    solver: Solver | None, rtol: float | None, steps: int | None, nfe: int | None, grid: object
) -> bool:
    """Whether the arguments of `odediff.sample` describe a solve to a tolerance.

    Raises:
        ValueError: more than one of ``rtol``, ``steps`` and ``nfe`` is given, or a grid function is given although the
            solver chooses its own steps.
    """
    require_one_budget(steps, nfe, rtol)
    chosen = isinstance(solver, Solver) and solver.law == "tolerance" and steps is None and nfe is None
    if rtol is None and (not chosen or isinstance(grid, Tensor)):
        return False
    if grid is not None and not isinstance(grid, Tensor):
        raise ValueError(
            "grid: a solve to a tolerance chooses its own steps; leave the grid out, or pass times as a tensor to "
            "visit them, or give steps instead of rtol"
        )
    return True


def at_tolerance(solver: Solver | None, rtol: float | None) -> Solver:
    """``solver`` (default: `AdaptiveAdams`) with the tolerance ``rtol``, or with its own tolerance if that is None.

    Raises:
        TypeError: ``solver`` is not a `solvers.Solver`.
        ValueError: ``rtol`` is not positive and finite, or the solver steps on a grid.
    """
    if rtol is not None:
        require_positive("rtol", rtol, "1e-2")
    if solver is None:
        solver = AdaptiveAdams()
    if not isinstance(solver, Solver):
        raise TypeError(f"solver={solver!r} is not a solvers.Solver; pass an instance such as solvers.AdaptiveAdams()")
    if rtol is None:
        return solver
    if solver.law != "tolerance":
        raise ValueError(
            f"rtol={rtol}: {solver} steps on a grid, not to a tolerance; use solvers.AdaptiveAdams (solver=adams) or "
            "another adaptive solver, or give steps instead"
        )
    return replace(solver, rtol=rtol)  # type: ignore[call-arg]


def tolerance_span(model: Model, solver: Solver, closing: AutoClosing, grid: object = None) -> tuple[Tensor, Closing]:
    """The times of a solve to a tolerance, those of ``grid`` if it is a tensor, and its closing rule.

    With the closing "auto", a model declared continuous is followed down to 0 if the method reaches it; any other is
    followed to `Schedule.end`, from where the method extrapolates if it can, and otherwise denoises. A prediction of x0
    carries no information at the data itself, whatever is declared. If a grid's last step to the data is longer than a
    closing rule is meant for, `Schedule.end` is inserted.
    """
    path = model.path
    if model.integer_time and isinstance(solver, Tolerance | Backend):
        raise ValueError(
            f"integer_time=True: {solver} chooses its own steps, which lie between the integer times that the network "
            "takes; give steps or nfe and a solver that follows a grid, and leave rtol out"
        )
    if closing == "auto":
        whole = model.continuous and model.prediction != "x0" and _reaches_data(model, solver)
        closing = None if whole else "extrapolate" if solver.extrapolates else "denoise"
    if isinstance(grid, Tensor):
        times = grids.custom(path, grid).tolist()
        if closing is not None and times[-1] == 0 and times[-2] > path.end:
            times.insert(-1, path.end)
    else:
        times = [path.start, 0.0] if closing is None else [path.start, path.end, 0.0]
    require_regular(model, solver, times if closing is None or times[-1] > 0 else times[:-1])
    return torch.tensor(times, dtype=torch.float64, device="cpu"), closing


def _reaches_data(model: Model, solver: Solver) -> bool:
    """Whether the method's line is regular at the data, or its last step needs no evaluation there."""
    if solver.extrapolates or not isinstance(solver, Tolerance | Backend):
        return solver.extrapolates
    data = model.path.node(0.0)
    return not np.any(singular_step(solver.way, ProbabilityFlow(model), data, data))


def require_regular(model: Model, solver: Solver, times: Sequence[float]) -> None:
    """Raise `ValueError` if one of ``times`` is singular on an adaptive solver's line.

    A step from or to such a node is a DDIM step, whatever the tolerance.
    """
    if not isinstance(solver, Tolerance | Backend):
        return
    ode = ProbabilityFlow(model)
    for a, b in pairwise(ode.nodes(list(times))):
        if np.any(singular_step(solver.way, ode, a, b)):
            closing = 'give closing="denoise", or ' if b.sigma == 0 else ""
            raise ValueError(
                f"solver={solver}: its line is singular at t={a.t:g} or t={b.t:g}, so a single DDIM step would join "
                f"them, whatever the tolerance; {closing}use a solver on a line that is regular there, such as "
                "solvers.AdaptiveAdams() or solvers.Adaptive(solvers.Tsit5(), line=solvers.Rotation())"
            )
