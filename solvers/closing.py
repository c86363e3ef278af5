"""What a method may know of the step that closes a solve: whether there is one, and whether it is the method's own."""

from typing import Any

from solvers.lines import Line
from solvers.ode import Node

DATA = Node(0.0, 1.0, 0.0)
"""The data, on every path."""


def closed_by_own_step(ode: Any, line: Line) -> bool:
    """Whether a closing step follows that a method on ``line`` would take itself: a DDIM step, if the line is singular.

    On other lines it comes after the method's last step, as ``denoise_to_zero`` does in DPM-Solver's reference code.
    """
    return denoised_after(ode) and bool(line.singular(DATA))


def denoised_after(ode: Any) -> bool:
    """Whether a closing DDIM step follows."""
    ledger = getattr(ode, "ledger", None)
    return ledger is not None and ledger.denoises
