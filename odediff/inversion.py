"""From data to noise, and back: the same solve with the grid flipped, or the exact inverse of a reversible method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from odediff.code import Code, grid_nodes
from odediff.defaults import Grid, default_grid, default_solver, warn_of_scale
from odediff.model import Model
from odediff.problem import ProbabilityFlow, probability_flow
from odediff.replay import NullSchedule, Replayed
from odediff.sampling import make_times
from odediff.tolerance import at_tolerance, follows_tolerance, require_regular, tolerance_span
from solvers import Companion, GPMultistep, Inverse, Node, ReversibleSolver, Solution, Solver, solve
from solvers.arguments import as_number
from solvers.implicit_inverse import Effort
from solvers.solver import require_solver


def encode(
    model: Model,
    images: Tensor,
    *,
    solver: Solver | None = None,
    grid: Grid | Tensor | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    rtol: float | None = None,
    callback: Callable[[Node, Tensor], object] | None = None,
    progress: bool = False,
    throw: bool = True,
) -> Code:
    """Integrate ``images`` from the data to noise (DDIM inversion, for DDIM) on the flipped sampling grid.

    A reversible solver is inverted: decoding returns to the images, for any network and any guidance, up to rounding
    or, for an implicit inverse, its tolerance. The 0 of the grid is dropped and the image taken as the state at the
    node before it: a denoising step cannot be undone. ``grid``, ``steps`` and ``nfe`` mean the same as in
    `odediff.sample`, so that one description of a grid serves both directions; ``nfe`` bounds the calls of the
    encoding. With ``rtol`` the solver follows a tolerance, each sample with steps of its own, from ``path.end`` to
    ``path.start``, or along the times of a grid; `decode` follows the same one. With ``throw=False`` samples that fail
    have their status in the code instead of raising.

    Images are ``(B, ...)``, in the range that the network was trained on, usually [-1, 1].

    Raises:
        TypeError, ValueError: an argument cannot be used, among them a stochastic solver and a model with a threshold;
            nothing has been computed.
        solvers.SolveError: samples became infinite or NaN, or an implicit inverse did not converge.
    """
    by_default = solver is None
    if follows_tolerance(solver, rtol, steps, nfe, grid):
        solver = at_tolerance(solver, rtol)
    elif solver is None:
        probability_flow(model)
        solver = default_solver(model.path)
    times = encoding_times(model, solver, grid, steps, nfe)
    if rtol is not None:
        require_regular(model, solver, times.tolist())
    if throw:
        require_images(images)
    solution = climb(probability_flow(model), solver, images, times, callback=callback, progress=progress, throw=throw)
    if by_default and isinstance(solver, GPMultistep):
        warn_of_scale("images", images)
    effort = solution.state if isinstance(solution.state, Effort) else None
    return Code.of(
        model,
        grid_nodes(model, times),
        x=solution.x,
        solver=solver,
        stats=solution.stats,
        status=solution.status,
        state=_without_empty_rest(solution.state) if isinstance(solver, ReversibleSolver) and effort is None else None,
        effort=effort,
    )


def _without_empty_rest(state: Any) -> Any:
    """A companion whose ``rest`` is zero, as that of most images is, without it."""
    if not isinstance(state, Companion) or state.rest is None or state.rest.any():
        return state
    return state._replace(rest=None, origin=None)


def decode(
    model: Model,
    code: Code,
    *,
    edit: bool = False,
    callback: Callable[[Node, Tensor], object] | None = None,
    progress: bool = False,
    throw: bool = True,
) -> Tensor:
    """Integrate a code back to the node where its encoding began: the image, up to the solver's error.

    ``edit=True`` decodes under another condition, null condition or guidance: what comes is no reconstruction, but the
    image that the same code gives there, such as one of another class (a dual diffusion implicit bridge, Su et al.
    2023).

    Raises:
        ValueError: ``model`` differs from the encoder in schedule, prediction form, weights, guidance, condition or by
            a threshold; or the code holds samples that were not encoded.
        solvers.SolveError: samples became infinite or NaN.
    """
    probability_flow(model)
    _require_code(code)
    code.require_model(model, edit)
    if throw and bool(code.status.any()):
        failed = torch.nonzero(code.status).ravel().tolist()
        raise ValueError(
            f"code.status: samples {failed} were not encoded; decode code.rows(others) with model.rows(others), or "
            "pass throw=False"
        )
    times = code.times.flip(0)
    ode = NullSchedule(model, times, code.nulls) if code.nulls else probability_flow(model)
    solver = code.solver if code.offsets is None else Replayed(code.solver)
    state = code.state if code.offsets is None else code.offsets
    with torch.no_grad():
        return solve(ode, solver, code.x, times, state=state, callback=callback, progress=progress, throw=throw).x


def encoding_times(
    model: Model, solver: Solver, grid: Grid | Tensor | None, steps: int | None, nfe: int | None
) -> Tensor:
    """The ascending times of `encode` by ``solver``.

    Raises:
        TypeError, ValueError: what `encode` raises of these arguments.
    """
    require_solver(solver)
    if not solver.deterministic:
        raise ValueError(
            f"solver={solver} is stochastic and has no inverse; use a deterministic one, such as DDIM(eta=0)"
        )
    if not isinstance(solver, ReversibleSolver):
        return inversion_times(model, solver, grid, steps, nfe)
    times = inversion_times(model, Inverse(solver), grid, steps, nfe)
    _require_reversible(solver, probability_flow(model), times)
    return times


def inversion_times(
    model: Model, solver: Solver, grid: Grid | Tensor | None, steps: int | None, nfe: int | None
) -> Tensor:
    """The ascending times of an inversion, for a model that can be inverted."""
    if not isinstance(model, Model):
        probability_flow(model)
    require_solver(solver)
    if model.threshold is not None:
        raise ValueError(f"model.threshold={model.threshold} is not invertible; encode with Model(..., threshold=None)")
    if grid is None and solver.closes:
        if steps == 1:
            raise ValueError("steps=1: the closing rule owns the last interval, so that inversion needs at least 2")
        # The image is the state at the last node: there is no step to the data that would allow for a distant one.
        grid = partial(default_grid(solver, model.integer_time), end=model.path.end)
    # As if the last interval cost nothing: it is dropped below, so all of nfe goes into the encoding.
    if follows_tolerance(solver, None, steps, nfe, grid):
        times, _ = tolerance_span(model, solver, "extrapolate")
    else:
        times = make_times(probability_flow(model), solver, grid, steps, nfe, "extrapolate")
    if times[-1] == 0:
        times = times[:-1]
    if len(times) < 2:
        raise ValueError(
            f"grid has one time above 0, {float(times[0]):g}, and inversion needs at least 2, since the last interval "
            "belongs to the closing rule; give steps >= 2"
        )
    return times.flip(0)


def climb(
    ode: ProbabilityFlow,
    solver: Solver,
    images: Tensor,
    times: Tensor,
    *,
    callback: Callable[[Node, Tensor], object] | None = None,
    progress: bool = False,
    throw: bool = True,
    trajectory: bool = False,
) -> Solution:
    """Solve from the data to the noise: along ascending times, by the inverse of a reversible solver."""
    upwards = Inverse(solver) if isinstance(solver, ReversibleSolver) else solver
    with torch.no_grad():
        return solve(
            ode, upwards, images, times, callback=callback, progress=progress, throw=throw, trajectory=trajectory
        )


def require_images(images: Tensor) -> Tensor:
    """The images, if no sample of them holds an infinity or a NaN.

    Raises:
        TypeError: they are no floating-point tensor.
        ValueError: there is such a sample; otherwise the network would be blamed for it.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        given = f"have dtype {images.dtype}" if isinstance(images, Tensor) else f"are a {type(images).__name__}"
        raise TypeError(f"images {given}; pass a floating-point torch.Tensor of shape (B, ...)")
    if not (finite := images.isfinite()).all():
        broken = (~finite).reshape(len(images), -1).any(1).nonzero().ravel().tolist()
        raise ValueError(f"images: samples {broken} hold infinities or NaNs; leave them out")
    return images


