"""Exponential Adams of variable order and step, chosen for each sample, with one call for each step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.adams_piece import AdamsPiece
from solvers.arguments import require_whole
from solvers.controller import row_norm
from solvers.lines import Data, Line, Noise, Rotation
from solvers.newton_form import (
    divided_differences,
    gauss_legendre,
    integral_weights,
    newton_weights,
    odd_terms,
    step_integrals,
    with_node_in_front,
)
from solvers.solver import Solver
from solvers.sums import per_row, weighted_sums
from solvers.tolerance import Run, Span, Tolerance, error_scale
from solvers.transfer import index_on

SAFETY = 0.57
"""The next step is this fraction of the one that would just meet the tolerance: at order k it aims at an error of
SAFETY^(k + 1) times the tolerance."""
GROWTH = 2.5
"""A step is at most this many times as long as the step before."""
START_GROWTH = 8.0
"""The same bound during the first steps: while the order rises from 1, they are far below what the solution allows."""
STARTING = 3
"""The number of accepted steps during which `START_GROWTH` applies."""
CHANGES = np.array([[0], [-1], [1]])
"""The changes of order that are considered from one step to the next."""
SHRINK = 0.2
"""A step is at least this fraction of the step before."""
UNKNOWN = 1e-9
"""The value, in units of the tolerance, that stands for an error of zero."""
START = 0.03
"""The first step, a probe, is ``START rtol^(1/3)`` times the ratio of the state's size to its slope's."""
LEAST_START = 1e-9
"""The shortest first step as a fraction of the span, since the size of a tiny state says little about the solution."""
CLOSEST = 1e-3
"""No call is made closer than this fraction of the step to the place of another one."""
MISS, MISS_ON_ROTATION = 0.5, 0.1
"""The error estimate is at least this fraction of the predictor-corrector difference.

A step that leaps over a bend of the solution sees it in the newest slope alone, which enters the change from one order
to the next with a weight of about a hundredth. On the rotation such bends come from data much thinner or wider than
its c. On the noise line and on x(t) each step towards the data is a good part of the distance to where the solution
bends, at an s of the size of the data's deviation.
"""
OLDER = 0.5
"""The error estimate of an extrapolation is at least this fraction of the change that the newest slope makes."""
NEAR = 4.0
"""The distance from the end, in steps, at which closing without a call is first considered."""


@dataclass(frozen=True)
class AdaptiveAdams(Tolerance):
    """Adams of variable order and step on a line, ``dz/dq = f``, each sample with its own steps and orders.

    From (a, z_a) with the slopes f_0, f_-1, ... at earlier nodes, newest first:

        z_p = z_a + integral of the polynomial through k past slopes            Adams-Bashforth, no call
        f_b = f(b, z_p)                                                         the one call
        z_b = z_a + integral of the polynomial through f_b and k past slopes    Adams-Moulton, no call

    The error is estimated by the corrector's change from k - 1 to k past slopes; the step is accepted if it meets the
    tolerance, and f_b joins the history (PEC mode). Orders k - 1, k and k + 1 are compared by the steps that they
    allow. The weights come from Newton's form of the polynomials, whose terms all orders share, in float64 for all
    samples at once. The method is that of Shampine & Gordon (1975), "Computer solution of ordinary differential
    equations", with the coefficients recomputed at each step; the lines make it exponential. The rotation is the line
    to use: on the other lines and x(t) the same error costs up to 8 times the calls.

    For smooth data x0 is an even and eps an odd function of s, so that the slopes of `Rotation` and `Noise` are odd in
    q at the data. The last step to sigma = 0 uses this: it integrates q times the polynomial in q^2 through the slopes
    over q, without a call, as soon as its last two orders agree within the tolerance and the odd polynomial has just
    predicted a step better than the plain one; with ``closing="extrapolate"``, from the last node but one at the
    latest. A sample for which they do not agree there ends with `Status.FLOOR`.

    ``max_order`` bounds k; a run keeps ``max_order + 2`` slopes.
    """

    rtol: float = 1e-3
    atol: float | None = None
    line: Line | None = Rotation(0.4)
    max_order: int = 9
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("AdaptiveAdams: max_order", self.max_order, 1, 12)

    @property
    def order(self) -> int:  # type: ignore[override]
        """The highest order of the corrector."""
        return self.max_order + 1

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """The lines, and x(t); tight enough that float32 and float64 agree even where they choose different steps."""
        return [cls(rtol=1e-5, line=line) for line in (Rotation(0.4), Rotation(), Noise(), Data(), None)]

    @property
    def extrapolates(self) -> bool:
        """Whether the line's slope is odd at the data."""
        return isinstance(self.line, Rotation | Noise)

    @property
    def begin_calls(self) -> int:
        """One evaluation, for the first slope."""
        return 1

    def begin(self, ode: Any, span: Span, z: Tensor, dtype: torch.dtype, ids: np.ndarray) -> Run:
        """Evaluate the first slope and choose the first step."""
        return AdamsRun(self, ode, span, z, dtype, ids)


