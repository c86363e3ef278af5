"""What the loop holds a method to at every step, and a problem at its first call."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from solvers.ode import ODE, Prediction, require_part
from solvers.solver import Solver, Step

END = object()


def held_to_contract(solver: Solver, solved: Iterable[Step], wanted: int, x: Tensor) -> Iterator[Step]:
    """The ``wanted`` steps from ``x``, as ``solver`` makes them.

    Raises:
        TypeError, ValueError: a step writes to the state that it is given, changes its shape or dtype, has a status for
            anything but the samples, or is no `Step`, or there are more or fewer of them.
    """
    own = _stepping(solver)
    if not isinstance(solved, Iterable):
        raise TypeError(f"{solver}.solve returned a {type(solved).__name__}; let it yield solvers.Step(x)")
    steps = iter(solved)
    for made in range(wanted):
        before = writes(x)
        step = next(steps, END)
        if step is END:
            raise ValueError(
                f"{solver}.solve ended after {made} of {wanted} steps; let it yield one for every interval"
            )
        if not isinstance(step, Step):
            verb = "returned" if own == "step" else "yielded"
            raise TypeError(f"{solver}.{own} {verb} a {type(step).__name__}; let it {verb[:-2]} solvers.Step(x)")
        if not isinstance(step.x, Tensor):
            raise TypeError(f"{solver}.{own}: the state is a {type(step.x).__name__}; let it be a torch.Tensor")
        if before is not None and x._version != before:
            raise ValueError(
                f"{solver}.{own} writes to the state x that it is given, which belongs to the caller; let it compute "
                "a new tensor, as solvers.combine does"
            )
        if step.x.shape != x.shape or step.x.dtype is not x.dtype:
            raise ValueError(
                f"{solver}.{own}: a {x.dtype} state came back as {step.x.dtype}, and {tuple(x.shape)} as "
                f"{tuple(step.x.shape)}; let it keep both"
            )
        if step.status is not None:
            _require_status(f"{solver}.{own}", step.status, len(x))
        x = step.x
        yield step
    if next(steps, END) is not END:
        raise ValueError(f"{solver}.solve goes on after {wanted} steps; let it yield one for every interval")


def own_writes(x: Tensor) -> int | None:
    """`writes`, but None for a view too: it counts those to other parts of its memory, such as a callback's record."""
    return None if x._is_view() else writes(x)


def require_unwritten(solver: Solver, states: Sequence[Tensor], before: Sequence[int | None]) -> None:
    """Raise `ValueError` if ``states`` of a solve, its start or those that are kept, were written to afterwards.

    `own_writes` were ``before`` when the states were made.
    """
    if [own_writes(x) for x in states] != list(before):
        raise ValueError(
            f"{solver}.{_stepping(solver)} writes to a state from which an earlier step began, which belongs to the "
            "caller; let it compute a new tensor, as solvers.combine does"
        )


def _stepping(solver: Solver) -> str:
    return "step" if type(solver).solve is Solver.solve else "solve"


def _require_status(name: str, status: object, batch: int) -> None:
    if isinstance(status, Tensor) and status.dtype is torch.int64 and status.shape == (batch,) and status.is_cpu:
        return
    got = f"{tuple(status.shape)} of {status.dtype}" if isinstance(status, Tensor) else f"a {type(status).__name__}"
    raise ValueError(
        f"{name}: the status is {got}; let it be None, or an int64 tensor on the CPU of the values of solvers.Status, "
        "one for each sample"
    )


def require_slope(ode: ODE, slope: object, x: Tensor, before: int | None) -> None:
    """Raise `ValueError` unless ``slope``, which ``ode`` returned at ``x``, has one number for each of its components.

    One of another shape would be broadcast, and so mix samples. `writes` were ``before`` when the field was called.
    """
    _require_unwritten(ode, x, before)
    require_part(ode, "dx/dt", slope, x.shape)


def require_prediction(ode: ODE, prediction: object, x: Tensor, before: int | None) -> None:
    """The same for a prediction at ``x``, whose parts are seen when they are computed."""
    _require_unwritten(ode, x, before)
    if not isinstance(prediction, Prediction):
        raise TypeError(
            f"ode={type(ode).__name__}.predict returned a {type(prediction).__name__}; let it return "
            "solvers.Prediction(x0, eps)"
        )
    prediction.hold_to(ode, x.shape)


def writes(x: Tensor) -> int | None:
    """How often ``x`` has been written to; None for tensors of inference mode, which do not count."""
    return None if x.is_inference() else x._version


def _require_unwritten(ode: ODE, x: Tensor, before: int | None) -> None:
    if writes(x) != before:
        raise ValueError(
            f"ode={type(ode).__name__} writes to the state x that it is given, which the method still reads; let it "
            "compute a new tensor"
        )
