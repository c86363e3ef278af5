"""The step that closes a solve at the data: denoising, or an extrapolation without a call."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from solvers.exponential import DDIM
from solvers.ode import Node
from solvers.requests import Recorded
from solvers.solution import Status
from solvers.solver import Step
from solvers.sums import combine

EXTRAPOLATED = 3
"""How many predictions closing by extrapolation reads: a parabola in s^2 through those at the starts of steps."""


def denoise(ode: Any, a: Node, b: Node, x: Tensor, failed: Tensor | None) -> Step:
    """The DDIM step; if samples have ``failed``, only of those that have not and can afford it."""
    if failed is None:
        return DDIM().step(ode, a, b, x)
    left = failed == Status.SUCCESS
    status = torch.where(left & torch.from_numpy(~ode.ledger.affordable), int(Status.BUDGET), failed)
    index = torch.nonzero(status == Status.SUCCESS).ravel().to(x.device)
    if len(index):
        x = x.index_copy(0, index, DDIM().step(ode.rows(index), a, b, x[index]).x)
    return Step(x, status=status)


def extrapolate(end: Node, recent: Sequence[Recorded], x: Tensor, failed: Tensor | None) -> Step:
    """The data extrapolated from ``recent`` predictions; samples that have ``failed`` stay as they are."""
    # At pure noise s is infinite, and x0 says nothing about its limit at s = 0: it is the last resort.
    usable = [record for record in recent if record.node.s < math.inf] or [recent[-1]]
    left = torch.arange(len(x), device="cpu") if failed is None else torch.nonzero(failed == Status.SUCCESS).ravel()
    reached = extrapolate_data(end, [(record.node, record.data(left)) for record in usable])
    return Step(reached if len(left) == len(x) else x.index_copy(0, left.to(x.device), reached), status=failed)


def extrapolate_data(end: Node, recent: Sequence[tuple[Node, Tensor]]) -> Tensor:
    """The state at the data: x0 as a polynomial in s^2 through the predictions at ``recent`` nodes, at s = 0.

    Along a solution x0 is an even function of s, so the polynomial in s^2 has no odd terms to waste a node on.
    """
    # A method that raises the noise level may have predicted twice at one node: the newest prediction counts.
    recent = list({float(node.s): (node, x0) for node, x0 in recent}.values())
    squares = [float(node.s) ** 2 for node, _ in recent]
    terms = []
    for i, (_, x0) in enumerate(recent):
        others = (square for j, square in enumerate(squares) if j != i)
        weight = math.prod(square / (square - squares[i]) for square in others)
        terms.append((end.alpha * weight, x0))
    return combine(*terms)