class AdamsRun(Run):
    """The histories of one solve.

    ``slopes`` ``(B, M, ...)`` are kept in slots, which ``age`` ``(M, B)`` lists, newest first. The slot of the oldest
    slope is free for that of an attempt, so that M = max_order + 2 states are kept. ``past`` ``(M - 1, B)`` are the
    places q of the others, and ``differences`` the weights of their slopes in Newton's divided differences.
    """

    calls = 1

    def __init__(self, solver: AdaptiveAdams, ode: Any, span: Span, z: Tensor, dtype: torch.dtype, ids: np.ndarray):
        super().__init__(span, z, dtype, ids)
        self.solver = solver
        count, size = len(z), solver.max_order + 2
        self.gauss, self.odd_gauss = gauss_legendre((size + 1) // 2), gauss_legendre(size - 1)
        self.slopes = torch.zeros(count, size, *z.shape[1:], dtype=z.dtype, device=z.device)
        self.age = np.tile(np.arange(size)[:, None], count)
        # Unused places must only differ from each other and from all used ones.
        self.past = np.tile(span.q_a - span.direction * span.length * np.arange(2.0, size + 1.0)[:, None], count)
        self.differences = divided_differences(self.past)
        self.known = np.zeros(count, dtype=np.int64)
        self.k = np.ones(count, dtype=np.int64)
        self.steps = np.zeros(count, dtype=np.int64)
        self.closes = solver.extrapolates and span.q_b == 0
        self.closing_error = np.full(count, math.inf)
        self.copies: dict[tuple[int, int], tuple[float, Tensor]] = {}
        self.odd = np.zeros(count, dtype=bool)
        slope = span.slope(ode, span.node(self.q), z, dtype)
        self._write(slope)
        self._adopt(np.ones(count, dtype=bool), *self._with_attempt(self.q))
        size_of_state, size_of_slope = row_norm(z), row_norm(slope)
        reach = np.where(size_of_slope > 0, size_of_state / np.where(size_of_slope > 0, size_of_slope, 1.0), math.inf)
        reach = np.where(np.isfinite(reach) & (reach > 0), reach, span.length)
        least = max(LEAST_START * span.length, span.smallest)
        self.reach = np.maximum(np.minimum(reach, span.length), least)
        self.h = np.maximum(START * solver.rtol ** (1 / 3) * self.reach, least)
        self.broken = ~np.isfinite(size_of_slope)
        self.last = _Piece(self.q, self.z, self.past, self.age, self.k, np.zeros(count, dtype=bool))

    def attempt(self, ode: Any) -> np.ndarray:
        """Predict, evaluate, correct, and choose the next order and step."""
        q, b, k, past = self.q, self.target(), self.k, self.past
        taken = (np.abs(past[:2] - b) <= CLOSEST * np.abs(b - q)).any(axis=0)
        b = np.where(taken, q + 0.8 * (b - q), b)
        h = np.abs(b - q)
        every, most = np.arange(len(q)), int(k.max())
        # Term m of the corrector is over b and m past nodes; it integrates the products over b and m - 1 of them. Term
        # k has the divided difference over b and k past nodes. The corrector's difference from the predictor has it
        # too, with another integral.
        ahead, corrections = step_integrals(past[: most + 1], q, b, self.gauss)
        nodes, slots, differences = attempted = self._with_attempt(b)
        orders = k + CHANGES
        terms = corrections[orders, every, None] * differences[orders, : most + 2, every]
        # One pass over the history serves the prediction and, but for the share of the slope to come, the changes.
        weights = np.zeros((4, most + 2, len(q)))
        weights[0, 1:-1] = newton_weights(ahead[:most], self.differences[:most, :most], k)
        weights[1:, 1:] = terms[..., 1:].swapaxes(1, 2)
        sums = self._combine(weights, slots)
        predicted = self.z + sums[0]
        node = self.span.node(b)
        slope = self.span.slope(ode, node, predicted, self.dtype)
        self._write(slope)
        changes = sums[1:].addcmul_(slope, per_row(terms[..., 0], slope))
        miss = ahead[k, every] / corrections[k, every]
        corrected = torch.addcmul(predicted, changes[0], per_row(miss, predicted))
        scale = error_scale(self.span, self.solver.tolerances, node, corrected)
        errors = row_norm(changes.mul_(scale).flatten(0, 1)).reshape(3, -1)
        self.broken = ~np.isfinite(errors[0])
        least = MISS_ON_ROTATION if isinstance(self.solver.line, Rotation) else MISS
        errors[0] *= np.maximum(least * np.abs(miss), 1.0)
        # The first step is a probe: its slope is kept but the state stays, so that the next step, of order 2, starts
        # over and its estimate covers both. A factor of h over the solution's scale turns the error of order 1 into
        # that of order 2.
        probe = (self.known == 1) & ~self.broken
        errors[0] = np.where(probe, errors[0] * h / self.reach, errors[0])
        accepted = (errors[0] <= 1) & (self.known > 1)  # False for NaN
        if self.broken.any():
            self._forget(self.broken)
        order, self.h = self._next(h, errors, accepted, probe)
        near = accepted & (np.abs(self.span.q_b - b) <= NEAR * self.h)
        if self.closes and near.any():
            # Whether the slopes are odd depends on the data and on the network: the last step shows it.
            terms = odd_terms(past[:most], q, b, self.odd_gauss)
            odd = self._advanced(newton_weights(*terms, k), self.age)
            closer = row_norm(odd - corrected) <= row_norm(predicted - corrected)
            self.odd = np.where(near, closer, self.odd)
        self.last = _Piece(q, self.z, nodes, slots, k + 1, np.zeros(len(q), dtype=bool))
        self.k = order
        self.calm = accepted | probe
        self._move(accepted, b, corrected)
        self.steps = self.steps + accepted
        self._adopt(self.calm, *attempted)
        return accepted

    def _next(
        self, h: np.ndarray, errors: np.ndarray, accepted: np.ndarray, probe: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The order, among those `CHANGES` away, that allows the longest step, and that step; ``h`` made ``errors``."""
        k, rises = self.k, self.k < self.solver.max_order
        tolerable = np.maximum(errors, UNKNOWN)
        tolerable[~np.isfinite(errors)] = math.inf
        steps = SAFETY * h * tolerable ** (-1.0 / (k + CHANGES + 1 + probe))
        steps[1, k == 1] = 0.0
        steps[2, ~(accepted & rises & (self.known > k))] = 0.0
        growth = np.where(self.steps < STARTING, START_GROWTH, GROWTH)
        largest = np.where(accepted | probe, np.where(self.calm, growth, 1.0), 0.9) * h
        step = np.minimum(np.maximum(steps.max(axis=0), SHRINK * h), largest)
        order = k + CHANGES[steps.argmax(axis=0), 0] + (probe & rises)
        return order, np.where(self.broken, SHRINK * h, step)

    def finish(self) -> np.ndarray:
        """Extrapolate to the end the samples whose last two orders agree there, or that may make no further call."""
        span, rest = self.span, np.abs(self.span.q_b - self.q)
        at_last = (self.q == span.q_known) & (span.q_known != span.q_b)
        candidates = at_last | ((rest <= NEAR * self.h) & self.odd)
        if not self.closes or not candidates.any():
            return np.zeros(len(self.q), dtype=bool)
        end, most = np.full(len(self.q), span.q_b), int(self.k.max())
        ended, error = self._extrapolated(end, most, odd=True)
        odd = np.ones(len(self.q), dtype=bool)
        if (at_last & ~self.odd).any():
            plainly, plain_error = self._extrapolated(end, most, odd=False)
            odd = ~(at_last & ~self.odd & (plain_error < error))
            rows = index_on(ended.device, np.flatnonzero(~odd))
            ended.index_copy_(0, rows, plainly[rows])
            error = np.where(odd, error, plain_error)
        reached = candidates & (at_last | (error <= 1))
        self.closing_error = np.where(reached, error, self.closing_error)
        self.last = _Piece(self.q, self.z, self.past, self.age, self.k, odd)
        self._move(reached, end, ended)
        return reached

    def _extrapolated(self, end: np.ndarray, most: int, odd: bool) -> tuple[Tensor, np.ndarray]:
        """The states at ``end`` by the polynomials through the known slopes, and estimates of their errors.

        The last term is a poor estimate where steps grow, the last being the longest; the change that the newest slope
        makes is as large as the error, and often larger.
        """
        k, every = self.k, np.arange(len(self.k))
        integrals, differences = self._terms(self.past[:most], end, odd)
        weights = np.zeros((3, most + 1, len(k)))
        weights[0, :-1] = newton_weights(integrals, differences, k)
        weights[1, :-1] = integrals[k - 1, every] * differences[k - 1, :, every].T
        weights[2] = weights[0]
        weights[2, 1:] -= newton_weights(*self._terms(self.past[1 : most + 1], end, odd), k)
        sums = self._combine(weights, self.age)
        ended = self.z + sums[0]
        scale = error_scale(self.span, self.solver.tolerances, self.span.ends[1], ended)
        error, older = row_norm(sums[1:].mul_(scale).flatten(0, 1)).reshape(2, -1)
        return ended, np.where(self.known > k, np.maximum(error, OLDER * older), error)

    def _terms(self, nodes: np.ndarray, end: np.ndarray, odd: bool) -> tuple[np.ndarray, np.ndarray]:
        """Integrals to ``end`` and divided differences, by rules of one size, so that batch mates change no bit."""
        if odd:
            return odd_terms(nodes, self.q, end, self.odd_gauss)
        return step_integrals(nodes, self.q, end, self.gauss)[0], divided_differences(nodes)

    def closing_errors(self, rows: np.ndarray) -> np.ndarray:
        """How far the two highest orders disagreed at the end."""
        return self.closing_error[rows]

    def between(self, rows: np.ndarray, q: np.ndarray) -> Tensor:
        """The integral of the last step's own polynomial, which has the step's order."""
        last, index = self.last, index_on(self.z.device, rows)
        weights = np.zeros((len(last.nodes), len(rows)))
        for odd in (False, True):
            of = np.flatnonzero(last.odd[rows] == odd)
            some = rows[of]
            weights[:, of] = integral_weights(last.nodes[:, some], last.used[some], last.q[some], q[of], odd)
        ordered = self._by_slot(weights[None], last.slots[:, rows])
        return last.z[index] + weighted_sums(ordered, self.slopes[index])[0]

    def piece(self, row: int) -> AdamsPiece:
        """The polynomial of the row's last step, with the slopes that it reads."""
        last, used = self.last, int(self.last.used[row])
        nodes = last.nodes[:used, row].copy()
        slopes = tuple(self._kept(row, slot, q) for slot, q in zip(last.slots[:used, row], nodes, strict=True))
        return AdamsPiece(
            self.span, float(last.q[row]), float(self.q[row]), last.z[row].clone(), nodes, slopes, bool(last.odd[row])
        )

    def _kept(self, row: int, slot: int, q: float) -> Tensor:
        """A copy of the row's slope at q, which all pieces that read it share."""
        at = int(self.ids[row]), int(slot)
        if at not in self.copies or self.copies[at][0] != q:
            self.copies[at] = q, self.slopes[row, slot].clone()
        return self.copies[at][1]

    def keep(self, rows: np.ndarray) -> None:
        """Select the rows of the histories."""
        index = self._keep_places(rows)
        self.slopes = self.slopes[index]
        for name in ("age", "past", "differences", "known", "k", "steps", "closing_error", "reach", "odd"):
            setattr(self, name, getattr(self, name)[..., rows])

    def _write(self, slope: Tensor) -> None:
        """Write the slopes of an attempt to the free slots."""
        count, size = self.slopes.shape[:2]
        places = index_on(slope.device, np.arange(count) * size + self.age[-1])
        self.slopes.flatten(0, 1).index_copy_(0, places, slope)

    def _with_attempt(self, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The nodes, slots and divided differences of all slopes, first those in the free slots, at ``b``."""
        nodes = np.concatenate([b[None], self.past])
        slots = np.concatenate([self.age[-1:], self.age[:-1]])
        return nodes, slots, with_node_in_front(self.differences, self.past, b)

    def _adopt(self, accepted: np.ndarray, nodes: np.ndarray, slots: np.ndarray, differences: np.ndarray) -> None:
        """Continue with what `_with_attempt` returned for the accepted rows; their oldest slots become free."""
        if accepted.all():
            self.age, self.past, self.differences = slots, nodes[:-1], differences[:-1, :-1]
        else:
            self.age = np.where(accepted, slots, self.age)
            self.past = np.where(accepted, nodes[:-1], self.past)
            self.differences = np.where(accepted, differences[:-1, :-1], self.differences)
        self.known = np.minimum(self.known + accepted, len(self.past))

    def _move(self, moved: np.ndarray, q: np.ndarray, z: Tensor) -> None:
        """Move those rows to ``(q, z)``; ``z`` is modified in place."""
        self.q = np.where(moved, q, self.q)
        if not moved.all():
            stay = index_on(z.device, np.flatnonzero(~moved))
            z.index_copy_(0, stay, self.z[stay])
        self.z = z

    def _forget(self, rows: np.ndarray) -> None:
        """Zero the free slots: a slope that is not finite would make every combination NaN, even with weight zero."""
        free = torch.from_numpy(self.age[-1, rows]), torch.from_numpy(np.flatnonzero(rows))
        self.slopes[free[1].to(self.z.device), free[0].to(self.z.device)] = 0.0

    def _advanced(self, weights: np.ndarray, slots: np.ndarray) -> Tensor:
        """The states, plus the slopes in the first n of ``slots``, with the weights ``(n, B)``."""
        return self.z + self._combine(weights[None], slots)[0]

    def _combine(self, weights: np.ndarray, slots: np.ndarray) -> Tensor:
        """Sums of the slopes in the first n of ``slots``, with the weights ``(S, n, B)``: ``(S, B, ...)``."""
        return weighted_sums(self._by_slot(weights, slots), self.slopes)

    def _by_slot(self, weights: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """The weights ``(S, n, B)`` of the slopes in the first n of ``slots`` as those of all slots, ``(S, B, M)``."""
        several, n, count = weights.shape
        ordered = np.zeros((several, count, self.slopes.shape[1]))
        ordered[:, np.arange(count), slots[:n]] = weights
        return ordered


@dataclass(frozen=True)
class _Piece:
    """The last step of every row: from (q, z), through the first ``used`` nodes, whose slopes are in ``slots``.

    ``odd`` marks the rows whose polynomial is odd.
    """

    q: np.ndarray
    z: Tensor
    nodes: np.ndarray
    slots: np.ndarray
    used: np.ndarray
    odd: np.ndarray
