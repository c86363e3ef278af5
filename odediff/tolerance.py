"""One tolerance instead of a grid: what ``rtol=`` means in sampling and inversion."""

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
from odediff.problem import probability_flow
from solvers import AdaptiveAdams, Solver
from solvers.arguments import require_positive
from solvers.backends import Backend
from solvers.lines import singular_step
from solvers.solve import Closing
from solvers.tolerance import Tolerance


def follows_tolerance(
    solver: Solver | None, rtol: float | None, steps: int | None, nfe: int | None, grid: object
) -> bool:
    """Whether the arguments of `odediff.sample` describe a solve to a tolerance.

    Raises:
        ValueError: ``rtol`` is given beside a number of steps or calls, or a function that places steps is given
            where none are placed.
    """
    if rtol is not None:
        for name, value in (("steps", steps), ("nfe", nfe)):
            if value is not None:
                raise ValueError(f"rtol={rtol}, {name}={value}: give one of them, they exclude each other")
    chosen = isinstance(solver, Solver) and solver.law == "tolerance" and steps is None and nfe is None
    if rtol is None and (not chosen or isinstance(grid, Tensor)):
        return False
    if grid is not None and not isinstance(grid, Tensor):
        raise ValueError(
            "grid: a solve to a tolerance chooses its own steps; leave the grid out, or pass times as a tensor to have "
            "the states there, or give steps and no rtol"
        )
    return True


def at_tolerance(solver: Solver | None, rtol: float | None) -> Solver:
    """``solver`` at ``rtol``, `AdaptiveAdams` unless one is given.

    Raises:
        TypeError: ``solver`` is none.
        ValueError: ``rtol`` is not positive and finite, or the solver steps on a grid and follows no tolerance.
    """
    if rtol is not None:
        require_positive("rtol", rtol, "1e-2")
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


def tolerance_span(model: Model, solver: Solver, closing: AutoClosing, grid: object = None) -> tuple[Tensor, Closing]:
    """The times of a solve to a tolerance, those of ``grid`` if it is a tensor, and how it closes.

    A model that is declared to know all times down to 0 is followed to the end, by a method that reaches it, and any
    other as far as `Schedule.end`, from where a method that can extrapolates and the others denoise. A prediction of
    the data tells nothing at the data itself, whatever is declared. A grid that ends in a longer step to the data than
    a closing rule is for gets `Schedule.end` as one more time.
    """
    path = model.path
    if model.integer_time and isinstance(solver, Tolerance | Backend):
        raise ValueError(
            f"integer_time=True: {solver} chooses its own steps, which lie between the whole times that the network "
            "knows; give steps or nfe and a solver that follows a grid, and leave rtol out"
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
    """Whether the method's line is regular at the data, or its last step needs no value there."""
    if solver.extrapolates or not isinstance(solver, Tolerance | Backend):
        return solver.extrapolates
    data = model.path.node(0.0)
    return not np.any(singular_step(solver.way, probability_flow(model), data, data))


def require_regular(model: Model, solver: Solver, times: Sequence[float]) -> None:
    """Refuse a way to a tolerance with nodes that are singular on the solver's line.

    A step that leaves or reaches one is a DDIM step, whatever the tolerance.
    """
    if not isinstance(solver, Tolerance | Backend):
        return
    ode = probability_flow(model)
    for a, b in pairwise(ode.nodes(list(times))):
        if np.any(singular_step(solver.way, ode, a, b)):
            closing = 'give closing="denoise", or ' if b.sigma == 0 else ""
            raise ValueError(
                f"solver={solver}: its line is singular at t={a.t:g} or t={b.t:g}, and the way between them would be "
                f"one DDIM step, whatever the tolerance; {closing}use one on a line that is regular there, such as "
                "solvers.AdaptiveAdams() or solvers.Adaptive(solvers.Tsit5(), line=solvers.Rotation())"
            )