def mix_codes(one: Code, other: Code, weight: float) -> Code:
    """The code on the great circle between two, sample by sample: 0 gives the first, 1 the second.

    Decoding follows the condition of the first. Codes with a companion or a record have no mean: encode with a plain
    solver such as RK4.

    Raises:
        ValueError: the codes differ in grid, solver or model, or carry more than their states.
    """
    for code in (one, other):
        _require_code(code)
        if code.state is not None or code.offsets is not None or code.nulls:
            raise ValueError(f"code: a code of {code.solver} carries more than its states; encode with a plain solver")
    same = replace(one, conditions=other.conditions, guidance=other.guidance, digest="")
    if same.digest != other.digest:
        raise ValueError("code: the two differ in grid, solver, dtype, shape or model; encode both alike")
    return replace(one, x=slerp(one.x, other.x, weight), status=torch.maximum(one.status, other.status))


def slerp(x: Tensor, y: Tensor, weight: float) -> Tensor:
    """``(sin((1 - w) theta) x + sin(w theta) y) / sin(theta)`` for the angle theta of each sample (Shoemake 1985).

    Where x and y are nearly parallel, and sin(theta) has no digits left, it is the straight line.
    """
    if isinstance(weight, Tensor) and weight.ndim == 0:
        weight = float(weight)
    if not math.isfinite(as_number(weight)):
        raise ValueError(f"weight={weight!r} must be a finite number: 0 gives the first of the two, 1 the second")
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            given = f"has dtype {value.dtype}" if isinstance(value, Tensor) else f"is a {type(value).__name__}"
            raise TypeError(f"{name} {given}; pass a floating-point torch.Tensor of shape (B, ...)")
    if x.shape != y.shape or x.ndim < 2:
        raise ValueError(f"y has shape {tuple(y.shape)}; pass that of x, {tuple(x.shape)}, (B, ...)")
    flat_x, flat_y = x.double().flatten(1), y.double().flatten(1)
    norms = (flat_x.norm(dim=1) * flat_y.norm(dim=1)).clamp(min=torch.finfo(torch.float64).tiny)
    theta = torch.arccos(((flat_x * flat_y).sum(1) / norms).clamp(-1, 1))[:, None]
    sine = torch.sin(theta)
    straight = sine < 1e-6
    safe = torch.where(straight, 1.0, sine)
    of_x = torch.where(straight, 1 - weight, torch.sin((1 - weight) * theta) / safe)
    of_y = torch.where(straight, weight, torch.sin(weight * theta) / safe)
    return (of_x * flat_x + of_y * flat_y).reshape(x.shape).to(x.dtype)


def _require_code(code: object) -> None:
    if not isinstance(code, Code):
        raise TypeError(f"code is a {type(code).__name__}, no odediff.Code; pass what odediff.encode returned")


def _require_reversible(solver: ReversibleSolver, ode: ProbabilityFlow, times: Tensor) -> None:
    for a, b in pairwise(ode.nodes(times.tolist())):
        if not solver.reverses(b, a):
            raise ValueError(
                f"grid: nothing undoes the step of {solver} between t={a.t:g} (alpha={a.alpha:g}, sigma={a.sigma:g}) "
                f"and t={b.t:g} (alpha={b.alpha:g}, sigma={b.sigma:g}); end the grid before, or use a method on "
                "solvers.Rotation() or solvers.BDIA(), which are regular there"
            )
