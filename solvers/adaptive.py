"""Embedded pairs with error control for each sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.controller import PI, Controller, first_step, row_norm, second_step
from solvers.dop853 import DOP853
from solvers.dpm_pairs import DPM12, DPM23, LogSNR
from solvers.lines import Line, Noise, Rotation
from solvers.ode import Node
from solvers.requests import requests
from solvers.runge_kutta import Bosh3, Dopri5, Extension, RungeKutta, Tsit5
from solvers.solver import Solver
from solvers.sums import combine
from solvers.tolerance import Run, Span, Tolerance, error_scale
from solvers.transfer import index_on


@dataclass(frozen=True)
class Adaptive(Tolerance):
    """A pair of methods whose difference estimates the error: ``Adaptive(Dopri5(), rtol=1e-5)``.

    ``pair`` is one of the Runge-Kutta pairs Bosh3, Dopri5, Tsit5 and DOP853, on ``line`` or on x(t) as written
    (``line=None``), or one of DPM12 and DPM23, which have their own. The higher-order solution is propagated. Error
    control and the first step, which costs one call, are those of Hairer, Norsett & Wanner 1993, "Solving ordinary
    differential equations I", section II.4. Steps end at the nodes of the grid. Between its steps a solution has order
    3; with Dopri5 and Tsit5 order 4; with DOP853 order 7, at three further calls per step if a trajectory is requested.
    """

    pair: RungeKutta | DOP853 | DPM12 | DPM23 = Dopri5()
    rtol: float = 1e-3
    atol: float | None = None
    line: Line | None = None
    controller: Controller = field(default=PI)
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.pair, DPM12 | DPM23):
            if self.line is not None:
                raise ValueError(f"Adaptive: line={self.line}: {self.pair} has its own line; leave line out")
        elif not isinstance(self.pair, RungeKutta | DOP853) or self.pair.embedded is None:
            raise ValueError(
                f"Adaptive: pair={self.pair!r} estimates no error; use Bosh3(), Dopri5(), Tsit5(), DOP853(), DPM12() "
                "or DPM23()"
            )
        elif isinstance(self.pair, RungeKutta) and self.pair.line is not None:
            raise ValueError(f"Adaptive: pair={self.pair}: pass the line to Adaptive(..., line={self.pair.line})")
        if not isinstance(self.controller, Controller):
            raise TypeError(f"Adaptive: controller={self.controller!r} must be a solvers.Controller")

    @property
    def order(self) -> int:  # type: ignore[override]
        """The pair's order."""
        return self.pair.order

    @property
    def way(self) -> Line | None:
        """The line that is followed: log-SNR for the DPM pairs."""
        return LogSNR() if isinstance(self.pair, DPM12 | DPM23) else self.line

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """The pairs, and one of them on other lines; DPM12 needs more calls than a check allows."""
        lines = [cls(Tsit5(), line=line) for line in (Rotation(), Noise())]
        return [*(cls(pair) for pair in (Bosh3(), Dopri5(), Tsit5(), DOP853(), DPM23())), *lines]

    @property
    def begin_calls(self) -> int:
        """Evaluations for the first slope and the probe for the first step."""
        return 2

    def begin(self, ode: Any, span: Span, z: Tensor, dtype: torch.dtype, ids: np.ndarray) -> Run:
        """Evaluate the first slope and choose the first step."""
        return PairRun(self, ode, span, z, dtype, ids)


