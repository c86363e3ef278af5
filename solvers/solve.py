"""The one loop: from the first node of a grid to its last."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from solvers.arguments import require_switch, require_whole
from solvers.closing import EXTRAPOLATED, denoise, extrapolate
from solvers.contract import held_to_contract, own_writes, require_unwritten, writes
from solvers.counting import BudgetSpent, counted
from solvers.dense import Dense
from solvers.fusion import fusion, require_compiler
from solvers.large import reusing
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node, PathODE
from solvers.requests import FirstPredictions, Requests
from solvers.solution import Solution, SolveError, Status
from solvers.solver import Past, Solver, Step, require_past, require_rows, require_solver

Closing = Literal["denoise", "extrapolate"] | None


def solve(
    ode: ODE,
    solver: Solver,
    x: Tensor,
    times: Tensor | np.ndarray | Sequence[float],
    *,
    closing: Closing = "denoise",
    stream: NoiseStream | None = None,
    past: Past = (),
    state: Any = None,
    callback: Callable[[Node, Tensor], object] | None = None,
    progress: bool = False,
    throw: bool = True,
    max_nfe: int | None = None,
    trajectory: bool = False,
    compile: bool = False,
) -> Solution:
    """Solve ``ode`` from ``times[0]`` to ``times[-1]`` with one step per interval.

    Args:
        ode: the problem; a `PathODE` for methods that read data and noise.
        solver: the method.
        x: the state at ``times[0]``, floating point, ``(B, ...)``.
        times: strictly monotone, in either direction: descending is sampling, ascending is inversion.
        closing: how a last interval that ends at the data (sigma = 0) of a path is solved. ``"denoise"``: one DDIM
            step, one call. ``"extrapolate"``: no call; x0 is extrapolated to s = 0 by a parabola in s^2 through the
            predictions at the starts of the last three steps, or by the method's own rule (deterministic methods only;
            a single-interval grid is denoised). None: an ordinary step.
        stream: the noise of stochastic solvers.
        past: exact (node, state) pairs before ``times[0]``, newest first, for methods with `Solver.reads_past`.
        state: the `Solution.state` of an earlier solve, to carry it on.
        callback: called with the node and the state after every step.
        progress: whether to draw a progress bar.
        throw: whether to raise `SolveError` when a sample fails; its ``solution`` holds what was reached.
        max_nfe: the most evaluations of the field for any sample; one that has spent them ends with `Status.BUDGET`.
        trajectory: whether to keep the states at all nodes and, for `Adaptive` and `AdaptiveAdams`, the steps between
            them: ``solution(t)``.
        compile: whether `torch.compile` fuses each linear combination of states into one pass over memory: faster for
            large states, after a few seconds of compilation; the last bits may differ.

    Raises:
        TypeError, ValueError: an argument cannot be used; nothing has been computed.
        SolveError: a sample failed.
    """
    _check(ode, solver, x, closing, stream, past, callback, max_nfe)
    for name, value in (("progress", progress), ("throw", throw), ("trajectory", trajectory), ("compile", compile)):
        require_switch(name, value)
    if compile:
        require_compiler()
    nodes = ode.nodes(_checked_times(times))
    closes = closing is not None and isinstance(ode, PathODE) and nodes[-1].sigma == 0
    asked = _requests(solver, closing if closes else None, len(nodes) - 1, Dense(len(x)) if trajectory else None)
    wrapped = counted(ode, len(x), max_nfe, asked)
    states, untouched = [x], [own_writes(x)]
    steps, spent, failed = 0, False, None
    try:
        require_rows(state, x)
        body = nodes[:-1] if closes and not asked.free_end else nodes
        state = solver.start(wrapped, body, x, stream=stream, past=past, state=state)
        made = zip(nodes[1:], _steps(wrapped, solver, body, nodes, x, state), strict=True)
        bar: AbstractContextManager[Iterable[tuple[Node, Step]]] = nullcontext(made)
        if progress:  # even a disabled bar takes as long as a step
            bar = tqdm(made, total=len(nodes) - 1, desc=type(solver).__name__, unit="step")
        recorded = torch.is_grad_enabled() and solver.differentiable
        with torch.set_grad_enabled(recorded), fusion(compile), reusing(x), bar as shown:
            for node, step in shown:
                x, state = step.x, step.state
                failed = failed if step.status is None else step.status
                steps += 1
                if trajectory:
                    states.append(x)
                    untouched.append(own_writes(x))
                if callback is not None:
                    _show(callback, node, x)
    except BudgetSpent:
        spent = True
    require_unwritten(solver, states, untouched)
    solution = Solution(
        x=x,
        status=_status(x, spent, failed),
        stats=wrapped.ledger.stats(steps),
        nodes=nodes,
        state=state,
        trajectory=torch.stack(states) if trajectory else None,
        dense=asked.dense,
        node=ode.node if trajectory else None,
    )
    if throw and not solution.success:
        raise SolveError(solution)
    return solution


def _requests(solver: Solver, closing: Closing, intervals: int, dense: Dense | None) -> Requests:
    """What the method is asked for, where ``closing`` is None unless a closing step follows."""
    own_steps = type(solver).solve is not Solver.solve
    if closing == "extrapolate" and own_steps and not solver.extrapolates:
        raise ValueError(
            f'closing="extrapolate" reads the predictions at the nodes, but {solver} chooses its own steps; '
            'use closing="denoise"'
        )
    if closing != "extrapolate" or intervals == 1:
        return Requests(denoised=closing is not None, dense=dense)
    if own_steps:
        return Requests(free_end=True, dense=dense)
    return Requests(firsts=FirstPredictions(EXTRAPOLATED), dense=dense)


def _steps(
    ode: Any, solver: Solver, body: Sequence[Node], nodes: Sequence[Node], x: Tensor, state: Any
) -> Iterator[Step]:
    """The solver's steps over ``body``, then the closing step if ``nodes`` has one more."""
    firsts, failed = ode.requests.firsts, None
    if firsts is not None:
        firsts.drop()
    if len(body) > 1:
        for step in held_to_contract(solver, solver.solve(ode, body, x, state), len(body) - 1, x):
            x, state, failed = step.x, step.state, step.status
            if firsts is not None:
                firsts.finish_step()
            yield step
    if len(body) < len(nodes):
        if firsts is not None and firsts.latest:
            step = extrapolate(nodes[-1], firsts.latest, x, failed)
        else:
            step = denoise(ode, nodes[-2], nodes[-1], x, failed)
        yield step._replace(state=state)


