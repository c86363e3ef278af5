"""The defaults of a solve: the solver, its grid, and the closing rule."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from odediff import grid as grids
from odediff.schedule import Schedule
from solvers import DPMpp, GPMultistep, Solver
from solvers.solve import Closing

AutoClosing = Closing | Literal["auto"]
"""A closing rule, or "auto" for that of the solver; see `fixed_closing`."""
Grid = Callable[..., Tensor]
"""A function ``grid(path, steps=N)`` that returns N + 1 times; see `odediff.grid`."""

STEPS = 20
"""The number of steps of a solve for which neither steps, nfe nor rtol is given."""
LEAST_NOISE = 2.0
"""The least sigma/alpha at a schedule's start for which `GPMultistep` is the default. Below it the data show through
from the first step on, and with few calls a polynomial lets through less of a trained network's error."""
LEAST_DATA, MOST_DATA = 0.03, 30.0
"""The root mean squares of data between which the default solver's errors at few calls are below those of others."""


def default_solver(path: Schedule) -> Solver:
    """`GPMultistep`, made for few calls and for schedules that begin in noise.

    For a schedule that begins below sigma/alpha = 2 it is DPM-Solver++(2M), with a warning.
    """
    start = path.node(path.start)
    if start.sigma >= LEAST_NOISE * start.alpha:
        return GPMultistep()
    fallback = DPMpp(2)
    warnings.warn(
        f"path={path} begins at sigma/alpha = {start.s:g}, but the default solver was derived for schedules that begin "
        f"above {LEAST_NOISE:g}: {fallback} takes its place; pass a solver to choose another",
        stacklevel=3,
    )
    return fallback


def warn_of_scale(name: str, data: Tensor) -> None:
    """Warn if the data are scaled far from the unit scale that the default solver assumes."""
    size = float(torch.linalg.vector_norm(data.detach(), dtype=torch.promote_types(data.dtype, torch.float32)))
    rms = size / math.sqrt(max(data.numel(), 1))
    if data.numel() and not LEAST_DATA <= rms <= MOST_DATA and math.isfinite(rms):
        warnings.warn(
            f"{name} have a root mean square of {rms:.3g}, but the default solver assumes data of about 1: it may be "
            f"far off below {LEAST_DATA:g} and above {MOST_DATA:g}; scale the data that the network is trained on, or "
            "pass a solver, such as solvers.UniPC(), or a tolerance",
            stacklevel=3,
        )


def default_grid(solver: Solver, integer_time: bool = False) -> Grid:
    """The plateau for methods with their own step to the data, and Karras's grid for the others (EDM, eq. 5).

    For a network that takes integer times only: entries of its table, uniform in t.
    """
    if integer_time:
        return grids.uniform_t
    return grids.plateau if solver.closes else grids.karras


def fixed_closing(solver: Solver, closing: AutoClosing) -> Closing:
    """``closing``; for "auto" the solver's own last step if it `Solver.closes`, otherwise denoising."""
    if closing not in ("auto", "denoise", "extrapolate", None):
        raise ValueError(f'closing={closing!r} is unknown; use "auto", "denoise", "extrapolate" or None')
    if closing != "auto":
        return closing
    return None if solver.closes else "denoise"
