"""What a solve takes when its user does not say: the solver, its grid, and how it closes."""

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
"""A closing rule, or "auto": that of the solver; see `fixed_closing`."""
Grid = Callable[..., Tensor]
"""``grid(path, steps=N)`` gives N + 1 times; see `odediff.grid`."""

STEPS = 20
LEAST_NOISE = 2.0
"""sigma/alpha at the start of a schedule below which data show through from the first step on, and a polynomial leaves
less of a trained network's error in few calls."""
LEAST_DATA, MOST_DATA = 0.03, 30.0
"""Root mean squares of data between which the default's errors in few calls are below those of other solvers."""


def default_solver(path: Schedule) -> Solver:
    """`GPMultistep`, made for few calls; it knows schedules that begin in noise.

    On one that begins below sigma/alpha = 2 it is DPM-Solver++(2M), with a warning that says so.
    """
    start = path.node(path.start)
    if start.sigma >= LEAST_NOISE * start.alpha:
        return GPMultistep()
    fallback = DPMpp(2)
    warnings.warn(
        f"path={path} begins at sigma/alpha = {start.s:g}, and the default solver was derived for schedules that begin "
        f"above {LEAST_NOISE:g}: {fallback} takes its place; name a solver to choose another",
        stacklevel=3,
    )
    return fallback


def warn_of_scale(name: str, data: Tensor) -> None:
    """Warn where `default_solver` was used on ``data`` that are far from what it takes data for."""
    size = float(torch.linalg.vector_norm(data.detach(), dtype=torch.promote_types(data.dtype, torch.float32)))
    rms = size / math.sqrt(max(data.numel(), 1))
    if data.numel() and not LEAST_DATA <= rms <= MOST_DATA and math.isfinite(rms):
        warnings.warn(
            f"{name} have a root mean square of {rms:.3g}, and the default solver was made for data of about 1: it may "
            f"be far off below {LEAST_DATA:g} and above {MOST_DATA:g}; scale the data that the network is trained on, "
            "or name a solver, such as solvers.UniPC(), or a tolerance",
            stacklevel=3,
        )


def default_grid(solver: Solver, integer_time: bool = False) -> Grid:
    """The plateau for methods with a step of their own to the data, and Karras's for the others (EDM, eq. 5).

    For a network that knows whole times only, entries of its table, uniform in t.
    """
    if integer_time:
        return grids.uniform_t
    return grids.plateau if solver.closes else grids.karras


def fixed_closing(solver: Solver, closing: AutoClosing) -> Closing:
    """``closing``; for "auto" the solver's own step where it `Solver.closes`, and denoising elsewhere."""
    if closing not in ("auto", "denoise", "extrapolate", None):
        raise ValueError(f'closing={closing!r} is unknown; use "auto", "denoise", "extrapolate" or None')
    if closing != "auto":
        return closing
    return None if solver.closes else "denoise"
