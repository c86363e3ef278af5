"""From noise to data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypedDict, overload

import numpy as np
import torch
from torch import Tensor

from odediff import grid as grids
from odediff.defaults import (
    LEAST_DATA,
    STEPS,
    AutoClosing,
    Grid,
    default_grid,
    default_solver,
    fixed_closing,
    warn_of_scale,
)
from odediff.device import available, is_at
from odediff.model import Model
from odediff.points import require_finite
from odediff.problem import ProbabilityFlow, require_model
from odediff.schedule import Schedule, VPTable
from odediff.tolerance import at_tolerance, follows_tolerance, require_one_budget, tolerance_span
from solvers import GPMultistep, Node, NoiseStream, Solution, Solver, solve
from solvers.solve import Closing
from solvers.solver import require_solver

if TYPE_CHECKING:
    from typing_extensions import Unpack

CLOSING_CALLS: dict[Closing, int] = {"denoise": 1, "extrapolate": 0, None: 0}
"""The number of calls that each closing rule makes itself."""


class Options(TypedDict, total=False):
    """The arguments of `sample` on which the type of its result does not depend."""

    noise: Tensor | None
    solver: Solver | None
    grid: Grid | Tensor | None
    steps: int | None
    nfe: int | None
    rtol: float | None
    seed: int
    samples: Sequence[int] | None
    dtype: torch.dtype | None
    device: torch.device | str | None
    closing: AutoClosing
    callback: Callable[[Node, Tensor], object] | None
    progress: bool
    trajectory: bool
    throw: bool


@overload
def sample(
    model: Model,
    shape: Sequence[int] | None = None,
    *,
    return_solution: Literal[False] = False,
    **options: Unpack[Options],
) -> Tensor: ...
@overload
def sample(
    model: Model, shape: Sequence[int] | None = None, *, return_solution: Literal[True], **options: Unpack[Options]
) -> Solution: ...
@overload
def sample(
    model: Model, shape: Sequence[int] | None = None, *, return_solution: bool, **options: Unpack[Options]
) -> Tensor | Solution: ...
def sample(
    model: Model,
    shape: Sequence[int] | None = None,
    *,
    noise: Tensor | None = None,
    solver: Solver | None = None,
    grid: Grid | Tensor | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    rtol: float | None = None,
    seed: int = 0,
    samples: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    closing: AutoClosing = "auto",
    callback: Callable[[Node, Tensor], object] | None = None,
    progress: bool = False,
    trajectory: bool = False,
    throw: bool = True,
    return_solution: bool = False,
) -> Tensor | Solution:
    """Sample from ``model``: solve its probability-flow ODE (or the solver's SDE) from noise to data.

    No gradients are recorded. ``solvers.solve(odediff.probability_flow(model), solver, noise, times).x`` records them
    if the solver is `Solver.differentiable` (with ``closing=None`` if it `Solver.closes` by itself).

    Args:
        model: the network and its declaration.
        shape: the shape of the result, ``(B, ...)``; not with ``noise``.
        noise: the state to start from, instead of one drawn from the seed.
        solver: the method; default: the best one at few calls, see `defaults.default_solver`.
        grid: a function of `odediff.grid`, or the times themselves, noise first, which without ``rtol`` are used as
            they are; default: the grid that suits the solver, see `defaults.default_grid`.
        steps: the number of intervals of the grid, including the closing one; default: 20, if neither ``nfe`` nor
            ``rtol`` is given.
        nfe: a ceiling on the field's evaluations, instead of ``steps``: the most steps whose calls do not exceed it.
        rtol: a tolerance instead of ``steps`` or ``nfe``: the error allowed in each step of each sample, relative to
            max(1, |state|), so effectively absolute for data well below 1, unless the solver has its own ``atol``. The
            solver must follow a tolerance; default: `solvers.AdaptiveAdams`. No grid is needed; the times of a given
            one become nodes, beside the schedule's end. Each sample has its own steps, so the network receives a
            different time in every row.
        seed: fixes every sample, whatever the batch size, its order, or how work is sharded; to the last bit in float32
            and float64, if the network's rows do not depend on each other, or with `Model.chunk`. (In half precision,
            the rounding of sums depends on a row's place in memory.)
            A stochastic solve from the ``noise`` at which another ended needs another seed: each solve draws its noises
            from the first one on, and repeating them changes the samples' law.
        samples: the ids of the batch's samples for the seed; default: 0..B-1. Shards pass their own range.
        dtype: the dtype of the drawn state; default: float32. float64 with a float32 network is supported.
        device: the device of the drawn state; default: that of the network's parameters.
        closing: how the last interval, to the data, is solved; see `solvers.solve`. "auto" denoises, unless the solver
            `Solver.closes` by itself. With a tolerance, "auto" reaches the data without adding an error of its own: a
            model declared continuous is followed to the end, any other is extrapolated by solvers that can.
        callback: called with the node and the state after every step.
        progress: whether to draw a progress bar.
        trajectory: whether the solution keeps the states at all nodes; it wants ``return_solution=True``.
        throw: whether to raise if a sample fails, instead of returning it as it is, with its status in the solution.
        return_solution: whether to return the `Solution`, with calls, statuses and nodes, instead of its end state.

    Returns:
        The samples, a `Tensor`, or with ``return_solution`` a `solvers.Solution`.

    Raises:
        TypeError, ValueError: an argument cannot be used; nothing has been computed, unless the network turns out to be
            undefined at a time of the grid.
        solvers.SolveError: samples became infinite or NaN; its ``solution`` contains them and all others.
    """
    require_model(model)
    ode = ProbabilityFlow(model)
    if samples is not None and not isinstance(samples, Iterable):
        raise TypeError(f"samples={samples!r} must be the ids of the samples, one for each, such as range(3)")
    if noise is not None and not isinstance(noise, Tensor):
        raise TypeError(f"noise must be a torch.Tensor of shape (B, ...), not {type(noise).__name__}")
    if trajectory and not return_solution:
        raise ValueError(
            "trajectory=True must come with return_solution=True: the states at the nodes are part of the solution"
        )
    stream = NoiseStream(seed, None if samples is None else tuple(samples))
    by_default = solver is None
    if follows_tolerance(solver, rtol, steps, nfe, grid):
        solver = at_tolerance(solver, rtol)
        times, closing = tolerance_span(model, solver, closing, grid)
    else:
        solver = default_solver(model.path) if solver is None else solver
        require_solver(solver)
        closing = fixed_closing(solver, closing)
        times = make_times(ode, solver, grid, steps, nfe, closing)
    if noise is not None and throw and not noise.is_meta:
        require_finite("noise", noise)
    noise, stream = _start(model, float(times[0]), shape, noise, dtype, device, stream)
    try:
        with torch.no_grad():
            solution = solve(
                ode,
                solver,
                noise,
                times,
                closing=closing,
                stream=stream,
                callback=callback,
                progress=progress,
                trajectory=trajectory,
                throw=throw,
            )
    except NotImplementedError as error:
        if not noise.is_meta:
            raise
        raise ValueError(
            "device: the network's parameters are on meta, as if they were loaded for each call; give the device on "
            'which it computes, such as device="cuda"'
        ) from error
    require_ceiling(solver, nfe, solution)
    # A state above the data has the scale of its noise too.
    if by_default and isinstance(solver, GPMultistep) and solution.nodes[-1].s < LEAST_DATA:
        warn_of_scale("samples", solution.x)
    return solution if return_solution else solution.x


def require_ceiling(solver: Solver, nfe: int | None, solution: Solution) -> None:
    """Raise `ValueError` if a solve made more than ``nfe`` calls, since its ``solver`` declares too few."""
    if nfe is not None and solution.stats.nfe > nfe:
        raise ValueError(
            f"nfe={nfe}: {solver} made {solution.stats.nfe} calls, more than its calls() promises; let calls(n_steps) "
            "return what n_steps steps cost"
        )


def _start(
    model: Model,
    time: float,
    shape: Sequence[int] | None,
    noise: Tensor | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    stream: NoiseStream,
) -> tuple[Tensor, NoiseStream]:
    """The state to start from, given or drawn, and the stream that draws next."""
    if (shape is None) == (noise is None):
        raise ValueError("shape, noise: give exactly one of them, the shape of the result or the state to start from")
    if noise is not None:
        if dtype not in (None, noise.dtype) or not (device is None or is_at(device, noise.device)):
            raise ValueError(
                f"dtype={dtype}, device={device}: noise is {noise.dtype} on {noise.device}; leave them out, or pass "
                "noise.to(...)"
            )
        return noise, replace(stream, counter=1)
    dtype = torch.float32 if dtype is None else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype={dtype!r} is not a floating-point dtype; use torch.float32 or torch.float64")
    place = model.device if device is None else available(device)
    state = torch.empty(checked_shape(shape), dtype=dtype, device=place)  # type: ignore[arg-type]
    return initial_noise(model.path.node(time), state, stream)


def initial_deviation(start: Node) -> float:
    """The deviation at ``start`` of data of unit variance, ``sqrt(alpha^2 + sigma^2)``: 1 on every VP path."""
    return math.hypot(float(start.alpha), float(start.sigma))


def initial_noise(start: Node, like: Tensor, stream: NoiseStream) -> tuple[Tensor, NoiseStream]:
    """Noise in the shape of ``like`` with the deviation of the states at ``start``, and the stream that draws next."""
    noise, stream = stream.draw(like)
    return noise.mul_(initial_deviation(start)), stream


def make_times(
    ode: ProbabilityFlow,
    solver: Solver,
    grid: Grid | Tensor | None,
    steps: int | None,
    nfe: int | None,
    closing: Closing,
) -> Tensor:
    """The times that the arguments of `sample` describe; ``steps`` and ``nfe`` exclude each other."""
    require_one_budget(steps, nfe)
    path = ode.model.path
    if isinstance(grid, Tensor):
        if steps is not None or nfe is not None:
            raise ValueError("grid: a tensor of times fixes the number of steps; leave out steps and nfe")
        return grids.custom(path, grid)
    if grid is not None and not callable(grid):
        raise TypeError(
            f"grid={grid!r} is not a grid; pass a function such as odediff.grid.karras, or a tensor of times"
        )
    place = grid or default_grid(solver, ode.model.integer_time)
    if steps is not None:
        return _placed(place, path, steps)
    times = times_at_most(place, path, STEPS if nfe is None else steps_within(solver, nfe, closing))
    if nfe is None:
        return times
    # If a grid ends above the data, its last interval costs a step of the solver instead of a closing call.
    while len(times) > 2 and _calls(ode, solver, times, closing) > nfe:
        times = _placed(place, path, len(times) - 2)
    if (cost := _calls(ode, solver, times, closing)) > nfe:
        raise ValueError(f"nfe={nfe} is too small for one step of {solver} on this grid; it needs at least {cost}")
    # `Solver.calls` is an upper bound: if steps at singular nodes are cheaper, the ceiling leaves room for more.
    while len(times) < _step_limit(nfe):
        try:
            longer = _placed(place, path, len(times))
        except ValueError:  # a table has no more entries
            return times
        if _calls(ode, solver, longer, closing) > nfe:
            return times
        times = longer
    return times


def times_at_most(place: Grid, path: Schedule, steps: int) -> Tensor:
    """The times of a grid of ``steps`` steps, or of a table's entries if the grid cannot have that many."""
    try:
        return _placed(place, path, steps)
    except ValueError:
        if not isinstance(path, VPTable) or steps <= path.T:
            raise
    return _placed(place, path, path.T)


def _placed(place: Grid, path: Schedule, steps: int) -> Tensor:
    """The checked times of a grid, since a user's own function may return anything."""
    times = place(path, steps=steps)
    if not isinstance(times, Tensor):
        raise TypeError(f"grid={place!r} returned a {type(times).__name__}; let it return a tensor of times")
    if times.shape != (steps + 1,):
        raise ValueError(
            f"grid={place!r} returned times of shape {tuple(times.shape)} for steps={steps}; it must return steps + 1"
        )
    return grids.custom(path, times)


def _calls(ode: ProbabilityFlow, solver: Solver, times: Tensor, closing: Closing) -> int:
    """The calls of a solve over ``times`` and its closing."""
    nodes = ode.nodes(times.tolist())
    if closing is None or nodes[-1].sigma > 0:
        return solver.calls_over(ode, nodes)
    return solver.calls_over(ode, nodes[:-1]) + CLOSING_CALLS[closing]


def _most_calls(solver: Solver, steps: int, closing: Closing) -> int:
    """An upper bound on the calls of ``steps`` steps, including the closing one."""
    return solver.calls(steps if closing is None else steps - 1) + CLOSING_CALLS[closing]


def _step_limit(nfe: int) -> int:
    """More steps than any method makes with ``nfe`` calls: the search for the longest affordable grid ends here."""
    return 2 * nfe + 16


def steps_within(solver: Solver, nfe: int, closing: Closing = "denoise") -> int:
    """The most steps, including the closing one, whose calls do not exceed ``nfe`` on any grid.

    Raises:
        ValueError: ``nfe`` is not an integer, or too small for one step; the message names the smallest.
    """
    if isinstance(nfe, bool) or not isinstance(nfe, int | np.integer):
        raise ValueError(f"nfe={nfe!r} must be a whole number, a ceiling on the field's evaluations")
    # A denoising step alone is a solve; extrapolation needs a step of the solver first.
    steps = 2 if closing == "extrapolate" else 1
    if nfe < (least := _most_calls(solver, steps, closing)):
        raise ValueError(f"nfe={nfe} is too small for one step of {solver}; it needs at least {least}")
    limit = _step_limit(nfe)
    if (promised := _most_calls(solver, limit, closing)) <= nfe:
        raise ValueError(
            f"nfe={nfe}: according to its calls(), {solver} makes {promised} calls in {limit} steps; let "
            "calls(n_steps) return what n_steps steps cost"
        )
    while _most_calls(solver, steps + 1, closing) <= nfe:
        steps += 1
    return steps


def checked_shape(shape: Sequence[int], form: str = "(B, ...)", example: str = "(64, 1, 28, 28)") -> tuple[int, ...]:
    """``shape`` as a tuple; TypeError or ValueError unless it is a sequence of whole numbers of at least 1."""
    if not isinstance(shape, Sequence):
        raise TypeError(f"shape={shape!r} must be {form}, such as {example}")
    if not shape or any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1 for n in shape):
        raise ValueError(f"shape={tuple(shape)} must be {form} with whole numbers of at least 1, such as {example}")
    return tuple(map(int, shape))
