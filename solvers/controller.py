"""Step sizes from error estimates, one per sample, in float64 on the host."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm

from solvers.arguments import as_number
from solvers.transfer import as_array

BLOCK = 1024
"""The number of components that are summed at once; see `row_norm`."""


@dataclass(frozen=True)
class Controller:
    """A PID controller of the step size, in the form of Soderlind (2003), "Digital filters in adaptive time-stepping".

    With ``e_n`` the error of step n over its tolerance and k the order of the error estimate plus one,

        h_{n+1} / h_n = safety * e_n^(-(I + P + D)/k) * e_{n-1}^((P + 2 D)/k) * e_{n-2}^(-D/k),

    kept within [``shrink``, ``grow``]. `PairRun` limits it to 1 right after a rejected step. I alone is the elementary
    controller of Hairer, Norsett & Wanner, "Solving ordinary differential equations I", II.4.
    """

    integral: float = 1.0
    proportional: float = 0.0
    derivative: float = 0.0
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 5.0

    def __post_init__(self) -> None:
        for name in ("integral", "proportional", "derivative"):
            if not math.isfinite(as_number(getattr(self, name))):
                raise ValueError(f"Controller: {name}={getattr(self, name)!r} must be a finite number")
        if not (0 < as_number(self.safety) < 1 and 0 < as_number(self.shrink) < 1 < as_number(self.grow)):
            raise ValueError(
                f"Controller: safety={self.safety!r}, shrink={self.shrink!r}, grow={self.grow!r}: give "
                "0 < safety < 1 and 0 < shrink < 1 < grow"
            )

    def factor(self, errors: np.ndarray, k: int, accepted: np.ndarray) -> np.ndarray:
        """The factor of each sample's next step; ``errors`` are ``(B, 3)``, newest first.

        A rejected step shrinks by its own error alone; one whose error is not finite, by ``shrink``.
        """
        e = np.clip(errors, 1e-10, 1e10)
        integral, proportional, derivative = self.integral, self.proportional, self.derivative
        powers = np.array([-(integral + proportional + derivative), proportional + 2 * derivative, -derivative]) / k
        wanted = np.where(accepted, self.safety * (e**powers).prod(axis=1), self.safety * e[:, 0] ** (-1 / k))
        return np.where(np.isfinite(errors[:, 0]), np.clip(wanted, self.shrink, self.grow), self.shrink)


I = Controller()  # noqa: E741  the field's name
PI = Controller(integral=0.3, proportional=0.4)
PID = Controller(integral=0.3, proportional=0.3, derivative=0.1)


def row_norm(x: Tensor) -> np.ndarray:
    """The root mean square of each row, ``(B,)`` float64 on the CPU, finite wherever the components are.

    A long row is summed in blocks: torch splits the sum of a single long row between threads, so that a sample solved
    alone would round differently than in a batch.
    """
    rows = x.detach().reshape(len(x), -1).contiguous()
    sizes = _root_mean_squares(rows)
    if not np.isfinite(sizes).all():
        # Squares overflow long before the components do: in float32 from 2e19 on.
        largest = rows.abs().amax(dim=1, keepdim=True)
        scales = as_array(largest[:, 0].cpu().double())
        overflown = np.isfinite(scales) & ~np.isfinite(sizes)
        sizes[overflown] = (scales * _root_mean_squares(rows / largest))[overflown]
    return sizes


def _root_mean_squares(rows: Tensor) -> np.ndarray:
    size = rows.shape[1]
    if size <= BLOCK:
        norms = vector_norm(rows, dim=1)
    else:
        whole = size // BLOCK * BLOCK
        blocks = vector_norm(rows[:, :whole].reshape(len(rows), -1, BLOCK), dim=2)
        rest = vector_norm(rows[:, whole:], dim=1)
        norms = vector_norm(torch.cat([blocks, rest[:, None]], dim=1).cpu().double(), dim=1)
    return as_array(norms.cpu().double()) / math.sqrt(max(size, 1))


def first_step(d0: np.ndarray, d1: np.ndarray, span: float) -> np.ndarray:
    """The probing step of Hairer, Norsett & Wanner, II.4: 1 % of the state's size over that of its slope.

    ``d0`` and ``d1`` are the norms of the state and of the slope, in units of the tolerance.
    """
    small = ~(d0 >= 1e-5) | (d1 < 1e-5) | ~np.isfinite(d1)
    return np.minimum(np.where(small, 1e-6 * span, 0.01 * d0 / np.where(small, 1.0, d1)), span)


def second_step(h0: np.ndarray, d1: np.ndarray, d2: np.ndarray, k: int, span: float) -> np.ndarray:
    """The first step of the same algorithm, from ``d2``, the slope's change over the probe, for an error of 1 %.

    A probe without a finite slope shows only that it went too far.
    """
    steepest = np.maximum(d1, d2)
    flat = ~(steepest > 1e-15) | np.isinf(steepest)
    wanted = np.where(flat, np.maximum(1e-6 * span, 1e-3 * h0), (0.01 / np.where(flat, 1.0, steepest)) ** (1 / k))
    return np.minimum(np.minimum(100 * h0, wanted), span)
