"""From data to noise and back: the same solve on the flipped grid, or the exact inverse of a reversible method."""

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
from odediff.points import components, require_finite
from odediff.problem import ProbabilityFlow, require_model
from odediff.replay import NullConditionedFlow, Replayed
from odediff.sampling import make_times, require_ceiling
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
    """Integrate ``images`` from the data to noise (with DDIM: DDIM inversion) on the flipped sampling grid.

    A reversible solver is inverted: decoding returns the images, for any network and any guidance, up to rounding or,
    for an implicit inverse, up to its tolerance. The grid's final 0 is dropped: the image is treated as the state at
    the last node above it, since a denoising step cannot be undone. ``grid``, ``steps`` and ``nfe`` have the same
    meaning as in `odediff.sample`, so one description of a grid serves both directions; ``nfe`` bounds the calls of the
    encoding. With ``rtol`` the solver follows a tolerance, each sample with its own steps, from ``path.end`` to
    ``path.start``, or along the times of a grid; `decode` follows the same tolerance. With ``throw=False``, failed
    samples do not raise but have their status in the code.

    Images are ``(B, ...)``, in the range that the network was trained on, usually [-1, 1].

    Raises:
        TypeError, ValueError: an argument cannot be used, such as a stochastic solver or a model with a threshold;
            nothing has been computed.
        solvers.SolveError: samples became infinite or NaN, or an implicit inverse did not converge.
    """
    require_model(model)
    by_default = solver is None
    if follows_tolerance(solver, rtol, steps, nfe, grid):
        solver = at_tolerance(solver, rtol)
    elif solver is None:
        solver = default_solver(model.path)
    times = encoding_times(model, solver, grid, steps, nfe)
    if rtol is not None:
        require_regular(model, solver, times.tolist())
    if throw:
        require_images(images)
    solution = climb(ProbabilityFlow(model), solver, images, times, callback=callback, progress=progress, throw=throw)
    require_ceiling(solver, nfe, solution)
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
    """The companion without its ``rest`` if that is zero, as for most images."""
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
    """Integrate a code back to the node where its encoding began: to the image, up to the solver's error.

    ``edit=True`` decodes under another condition, null condition or guidance: the result is not a reconstruction but
    the image that the same code stands for there, such as one of another class (a dual diffusion implicit bridge, Su et
    al. 2023).

    No gradients are recorded. The image of a code that contains no more than its states is also
    ``solvers.solve(odediff.probability_flow(model), code.solver, code.x, code.times.flip(0)).x``, which records them; a
    code with a companion is decoded from rounded states, which have none.

    Raises:
        ValueError: ``model`` differs from the encoder in schedule, prediction form, weights, guidance or condition, or
            has a threshold; or the encoding of some samples failed.
        solvers.SolveError: samples became infinite or NaN.
    """
    require_model(model)
    _require_code(code)
    code.require_model(model, edit)
    if throw and bool(code.status.any()):
        failed = torch.nonzero(code.status).ravel().tolist()
        raise ValueError(
            f"code.status: the encoding of samples {failed} failed; decode code.rows(others) with model.rows(others), "
            "or pass throw=False"
        )
    times = code.times.flip(0)
    ode = NullConditionedFlow(model, times, code.nulls) if code.nulls else ProbabilityFlow(model)
    solver = code.solver if code.offsets is None else Replayed(code.solver)
    state = code.state if code.offsets is None else code.offsets
    with torch.no_grad():
        return solve(ode, solver, code.x, times, state=state, callback=callback, progress=progress, throw=throw).x


def encoding_times(
    model: Model, solver: Solver, grid: Grid | Tensor | None, steps: int | None, nfe: int | None
) -> Tensor:
    """The ascending times of `encode` by ``solver``.

    Raises:
        TypeError, ValueError: as in `encode`, for these arguments.
    """
    require_solver(solver)
    if not solver.deterministic:
        raise ValueError(
            f"solver={solver} is stochastic and has no inverse; use a deterministic solver, such as DDIM(eta=0)"
        )
    if not isinstance(solver, ReversibleSolver):
        return inversion_times(model, solver, grid, steps, nfe)
    times = inversion_times(model, Inverse(solver), grid, steps, nfe)
    _require_reversible(solver, ProbabilityFlow(model), times)
    return times


