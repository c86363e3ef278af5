"""From noise to data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odediff import grid as grids
from odediff.defaults import STEPS, AutoClosing, Grid, default_grid, default_solver, fixed_closing, warn_of_scale
from odediff.device import available, is_at
from odediff.model import Model
from odediff.problem import ProbabilityFlow, probability_flow
from odediff.schedule import Schedule, VPTable
from odediff.tolerance import at_tolerance, follows_tolerance, tolerance_span
from solvers import GPMultistep, Node, NoiseStream, Solver, solve
from solvers.solve import Closing
from solvers.solver import require_solver

CLOSING_CALLS: dict[Closing, int] = {"denoise": 1, "extrapolate": 0, None: 0}


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
) -> Any:
    """Sample from ``model``: solve its probability-flow ODE (or the solver's SDE) from noise to data.

    Args:
        model: the network and its declaration.
        shape: of the result, ``(B, ...)``; or give ``noise``.
        noise: the state to start from, instead of drawing it from the seed.
        solver: the method; unless given the one that buys most with few calls, see `defaults.default_solver`.
        grid: a function of `odediff.grid`, or the times themselves, noise first, which without ``rtol`` are taken as
            they are; unless given the solver's own, see `defaults.default_grid`.
        steps: intervals of the grid, the closing one included; 20 unless ``nfe`` or ``rtol`` is given.
        nfe: a ceiling on the field's evaluations, instead of ``steps``: the most steps whose calls do not exceed it.
        rtol: a tolerance instead of ``steps`` or ``nfe``: the error allowed to each step of each sample, relative to
            the state's size, or to 1 where that is smaller: of data much below 1 it is absolute, unless the solver is
            given an ``atol``. The solver must follow a tolerance; `solvers.AdaptiveAdams` unless given. No grid is
            needed; the times of one are further nodes, beside the schedule's end. Each sample takes steps of its own,
            so that the network is told another time in every row.
        seed: fixes every sample, whatever the batch size, its order, or how work is sharded; to the last bit in float32
            and float64, if the network's rows do not depend on each other, or with `Model.chunk`. (Sums in half
            precision round by a row's place in memory.)
        samples: the ids of the batch's samples for the seed, 0..B-1 unless given: shards pass their own range.
        dtype: of the state that is drawn, float32 unless given; float64 with a float32 network is a supported setting.
        device: of the state that is drawn, that of the network's parameters unless given.
        closing: what happens on the last interval, to the data; see `solvers.solve`. "auto" denoises, unless the
            solver `Solver.closes` by itself. Where a tolerance is followed it goes to the data without an error of its
            own: a model declared continuous is followed to the end, any other extrapolated by solvers that can.
        callback: called with the node and the state after every step.
        progress: whether to draw a progress bar.
        trajectory: whether the solution keeps the states at all nodes.
        throw: whether to raise when a sample fails, instead of returning it as it is, with its status in the solution.
        return_solution: whether to return the `Solution`, with calls, statuses and nodes, instead of its end.

    Returns:
        The samples, a `Tensor`, or with ``return_solution`` a `solvers.Solution`.

    Raises:
        TypeError, ValueError: an argument cannot be used; nothing has been computed, unless it is a time of the grid
            at which the network turns out to be undefined.
        solvers.SolveError: samples became infinite or NaN; its ``solution`` holds them and all others.
    """
    ode = probability_flow(model)
    if samples is not None and not isinstance(samples, Iterable):
        raise TypeError(f"samples={samples!r} must be the ids of the samples, one for each, such as range(3)")
    if noise is not None and not isinstance(noise, Tensor):
        raise TypeError(f"noise must be a torch.Tensor of shape (B, ...), not {type(noise).__name__}")
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
    if (shape is None) == (noise is None):
        raise ValueError("shape, noise: give exactly one of them, the shape of the result or the state to start from")
    if noise is None:
        dtype = torch.float32 if dtype is None else dtype
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype={dtype!r} does not hold a state; use torch.float32 or torch.float64")
        place = model.device if device is None else available(device)
        state = torch.empty(_checked_shape(shape), dtype=dtype, device=place)  # type: ignore[arg-type]
        start = model.path.node(float(times[0]))
        drawn, stream = stream.draw(state)
        noise = drawn.mul_(initial_deviation(start))
    else:
        if dtype not in (None, noise.dtype) or not (device is None or is_at(device, noise.device)):
            raise ValueError(
                f"dtype={dtype}, device={device}: noise is {noise.dtype} on {noise.device}; leave them out, or pass "
                "noise.to(...)"
            )
        stream = NoiseStream(seed, stream.samples, counter=1)
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
    if nfe is not None and solution.stats.nfe > nfe:
        raise ValueError(
            f"nfe={nfe}: {solver} made {solution.stats.nfe} calls, more than its calls() says; let calls(n_steps) "
            "return what n_steps steps cost"
        )
    if by_default and isinstance(solver, GPMultistep):
        warn_of_scale("samples", solution.x)
    return solution if return_solution else solution.x


def initial_deviation(start: Node) -> float:
    """The deviation of unit-variance data at ``start``, ``sqrt(alpha^2 + sigma^2)``: 1 on every VP path."""
    return math.hypot(float(start.alpha), float(start.sigma))


def make_times(
    ode: ProbabilityFlow,
    solver: Solver,
    grid: Grid | Tensor | None,
    steps: int | None,
    nfe: int | None,
    closing: Closing,
) -> Tensor:
    """The times that the arguments of `sample` describe; ``steps`` and ``nfe`` exclude each other."""
    if steps is not None and nfe is not None:
        raise ValueError(f"steps={steps}, nfe={nfe}: give one of them, they exclude each other")
    path = ode.model.path
    if isinstance(grid, Tensor):
        if steps is not None or nfe is not None:
            raise ValueError("grid: a tensor of times has its number of steps; leave out steps and nfe")
        return grids.custom(path, grid)
    if grid is not None and not callable(grid):
        raise TypeError(f"grid={grid!r} is no grid; pass a function such as odediff.grid.karras, or a tensor of times")
    place = grid or default_grid(solver, ode.model.integer_time)
    if steps is not None:
        return _placed(place, path, steps)
    times = times_at_most(place, path, STEPS if nfe is None else steps_within(solver, nfe, closing))
    if nfe is None:
        return times
    # Where a grid ends above the data, no closing call is made, and a step more may be.
    while len(times) > 2 and _calls(ode, solver, times, closing) > nfe:
        times = _placed(place, path, len(times) - 2)
    if (cost := _calls(ode, solver, times, closing)) > nfe:
        raise ValueError(f"nfe={nfe} does not pay for one step of {solver} on this grid, which costs {cost}")
    # `Solver.calls` is a bound: where steps at singular nodes are cheaper, the ceiling has room for more of them.
    while len(times) < 2 * nfe + 16:
        try:
            longer = _placed(place, path, len(times))
        except ValueError:  # a table has no more entries
            return times
        if _calls(ode, solver, longer, closing) > nfe:
            return times
        times = longer
    return times


def times_at_most(place: Grid, path: Schedule, steps: int) -> Tensor:
    """The times of a grid of so many steps; of as many as a table has entries, where it visits no more."""
    try:
        return _placed(place, path, steps)
    except ValueError:
        if not isinstance(path, VPTable) or steps <= path.T:
            raise
    return _placed(place, path, path.T)


def _placed(place: Grid, path: Schedule, steps: int) -> Tensor:
    """The times of a grid, which are checked: a function of the user's own may return anything."""
    times = place(path, steps=steps)
    if not isinstance(times, Tensor):
        raise TypeError(f"grid={place!r} returned a {type(times).__name__}; let it return a tensor of times")
    if times.shape != (steps + 1,):
        raise ValueError(f"grid={place!r} returned {tuple(times.shape)} times for steps={steps}; it must be steps + 1")
    return grids.custom(path, times)


def _calls(ode: ProbabilityFlow, solver: Solver, times: Tensor, closing: Closing) -> int:
    """The calls of a solve over ``times`` and its closing."""
    nodes = ode.nodes(times.tolist())
    if closing is None or nodes[-1].sigma > 0:
        return solver.calls_over(ode, nodes)
    return solver.calls_over(ode, nodes[:-1]) + CLOSING_CALLS[closing]


def _most_calls(solver: Solver, steps: int, closing: Closing) -> int:
    """A bound on the calls of ``steps`` steps, the closing one included."""
    return solver.calls(steps if closing is None else steps - 1) + CLOSING_CALLS[closing]


def steps_within(solver: Solver, nfe: int, closing: Closing = "denoise") -> int:
    """The most steps, the closing one included, whose calls do not exceed ``nfe`` on any grid.

    Raises:
        ValueError: ``nfe`` is no whole number, or too small for one step; the message names the smallest.
    """
    if isinstance(nfe, bool) or not isinstance(nfe, int | np.integer):
        raise ValueError(f"nfe={nfe!r} must be a whole number, a ceiling on the field's evaluations")
    # Closing by denoising alone is a one-step solve; extrapolating needs a step of the solver first.
    steps = 2 if closing == "extrapolate" else 1
    if nfe < _most_calls(solver, steps, closing):
        raise ValueError(
            f"nfe={nfe} does not pay for one step of {solver}; the smallest is {_most_calls(solver, steps, closing)}"
        )
    if (paid := _most_calls(solver, 2 * nfe + 16, closing)) <= nfe:
        raise ValueError(
            f"nfe={nfe}: by its calls() {solver} makes {paid} calls in {2 * nfe + 16} steps; let calls(n_steps) return "
            "what n_steps steps cost"
        )
    while _most_calls(solver, steps + 1, closing) <= nfe:
        steps += 1
    return steps


def _checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(shape, Sequence):
        raise TypeError(f"shape={shape!r} must be (B, ...), such as (64, 1, 28, 28)")
    if not shape or any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1 for n in shape):
        raise ValueError(
            f"shape={tuple(shape)} must be (B, ...) with whole numbers of at least 1, such as (64, 1, 28, 28)"
        )
    return tuple(map(int, shape))