class PairRun(Run):
    """One solve by a pair: the slopes at the places, and the last three errors of every sample."""

    stops_at_nodes = True

    def __init__(self, solver: Adaptive, ode: Any, span: Span, z: Tensor, dtype: torch.dtype, ids: np.ndarray):
        super().__init__(span, z, dtype, ids)
        self.solver, self.pair = solver, solver.pair
        embedded = getattr(self.pair, "embedded", None)
        self.power = embedded.power if embedded else self.pair.order
        self.extension: Extension | None = embedded.extension if embedded and requests(ode).dense else None
        self.calls = solver.pair.calls(1) + (len(self.extension.c) if self.extension else 0)
        self.slope = span.slope(ode, span.node(self.q), z, dtype)
        self.errors = np.ones((len(z), 3))
        self.h = self._first_step(ode)
        self.broken = ~np.isfinite(row_norm(self.slope))
        self.last = (self.q, self.z, self.slope)
        self.slopes: list[Tensor] = []

    def _first_step(self, ode: Any) -> np.ndarray:
        span = self.span
        scale = error_scale(span, self.solver.tolerances, span.node(self.q), self.z)
        rate = self._rate(self.q, self.slope)
        d0, d1 = row_norm(self.z * scale), row_norm(rate * scale)
        h0 = first_step(d0, d1, span.length)
        state, place = combine((1.0, self.z), (span.direction * h0, rate)), self._at(h0)
        probed = self._rate(place, span.slope(ode, span.node(place), state, self.dtype))
        d2 = row_norm((probed - rate).mul_(scale)) / h0
        # The algorithm's bounds have no unit: of a slow field over a long span it asks for a step that does not move.
        return np.maximum(second_step(h0, d1, d2, self.power, span.length), span.smallest)

    def _rate(self, q: np.ndarray, slope: Tensor) -> Tensor:
        """dz/dq: the slope itself, except for the DPM pairs, whose slope is dz/ds with q = -log s."""
        return combine((-np.exp(-q), slope)) if isinstance(self.pair, DPM12 | DPM23) else slope

    def _at(self, h: np.ndarray) -> np.ndarray:
        left = np.abs(self.span.q_b - self.q)
        return np.where(h >= left, self.span.q_b, self.q + self.span.direction * h)

    def attempt(self, ode: Any) -> np.ndarray:
        """One step of the pair."""
        q, b, z, slope = self.q, self.target(), self.z, self.slope
        step = self._exponential if isinstance(self.pair, DPM12 | DPM23) else self._runge_kutta
        reached, error, last = step(ode, q, b)
        accepted = error <= 1
        self.broken = ~np.isfinite(error)
        recent = np.concatenate([error[:, None], self.errors[:, :2]], axis=1)
        factor = self.solver.controller.factor(recent, self.power, accepted)
        h, wanted = np.abs(b - q), self.h
        self.h = h * np.where(accepted, np.where(self.calm, factor, np.minimum(factor, 1.0)), factor)
        # A step that a node cut short is no evidence against the longer one that was wanted.
        self.h = np.where(accepted & (h < wanted), np.maximum(self.h, wanted), self.h)
        self.calm = accepted
        self.errors = np.where(accepted[:, None], recent, self.errors)
        column = index_on(z.device, accepted).reshape(-1, *(1,) * (z.ndim - 1))
        self.last = (q, z, slope)
        self.z, self.slope = torch.where(column, reached, z), torch.where(column, last, slope)
        self.q = np.where(accepted, b, q)
        return accepted

    def _runge_kutta(self, ode: Any, q: np.ndarray, b: np.ndarray) -> tuple[Tensor, np.ndarray, Tensor]:
        """The state at b, its error in units of the tolerance, and the slope there."""
        tableau, pair = self.pair.tableau, self.pair.embedded  # type: ignore[union-attr]
        h, slopes = b - q, [self.slope]
        for c, row in zip((*tableau.c[1:], 1.0), (*tableau.a[1:], tableau.b), strict=True):
            node, state = self._stage(ode, b if c == 1.0 else q + c * h, h, row, slopes)
        if self.extension:
            self.slopes = list(slopes)
            for c, row in zip(self.extension.c, self.extension.a, strict=True):
                self._stage(ode, q + c * h, h, row, self.slopes)
        scale = error_scale(self.span, self.solver.tolerances, node, state)

        def norm(weights: tuple[float, ...]) -> np.ndarray:
            return row_norm(combine(*((w * h, k) for w, k in zip(weights, slopes, strict=True) if w)).mul_(scale))

        error = norm(pair.error)  # type: ignore[union-attr]
        if pair.coarse:  # type: ignore[union-attr]
            coarse = norm(pair.coarse)  # type: ignore[union-attr]
            error = np.where(error > 0, error**2 / np.sqrt(np.maximum(error**2 + 0.01 * coarse**2, 1e-300)), error)
        return state, error, slopes[-1]

    def _stage(
        self, ode: Any, place: np.ndarray, h: np.ndarray, row: tuple[float, ...], slopes: list[Tensor]
    ) -> tuple[Node, Tensor]:
        """The node and state of the stage at ``place`` with the weights ``row``; its slope is added to ``slopes``."""
        state = combine((1.0, self.z), *((w * h, slope) for w, slope in zip(row, slopes, strict=True) if w))
        node = self.span.node(place)
        slopes.append(self.span.slope(ode, node, state, self.dtype))
        return node, state

    def _exponential(self, ode: Any, q: np.ndarray, b: np.ndarray) -> tuple[Tensor, np.ndarray, Tensor]:
        """The same, for the DPM pairs."""

        def slope(place: np.ndarray, state: Tensor) -> Tensor:
            return self.span.slope(ode, self.span.node(place), state, self.dtype)

        state, error = self.pair.trial(slope, q, b, self.z, self.slope)  # type: ignore[union-attr]
        scale = error_scale(self.span, self.solver.tolerances, self.span.node(b), state)
        return state, row_norm(error.mul_(scale)), slope(b, state)

    def piece(self, row: int) -> HermitePiece | PolynomialPiece:
        """The row's last step: the pair's own polynomial, or the cubic through its ends."""
        q_a, z_a, slope_a = self.last
        ends = self.span, float(q_a[row]), float(self.q[row])
        if self.extension:
            slopes = tuple(slope[row].clone() for slope in self.slopes)
            return PolynomialPiece(*ends, z_a[row].clone(), slopes, self.extension.weights)
        values = z_a, slope_a, self.z, self.slope
        return HermitePiece(*ends, tuple(value[row].clone() for value in values), isinstance(self.pair, DPM12 | DPM23))

    def keep(self, rows: np.ndarray) -> None:
        """Select the rows of the slopes and errors."""
        index = self._keep_places(rows)
        self.slope, self.errors = self.slope[index], self.errors[rows]