def inversion_times(
    model: Model, solver: Solver, grid: Grid | Tensor | None, steps: int | None, nfe: int | None
) -> Tensor:
    """The ascending times of an inversion by ``solver``; refuses a model that cannot be inverted."""
    require_solver(solver)
    if model.threshold is not None:
        raise ValueError(f"model.threshold={model.threshold} is not invertible; encode with Model(..., threshold=None)")
    if grid is None and solver.closes:
        if steps == 1:
            raise _nothing_to_invert("steps=1")
        # The image is the state at the last node, so that node must be close to the data: no last step bridges the gap.
        grid = partial(default_grid(solver, model.integer_time), end=model.path.end)
    # "extrapolate" costs no call on the last interval, which is dropped below: all of nfe goes into the encoding.
    if follows_tolerance(solver, None, steps, nfe, grid):
        times, _ = tolerance_span(model, solver, "extrapolate")
    else:
        times = make_times(ProbabilityFlow(model), solver, grid, steps, nfe, "extrapolate")
    if times[-1] == 0:
        times = times[:-1]
    if len(times) < 2:
        raise _nothing_to_invert(f"the grid, with t={float(times[0]):g} as its one time above 0,")
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
    """Solve from the data to the noise along ascending times, with the inverse of the solver if it is reversible."""
    upwards = Inverse(solver) if isinstance(solver, ReversibleSolver) else solver
    with torch.no_grad():
        return solve(
            ode, upwards, images, times, callback=callback, progress=progress, throw=throw, trajectory=trajectory
        )


def require_images(images: Tensor) -> Tensor:
    """Return the images if all their values are finite; otherwise the network would be blamed for the NaNs.

    Raises:
        TypeError: the images are not a floating-point tensor.
        ValueError: some samples contain infinities or NaNs.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        given = f"have dtype {images.dtype}" if isinstance(images, Tensor) else f"are a {type(images).__name__}"
        raise TypeError(f"images {given}; pass a floating-point torch.Tensor of shape (B, ...)")
    require_finite("images", images)
    return images


def mix_codes(one: Code, other: Code, weight: float) -> Code:
    """The code on the great circle between two codes, sample by sample: weight 0 gives the first, 1 the second.

    Decoding uses the condition of the first. Codes with a companion or a record cannot be mixed: encode with a plain
    solver such as RK4.

    Raises:
        ValueError: the codes differ in grid, solver or model, or contain more than their states.
    """
    for code in (one, other):
        _require_code(code)
        if code.state is not None or code.offsets is not None or code.nulls:
            raise ValueError(
                f"code: a code of {code.solver} contains more than its states; encode with a plain solver such as RK4()"
            )
    same = replace(one, conditions=other.conditions, guidance=other.guidance, digest="")
    if same.digest != other.digest:
        raise ValueError(
            "code: the two codes differ in grid, solver, dtype, shape or model; encode both in the same way"
        )
    return replace(one, x=slerp(one.x, other.x, weight), status=torch.maximum(one.status, other.status))


def slerp(x: Tensor, y: Tensor, weight: float) -> Tensor:
    """``(sin((1 - w) theta) x + sin(w theta) y) / sin(theta)`` for the angle theta of each sample (Shoemake 1985).

    Where x and y are nearly parallel, so that sin(theta) has no significant digits, the straight line replaces it.
    """
    if isinstance(weight, Tensor) and weight.ndim == 0:
        weight = float(weight)
    if not math.isfinite(as_number(weight)):
        raise ValueError(f"weight={weight!r} must be a finite number: 0 gives the first, 1 the second")
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            given = f"has dtype {value.dtype}" if isinstance(value, Tensor) else f"is a {type(value).__name__}"
            raise TypeError(f"{name} {given}; pass a floating-point torch.Tensor of shape (B, ...)")
    if x.shape != y.shape or x.ndim < 1:
        raise ValueError(f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}; pass both in one shape, (B, ...)")
    flat_x, flat_y = components(x.double()), components(y.double())
    norms = (flat_x.norm(dim=1) * flat_y.norm(dim=1)).clamp(min=torch.finfo(torch.float64).tiny)
    theta = torch.arccos(((flat_x * flat_y).sum(1) / norms).clamp(-1, 1))[:, None]
    sine = torch.sin(theta)
    straight = sine < 1e-6
    safe = torch.where(straight, 1.0, sine)
    of_x = torch.where(straight, 1 - weight, torch.sin((1 - weight) * theta) / safe)
    of_y = torch.where(straight, weight, torch.sin(weight * theta) / safe)
    return (of_x * flat_x + of_y * flat_y).reshape(x.shape).to(x.dtype)


def _nothing_to_invert(given: str) -> ValueError:
    return ValueError(
        f"{given} leaves no interval to invert: the last one belongs to the closing rule; give steps >= 2, or a grid "
        "with at least 2 times above 0"
    )


def _require_code(code: object) -> None:
    if not isinstance(code, Code):
        raise TypeError(f"code must be an odediff.Code, not a {type(code).__name__}; pass what odediff.encode returned")


def _require_reversible(solver: ReversibleSolver, ode: ProbabilityFlow, times: Tensor) -> None:
    for a, b in pairwise(ode.nodes(times.tolist())):
        if not solver.reverses(b, a):
            raise ValueError(
                f"grid: the step of {solver} between t={a.t:g} (alpha={a.alpha:g}, sigma={a.sigma:g}) and t={b.t:g} "
                f"(alpha={b.alpha:g}, sigma={b.sigma:g}) cannot be undone; let the grid end before it, or use a method "
                "on solvers.Rotation() or solvers.BDIA(), which are regular there"
            )
