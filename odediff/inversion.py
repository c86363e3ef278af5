"""From data to noise, and back: the same solve with the grid flipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odediff.model import Model
from odediff.problem import probability_flow
from odediff.sampling import DEFAULT_SOLVER, Grid, make_times
from odediff.schedule import Schedule
from solvers import Node, Solver, Stats, solve


@dataclass(frozen=True)
class Code:
    """The noise of an image, with all that its way back needs.

    ``x`` is the state at ``times[-1]``; ``times`` ascend from the end nearest to the data. ``path``, ``prediction`` and
    ``guidance`` are those of the model that encoded: `decode` refuses another.
    """

    x: Tensor
    times: Tensor
    solver: Solver
    state: Any
    stats: Stats
    path: Schedule
    prediction: str
    guidance: float | Tensor


def encode(
    model: Model,
    images: Tensor,
    *,
    solver: Solver | None = None,
    grid: Grid | Tensor | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    callback: Callable[[Node, Tensor], None] | None = None,
    progress: bool = False,
) -> Code:
    """Integrate ``images`` from the data to noise (DDIM inversion, for DDIM) on the flipped sampling grid.

    The 0 of the grid is dropped and the image taken as the state at the node before it: a denoising step cannot be
    undone. ``grid``, ``steps`` and ``nfe`` mean the same as in `odediff.sample`, so that one description of a grid
    serves both directions; ``nfe`` bounds the calls of the encoding.

    Raises:
        TypeError, ValueError: an argument cannot be used, among them a stochastic solver and a model with a threshold;
            nothing has been computed.
        solvers.SolveError: samples became infinite or NaN.
    """
    solver = DEFAULT_SOLVER if solver is None else solver
    ode = probability_flow(model)
    if not isinstance(solver, Solver):
        raise TypeError(f"solver={solver!r} is no solvers.Solver; pass an instance such as solvers.DDIM()")
    if not solver.deterministic:
        raise ValueError(
            f"solver={solver} is stochastic and has no inverse; use a deterministic one, such as DDIM(eta=0)"
        )
    if model.threshold is not None:
        raise ValueError(f"model.threshold={model.threshold} is not invertible; encode with Model(..., threshold=None)")
    # As if the last interval cost nothing: it is dropped below, so all of nfe goes into the encoding.
    times = make_times(ode, solver, grid, steps, nfe, "extrapolate")
    if times[-1] == 0:
        times = times[:-1]
    if len(times) < 2:
        raise ValueError(
            f"grid has one time above 0, {float(times[0]):g}, and inversion needs at least 2, since the last interval "
            "belongs to the closing rule; give steps >= 2"
        )
    times = times.flip(0)
    with torch.no_grad():
        solution = solve(ode, solver, images, times, callback=callback, progress=progress)
    return Code(solution.x, times, solver, solution.state, solution.stats, model.path, model.prediction, model.guidance)


def decode(
    model: Model,
    code: Code,
    *,
    callback: Callable[[Node, Tensor], None] | None = None,
    progress: bool = False,
) -> Tensor:
    """Integrate a code back to the node where its encoding began: the image, up to the solver's error.

    Raises:
        ValueError: ``model`` differs from the encoder in schedule, prediction form, guidance or by a threshold.
        solvers.SolveError: samples became infinite or NaN.
    """
    ode = probability_flow(model)
    for name, mine, stored in (
        ("path", model.path, code.path),
        ("prediction", model.prediction, code.prediction),
        ("guidance", model.guidance, code.guidance),
    ):
        same = torch.equal(*map(torch.as_tensor, (mine, stored))) if name == "guidance" else mine == stored
        if not same:
            raise ValueError(f"model.{name}={mine} differs from the encoder's {stored}; decode with the same model")
    if model.threshold is not None:
        raise ValueError(f"model.threshold={model.threshold} does not decode; use Model(..., threshold=None)")
    with torch.no_grad():
        return solve(ode, code.solver, code.x, code.times.flip(0), callback=callback, progress=progress).x
