"""Multistep methods: Adams formulas along a line, for a polynomial in any variable."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers.arguments import as_number, require_whole
from solvers.lines import Data, Line, Noise, Rotation, require_line
from solvers.noise import NoiseStream
from solvers.ode import DATA, Node, PathODE
from solvers.plan_cache import kept_plan
from solvers.quadrature import VARIABLES, Array, Variable, adams_weights, value
from solvers.real import Real
from solvers.requests import requests
from solvers.solver import Law, Past, Solver, Step, require_path, require_run
from solvers.sums import Term, advance, pending, single, total

MOST_POINTS = 6
"""The most predictions that a step reads: the weights of longer Adams formulas alternate in sign and grow until they
amplify what they should cancel."""

CLOSE, CLOSEST = 0.05, 1e-3
"""Two nodes closer than this fraction of the step are treated as one: the polynomial passes through the newer only.
CLOSE applies where states are corrected in between. At CLOSEST a network's rounding would be multiplied by a thousand.
"""


class Formula(NamedTuple):
    """``ratio x + sum of weight slope``, the slopes newest first."""

    ratio: Real
    weights: tuple[Real, ...]


class Formulas(NamedTuple):
    """The formulas of n steps: ratios ``(n,)``, weights ``(most, n)``, and each one's number of weights, 0 for DDIM.

    Where samples keep their own times, all have one more dimension, ``(n, B)``.
    """

    ratio: Array
    weights: Array
    reads: np.ndarray

    def each(self) -> list[Formula | None]:
        """One by one, in floats if all samples share their times: no coefficient reaches a tensor as a 0-d array."""
        counts = self.reads.max(axis=tuple(range(1, self.reads.ndim)), initial=0).tolist()
        columns = (self.ratio, np.moveaxis(self.weights, 0, 1))
        ratios, rows = (values.tolist() if self.reads.ndim == 1 else list(values) for values in columns)
        return [
            Formula(ratio, tuple(row[:count])) if count else None
            for ratio, row, count in zip(ratios, rows, counts, strict=True)
        ]


class Move(NamedTuple):
    """What a step needs of the grid: the formula that ends at b, or None for a DDIM step.

    Where samples keep their own times, ``reads`` is the number of predictions that each one's predictor reads,
    ``(B,)``; 0 means a DDIM step.
    """

    formula: Formula | None
    reads: np.ndarray | None = None


class History(NamedTuple):
    """The run of a multistep method: the moves of the grid, the number of the next, and the history.

    ``nodes`` and ``slopes``, a factor and a tensor each, are those of past evaluations along ``line``, newest first;
    ``predicted`` is True if a step of this method led to the current state, so that a corrector can correct it.
    """

    line: Line
    moves: tuple[Move, ...]
    next: int
    nodes: tuple[Node, ...]
    slopes: tuple[Term, ...]
    predicted: bool


@dataclass(frozen=True)
class ExponentialAdams(Solver):
    """The slope along a line replaced by its polynomial, in a chosen variable, through the latest predictions.

    On a line (z = x/scale, dz/dq = slope), with k past predictions and the weights of `solvers.quadrature`:

        x_b = (scale_b/scale_a) x_a + scale_b sum_j w_j slope_j,    w_j = integral_{q_a}^{q_b} L_j(v(q)) dq

    one call per step. Its settings give the field's multistep samplers: on the data line with v = log-SNR it is the
    exponential Adams method of Hochbruck & Ostermann 2011 ("Exponential multistep methods of Adams-type") that
    DPM-Solver++ and UniPC use (Lu et al. 2022; Zhao et al. 2023), on the noise line with v = t it is DEIS (Zhang & Chen
    2023).

    With ``corrector=True`` the state at a is corrected, before b is predicted, by the polynomial that also passes
    through the prediction made there (Adams-Moulton with the one evaluation that the predictor makes anyway: PEC).
    Predictor and corrector start from the same state and differ by slopes only, so that correcting a prediction with
    weights p to the weights c costs no operation of its own:

        x_b = (scale_b/scale_a) (x_a + sum_j (c_j - p_j) slope_j) + scale_b sum_j w_j slope_j

    N steps are N calls, and the result is the last prediction. Of two nodes that nearly coincide, compared with the
    step ahead, polynomials pass through the newer one only.

    The first steps have fewer predictions to read, so the order rises from 1; ``past`` gives exact ones. A step that
    leaves or reaches a singular node of the line, or one where the variable is infinite, is a DDIM step, and no
    polynomial passes through such a node.

    Args:
        order: the order from exact history and with the corrector: the number of predictions that the polynomial
            passes through, 1 to 6 (with a corrector 2 to 7, one fewer for the predictor).
        line: the change of variables.
        variable: the polynomial's variable: "log_snr" (whose polynomials are those in log s), "s", "t", "angle",
            "asinh" (of s/c, which is log s far from the data and regular there; c is that of a `Rotation`, otherwise
            1), the line's own "q", or "index", the constant weights of a uniform grid, inconsistent on any other.
        corrector: whether to correct.
        lower_order_below: on a grid with fewer steps than this, no step passes its polynomial through more predictions
            than there are steps left, including itself and, on the data line, the closing one: the last has order 1. 0
            keeps the order to the end.
    """

    order: int = 3  # type: ignore[misc]
    line: Line = Data()
    variable: Variable = "log_snr"
    corrector: bool = False
    lower_order_below: float = field(default=0, kw_only=True)
    uncorrected: ClassVar[int] = 0
    """How many of the first states of a grid keep their prediction."""

    def __post_init__(self) -> None:
        require_line(self, self.line)
        if self.variable not in VARIABLES:
            raise ValueError(
                f"{type(self).__name__}: variable={self.variable!r} is unknown; use one of {', '.join(VARIABLES)}"
            )
        least, most = (2, MOST_POINTS + 1) if self.corrector else (1, MOST_POINTS)
        require_whole(f"{type(self).__name__}: order", self.order, least, most)
        if not as_number(self.lower_order_below) >= 0:
            raise ValueError(
                f"{type(self).__name__}: lower_order_below={self.lower_order_below!r} must be a number of steps; "
                "0 keeps the order to the end"
            )

    @property
    def law(self) -> Law:  # type: ignore[override]
        """An order, except for constant weights, which have none on uneven nodes."""
        return "bounded" if self.variable == "index" else "order"

    @property
    def own_start_order(self) -> int:
        """At most 2, because the error h^2 of the first step, a DDIM step, remains; its correction makes it h^3."""
        return min(self.order, 3 if self.corrector and not self.uncorrected else 2)

    @property
    def carries_on(self) -> bool:
        """Whether no step depends on its place in the grid."""
        return self.lower_order_below == 0 and self.uncorrected == 0

    @property
    def one_step(self) -> bool:
        """Whether no step reads a second prediction."""
        return self.points == 1 and not self.corrector

    @property
    def reads_past(self) -> bool:
        """Whether a step reads more than one prediction."""
        return self.points > 1

    @property
    def points(self) -> int:
        """The number of predictions that the predictor reads."""
        return self.order - self.corrector

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """Every line and every variable, the corrector where no named method has it, and other orders."""
        noise, data, rotation = Noise(), Data(), Rotation()
        return [
            *(cls(3, line) for line in (noise, data, rotation)),
            *(cls(3, line, "q") for line in (noise, data, rotation)),
            cls(3, noise, "t"),
            cls(3, noise, "index"),
            cls(3, data, "s"),
            cls(3, rotation, "angle"),
            cls(4, Rotation(0.4), "asinh", corrector=True),
            *(cls(4, line, "q", corrector=True) for line in (rotation, Rotation(0.5))),
            *(cls(order) for order in (1, 5)),
            cls(lower_order_below=10),
        ]

    def start(
        self,
        ode: Any,
        nodes: Sequence[Node],
        x: Tensor,
        *,
        stream: NoiseStream | None = None,
        past: Past = (),
        state: History | None = None,
    ) -> History:
        """Compute the coefficients of every step; predict at the ``past`` nodes that the first steps read."""
        require_path(self, ode)
        if state is not None and len(past):
            raise ValueError("past, state: both carry a history; give one of them")
        # Where the line is singular at the data, the closing step is the one that the method would take itself. On
        # other lines it comes after its last step, as ``denoise_to_zero`` does in DPM-Solver's reference code.
        after = int(requests(ode).denoised and bool(self.line.singular(DATA)))
        if state is not None:
            require_run(self, state, History, "history")
            if state.line != self.line:
                raise ValueError(
                    f"state: its slopes are along {state.line}, but {self} reads those along {self.line}; pass the "
                    "state of a solver on the same line"
                )
            moves = kept_plan(self, ode, state.nodes, tuple(nodes), state.predicted, None, after)
            return state._replace(moves=moves, next=0)
        exact = _read(self, past)
        moves = kept_plan(self, ode, tuple(node for node, _ in exact), tuple(nodes), False, None, after)
        slopes = tuple(single(self.line.terms(node, ode.predict(node, known))) for node, known in exact)
        return History(self.line, moves, 0, tuple(node for node, _ in exact), slopes, False)

    def step(self, ode: PathODE, a: Node, b: Node, x: Tensor, state: History | None = None) -> Step:
        """Predict at a; move to b."""
        if state is None:
            state = self.start(ode, (a, b), x)
        move = state.moves[state.next]
        prediction = ode.predict(a, x)
        if move.formula is None:
            end = prediction.mix(b.alpha, b.sigma)
            return Step(end, state=state._replace(next=state.next + 1, nodes=(), slopes=(), predicted=False))
        newest = pending(self.line.terms(a, prediction))
        frozen = None if move.reads is None or move.reads.all() else _rows(move.reads == 0, x)
        if frozen is not None:
            # The slopes of these rows may be infinite, and their weights are zero.
            newest = [(1.0, torch.where(frozen, 0.0, total(newest)))]
        ddim = None if frozen is None else prediction.mix(b.alpha, b.sigma)
        # The network's output would be one more state beside the slopes that are kept.
        del prediction
        slope, end = advance((move.formula.ratio, x), move.formula.weights, newest, state.slopes)
        slopes = (slope, *state.slopes)
        if frozen is not None and ddim is not None:
            end = torch.where(frozen, ddim, end)
        kept = self.points if self.corrector else self.points - 1
        following = History(
            self.line, state.moves, state.next + 1, (a, *state.nodes)[:kept], slopes[:kept], self.corrector
        )
        return Step(end, state=following)

    def weights(self, ode: PathODE, a: Node, b: Node, nodes: Sequence[Node]) -> list[Array]:
        """The weights of the slopes at ``nodes`` in the step from a to b; see `quadrature.adams_weights`."""
        return adams_weights(ode, self.line, self.variable, a, b, nodes)

    def plan(
        self,
        ode: PathODE,
        earlier: Sequence[Node],
        nodes: Sequence[Node],
        predicted: bool,
        most: np.ndarray | None = None,
        after: int = 0,
    ) -> tuple[Move, ...]:
        """The moves between ``nodes``, after the ``earlier`` nodes of the history, newest first.

        ``predicted`` is True if the step that led to ``nodes[0]`` can still be corrected; ``most``, if given, limits
        the number of predictions that each step reads below `points`; ``after`` is the number of steps of the grid
        that follow these: 1 for a closing step.
        """
        first, steps = len(earlier), len(nodes) - 1
        stack = _stacked([*reversed(earlier), *nodes])
        usable = self.usable(stack)
        _require_monotone(self, stack, usable, first)
        # A step reads no predictions from before a singular node, and none at all if it reaches one.
        place = np.arange(len(usable)).reshape(-1, *(1,) * (usable.ndim - 1))
        used = np.minimum(place - np.maximum.accumulate(np.where(usable, -1, place)), self.points)[:-1] * usable[1:]
        if steps + after < self.lower_order_below:
            used[first:] = np.minimum(used[first:], steps + after - place[:steps])
        if most is not None:
            used[first:] = np.minimum(used[first:], most)
        read = np.arange(self.points).reshape(-1, *(1,) * used.ndim) < used
        read &= ~self._shadowed(stack)
        # The step that led to a node is corrected there: the plan begins one step earlier if that is yet to be done.
        led = first - predicted
        planned = self._formulas(ode, stack, read, range(led, first + steps), corrector=False)
        if self.corrector:
            read[:, first : first + self.uncorrected] = False
            correctors = self._formulas(ode, stack, read, range(led, first + steps - 1), corrector=True)
            planned = _corrected(planned, correctors)
        formulas = planned.each()[predicted:]
        if used.ndim == 1:
            return tuple(map(Move, formulas))
        return tuple(map(Move, formulas, used[first:]))

    def usable(self, stack: Node) -> np.ndarray:
        """Which nodes a polynomial may pass through."""
        with np.errstate(all="ignore"):
            finite = np.isfinite(self.line.q(stack)) & np.isfinite(value(self.variable, self.line, stack))
        # Near pure noise s is large and far from its neighbours long before it is infinite.
        remote = self.variable == "s" and Noise().singular(stack)
        return finite & ~np.asarray(self.line.singular(stack) | remote)

    def _shadowed(self, stack: Node) -> np.ndarray:
        """Which of the latest slopes, newest first, each step leaves out: those `CLOSE` behind the next that it reads.

        The difference of the two slopes is divided by the distance of the nodes and multiplied by the length of the
        step; where states are corrected, one slope was evaluated before a correction and the other after it.
        """
        close = CLOSE if self.corrector else CLOSEST
        places = np.asarray(value(self.variable, self.line, stack))
        with np.errstate(invalid="ignore"):
            step = np.abs(np.diff(places, axis=0))
            nearest = places[:-1]
            found = np.zeros((self.points, *step.shape), dtype=bool)
            for j in range(1, self.points):
                behind = np.roll(places[:-1], j, axis=0)
                found[j] = np.abs(behind - nearest) < close * step
                nearest = np.where(found[j], nearest, behind)
        return found

    def _formulas(self, ode: PathODE, stack: Node, read: np.ndarray, steps: range, corrector: bool) -> Formulas:
        """The formulas of ``steps``, numbered by the node that they leave; ``read`` are the slopes of each of them."""
        index = np.asarray(steps, dtype=np.int64)
        read = read[:, index]
        ratio = np.zeros(read.shape[1:])
        weights = np.zeros((self.points + self.corrector, *ratio.shape))
        for pattern in {tuple(column) for column in read.reshape(self.points, -1).T.tolist()}:
            behind = [j for j, reads in enumerate(pattern) if reads]
            if not behind:
                continue
            here = np.nonzero((np.moveaxis(read, 0, -1) == pattern).all(axis=-1))

            def at(offset: int, here: tuple[np.ndarray, ...] = here) -> Node:
                place = (index[here[0]] + offset, *here[1:])
                return Node(*(np.asarray(values)[place] for values in stack))

            a, b = at(0), at(1)
            nodes, rows = [at(-j) for j in behind], [j + corrector for j in behind]
            if corrector:
                nodes, rows = [b, *nodes], [0, *rows]
            scale_b = self.line.scale(b)
            ratio[here] = scale_b / self.line.scale(a)
            for row, weight in zip(rows, self.weights(ode, a, b, nodes), strict=True):
                weights[row][here] = scale_b * weight
        counts = self.points - read[::-1].argmax(axis=0)
        return Formulas(ratio, weights, np.where(read[0], counts + corrector, 0))


def _corrected(planned: Formulas, correctors: Formulas) -> Formulas:
    """The predictors from corrected states, as formulas over predicted ones: each adds ratio times the correction."""
    ratio, weights, reads = planned
    both = (reads[1:] > 0) & (correctors.reads > 0)
    changes = correctors.weights.copy()
    changes[1:] -= weights[:-1, :-1]
    weights, reads = weights.copy(), reads.copy()
    weights[:, 1:] += np.where(both, ratio[1:] * changes, 0.0)
    reads[1:] = np.where(both, np.maximum(reads[1:], correctors.reads), reads[1:])
    return Formulas(ratio, weights, reads)


def _rows(mask: np.ndarray, like: Tensor) -> Tensor:
    """A mask ``(B,)`` as a tensor that selects rows of ``like``."""
    return torch.as_tensor(mask, device=like.device).reshape(-1, *(1,) * (like.ndim - 1))


def _stacked(nodes: Sequence[Node]) -> Node:
    """The nodes, in order, as one whose values are ``(n,)`` or ``(n, B)``."""
    columns = list(zip(*nodes, strict=True))
    if any(isinstance(value, np.ndarray) for column in columns for value in column):
        columns = [tuple(np.broadcast_arrays(*column)) for column in columns]
    return Node(*(np.array(column, dtype=np.float64) for column in columns))


def _require_monotone(solver: ExponentialAdams, stack: Node, usable: np.ndarray, first: int) -> None:
    """Raise `ValueError` if two nodes coincide or the history lies ahead: no polynomial passes through them."""
    with np.errstate(invalid="ignore"):
        change = np.sign(np.diff(np.asarray(value(solver.variable, solver.line, stack)), axis=0))
    change = np.where(usable[1:] & usable[:-1], change, np.nan)
    forwards, backwards = change > 0, change < 0
    wrong = (change == 0) | (backwards & forwards.any(axis=0)) | (forwards & backwards.any(axis=0))
    if wrong.any():
        # If the history lies ahead, both its own steps and the step away from it are wrong.
        i = int(np.argmax(wrong.reshape(len(wrong), -1).any(axis=1)))
        name, nodes = ("times", f"nodes {i - first} and {i + 1 - first}") if i >= first else ("past", "its nodes")
        raise ValueError(
            f"{name}: {solver} interpolates in {solver.variable}, where {nodes} coincide or turn back; give strictly "
            "monotone nodes, and a history that lies behind them, newest first"
        )


def _read(solver: ExponentialAdams, past: Past) -> Past:
    """As many exact pairs as the first step reads, newest first."""
    nearest = past[: solver.points - 1]
    # Nothing behind a singular node is read, and the node itself need not have a prediction.
    usable = [bool(solver.usable(_stacked([node])).any()) for node, _ in nearest]
    return nearest[: usable.index(False)] if False in usable else nearest