def _show(callback: Callable[[Node, Tensor], object], node: Node, x: Tensor) -> None:
    """Call ``callback``, and raise if it writes to the state or returns one."""
    before = writes(x)
    answer = callback(node, x)
    if writes(x) != before:
        raise ValueError("callback writes to the state of the solve; let it work on x.clone()")
    if isinstance(answer, Tensor) and answer is not x:
        raise ValueError(
            "callback returns a tensor, which would be ignored; let it return None. To steer a solve, change its field"
        )


def _check(
    ode: ODE,
    solver: Solver,
    x: Tensor,
    closing: Closing,
    stream: NoiseStream | None,
    past: Past,
    callback: Callable[[Node, Tensor], object] | None,
    max_nfe: int | None,
) -> None:
    """Raise for arguments of `solve` that cannot be used."""
    require_solver(solver)
    if not isinstance(ode, ODE):
        raise TypeError(
            f"ode={ode!r} must be a solvers.ODE; derive the problem from it, or wrap a model with "
            "odediff.probability_flow(model)"
        )
    if closing not in ("denoise", "extrapolate", None):
        raise ValueError(f'closing={closing!r} is unknown; use "denoise", "extrapolate" or None')
    if closing == "extrapolate" and not solver.deterministic:
        raise ValueError(
            'closing="extrapolate" fits a polynomial in s^2 to the predicted data, which fresh noise makes irregular: '
            f'{solver} is stochastic; use closing="denoise"'
        )
    if max_nfe is not None:
        require_whole("max_nfe", max_nfe, 1, hint=", or None for no limit")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback={callback!r} cannot be called; pass a function of a node and a state, or None")
    _check_state(x)
    if stream is not None:
        if not isinstance(stream, NoiseStream):
            raise TypeError(f"stream={stream!r} must be a solvers.NoiseStream; pass solvers.NoiseStream(seed)")
        stream.ids(len(x))
    require_past(solver, past, x)
    ode.require_batch(len(x))


def _check_state(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor of shape (B, ...), not {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}; convert it to a floating-point dtype, torch.float32 or torch.float64")
    if x.ndim == 0:
        raise ValueError("x has no batch dimension; pass a tensor of shape (B, ...)")
    if not math.prod(x.shape[1:]):
        raise ValueError(f"x has shape {tuple(x.shape)}: its samples have no components; pass at least one")


def _checked_times(times: Tensor | np.ndarray | Sequence[float]) -> list[float]:
    try:
        values = np.asarray(times.tolist() if isinstance(times, Tensor) else times, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"times={times!r} must be numbers; pass a list, an array or a tensor of floats") from error
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"times has shape {values.shape}; pass at least two times in one dimension")
    if not np.isfinite(values).all():
        raise ValueError(f"times[{int(np.argmin(np.isfinite(values)))}] is not finite; every time must be")
    differences = np.diff(values)
    if not ((differences > 0).all() or (differences < 0).all()):
        first = int(np.argmax(differences * np.sign(differences[0] or 1.0) <= 0))
        raise ValueError(
            f"times must be strictly monotone, but times[{first}]={values[first]:g} is followed by "
            f"{values[first + 1]:g}; sort them and drop the duplicates"
        )
    return values.tolist()


def _status(x: Tensor, spent: bool, failed: Tensor | None) -> Tensor:
    rows = x.reshape(len(x), math.prod(x.shape[1:]))
    # A finite sum has finite terms, and takes a tenth of the time of checking each of them.
    finite = torch.isfinite(rows.sum(dim=1, dtype=torch.promote_types(x.dtype, torch.float32))).cpu()
    if not finite.all():
        finite = torch.isfinite(rows).all(dim=1).cpu()
    status = torch.where(finite, int(Status.BUDGET if spent else Status.SUCCESS), int(Status.NON_FINITE))
    return status if failed is None else torch.where(failed == Status.SUCCESS, status, failed)