@dataclass(frozen=True)
class PolynomialPiece:
    """One step of one sample by the `Extension` of its pair."""

    span: Span
    q_a: float
    q_b: float
    z: Tensor
    slopes: tuple[Tensor, ...]
    weights: tuple[tuple[float, ...], ...]

    def __call__(self, q: float) -> Tensor:
        """The line's state at ``q``."""
        h = self.q_b - self.q_a
        powers = ((q - self.q_a) / h) ** np.arange(1, len(self.weights[0]) + 1)
        weights = (h * (np.array(self.weights) @ powers)).tolist()
        return combine((1.0, self.z), *zip(weights, self.slopes, strict=True))


@dataclass(frozen=True)
class HermitePiece:
    """One step of one sample by the cubic through the states and slopes at its two ends.

    It is a cubic in the variable of the slopes: q, or ``s = exp(-q)`` for the DPM pairs, in whose long steps a state
    that is straight in s bends like an exponential in q.
    """

    span: Span
    q_a: float
    q_b: float
    values: tuple[Tensor, ...]
    in_s: bool

    def __call__(self, q: float) -> Tensor:
        """The line's state at ``q``."""
        a, b, here = (math.exp(-place) if self.in_s else place for place in (self.q_a, self.q_b, q))
        h = b - a
        u = (here - a) / h
        weights = ((1 + 2 * u) * (1 - u) ** 2, h * u * (1 - u) ** 2, u**2 * (3 - 2 * u), h * u**2 * (u - 1))
        return combine(*zip(weights, self.values, strict=True))
