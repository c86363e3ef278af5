"""A multistep method from a Gaussian process: best linear predictions instead of polynomials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers.arguments import require_whole
from solvers.gp_handover import LINE, NO_HANDOVER, Stretch, data_shares, stretch
from solvers.noise import NoiseStream
from solvers.ode import Node, PathODE
from solvers.prior import Array, Features, Prior, mean_distance
from solvers.real import Real
from solvers.solver import Law, Past, Solver, Step, require_path, require_run
from solvers.sums import Term, advance, combine, pending, single

FAR = 70.0
"""Above this level s = sigma/alpha the first step of a descent and the last of an ascent make no call: x0 is the data's
mean, up to about 1/s."""
MOST_POINTS = 8
STEEP = 3.0
"""Above this amplification, on the way to the data, the process is `Prior.amplified` and Adams' formulas, stable for
close nodes only, are not used. At guidance 2, which is below it, either change costs as often as it helps."""
MANY_STEPS = 37
"""Above this many steps a fifth past prediction helps."""


class Belief(NamedTuple):
    """The run as the process models it: the state, and past predictions, newest first, each as a linear form.

    A form is a row of numbers, one for every feature's coefficient and one for every prediction's own error.
    ``origin`` is the node at which the solve began, ``distance`` the mean distance of its nodes in log s, and
    ``before`` the previous node.
    """

    origin: Node
    distance: float
    before: Node | None
    state: Array
    predictions: tuple[Array, ...] = ()


class Move(NamedTuple):
    """One step: ``x_b = ratio x_a + sum of weight x0`` over predictions, newest first, and the belief after it.

    If ``calls`` is False, no prediction is made at a. If ``belief`` is None, the sum is over slopes. ``slopes`` is the
    number of slopes kept afterwards; ``shares`` are the coefficients of x0 and eps in the slope at a. ``here`` are the
    coefficients of x_a and the predictions in the regression for the state at a itself, if there are earlier ones: with
    it the first step along slopes begins, which therefore reads them with the weights ``older``.
    """

    ratio: Real
    weights: tuple[Real, ...]
    calls: bool
    belief: Belief | None
    slopes: int = 0
    shares: tuple[Real, Real] = (0.0, 0.0)
    here: tuple[Real, ...] = ()
    older: tuple[Real, ...] = ()


class History(NamedTuple):
    """The moves of the grid and the number of the next; past predictions of x0, newest first; the belief.

    A prediction is a factor and a tensor, and so are the ``slopes`` along `gp_handover.LINE` at ``nodes``.
    """

    moves: tuple[Move, ...]
    next: int
    predictions: tuple[Term, ...]
    belief: Belief | None
    slopes: tuple[Term, ...] = ()
    nodes: tuple[Node, ...] = ()


Reached = tuple[Tensor, tuple[Term, ...], tuple[Term, ...]]
"""The state at the end of a step, and the predictions and slopes known there."""


@dataclass(frozen=True)
class GPMultistep(Solver):
    """The best linear prediction of the next state from the current one and the network's latest predictions.

    A multistep method of one call per step

        x_b = alpha_b (c x_a/alpha_a + sum_j w_j x0_j)

    whose coefficients are those of a regression, not of a polynomial: the trajectory is modelled as a draw from the
    Gaussian process `Prior`, and c and w_j minimise the mean square error of x_b over all draws. They depend on the
    nodes and the prior alone, and are computed once for a grid.

    The network is evaluated at states with errors. A prediction made at the estimate y_est of y = x/alpha is

        x0_j = x0(s_j) + J_j (y_est - y(s_j)),    J_j = d x0 / d y,

    and y_est is itself a linear form of the draw, so past errors enter the regression with their correlations: the
    method accounts for its own error. For a Gaussian scale J is l^2/(l^2 + s^2); for other features it is the mean of
    these.

    Written as vectors of all coefficients of the features, every quantity of the run is one vector, and a step is a
    least-squares problem with one unknown for each of them (Rasmussen & Williams 2006, "Gaussian processes for machine
    learning", section 2.1; as a method for ODEs compare Skilling 1992, "Bayesian solution of ordinary differential
    equations"). The first step of a descent and the last of an ascent make no call if they stay above s = 70, where
    there is nothing to learn but the data's mean. The step to the data (sigma = 0) is like the others, so that the
    method closes by itself; see `closes`. Where predictions are reliable only down to `PathODE.end`, as those of a
    network trained on a table, there is no state at the data to aim at: the data are what denoising at that end gives,
    and the last step predicts x0 there.

    Strong classifier-free guidance, u + w (c - u) from about w = 2.6 on, amplifies the errors of its two passes
    (`PathODE.amplification`), and makes the field contract. On the way to the data the process then knows of both
    (`Prior.amplified`), and the regression makes every step.

    Between close nodes the trajectory is a polynomial to more digits than the process can resolve. There the steps are
    corrected Adams' formulas along a rotation, in asinh(s/c): towards the data, below s = 12, of order 5 between nodes
    at most 0.395 apart in it and of order 6 up to 0.26, but of orders 3 and 4 below s = 0.1; towards the noise, of
    order 3, up to 1.0. On DDPM's table, with nodes whose density in log s is a plateau, this takes grids of at least
    19, 30 and 10 calls; see `solvers.gp_handover`. On other grids inversion is the regression from the data on.
    Towards the data the first of these steps begins at what the regression makes of the state at its own node when the
    prediction there is known, which corrects the regression's last step.

    A network that predicts x0, v or a flow (`PathODE.bounded_error`) is modelled with an error of x0 that is bounded
    from s = 3 on, and steps towards the data are Adams' from closer nodes on, without that correction: of order 5 at
    most 0.26 apart and of order 6 up to 0.2.

    Args:
        points: the number of predictions that a step reads, the newest included; None means four, and five on grids of
            more than 37 steps.
        prior: the distribution of trajectories.
    """

    order: ClassVar[int] = 1
    law: ClassVar[Law] = "bounded"

    points: int | None = None
    prior: Prior = Prior()

    def __post_init__(self) -> None:
        if self.points is not None:
            require_whole("GPMultistep: points", self.points, 1, MOST_POINTS)
        if not isinstance(self.prior, Prior):
            raise TypeError(f"GPMultistep: prior={self.prior!r} must be a solvers.Prior; pass solvers.Prior()")

    @property
    def closes(self) -> bool:
        """True: the step to the data is like the others."""
        return True

    @property
    def one_step(self) -> bool:
        """False: a step reads past predictions."""
        return False

    @property
    def carries_on(self) -> bool:
        """False: coefficients are planned for the whole grid, and a first solve knows only its part."""
        return False

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """More points follow smoother trajectories."""
        return [cls(), cls(points=5)]

    def calls_over(self, ode: Any, nodes: Sequence[Node]) -> int:
        """One for each step, except the first of a descent and the last of an ascent if they stay above s = 70."""
        return sum(_tells(a, b, nodes[0], nodes[-1]) for a, b in pairwise(nodes))

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
        if x.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"x has dtype {x.dtype}, in which sums with weights of both signs lose their digits; use a float32 "
                "state, and let the network compute in half precision"
            )
        if any(isinstance(value, np.ndarray) for node in nodes for value in node):
            raise TypeError(f"nodes: {self} plans one grid for all samples; give each node one time")
        points = self.points or (5 if len(nodes) - 1 > MANY_STEPS else 4)
        denoised, steep = _denoised(nodes, ode.end), ode.amplification > STEEP and bool(nodes[-1].s < nodes[0].s)
        prior = self.prior.bounded() if ode.bounded_error else self.prior
        prior = prior.amplified(ode.amplification) if steep else prior
        if state is not None and len(past):
            raise ValueError("past, state: both carry a history; give one of them")
        if state is not None:
            require_run(self, state, History, "history")
            if state.belief is None:
                moves, belief = planned(prior, points, tuple(nodes), (), denoised)
            else:
                belief = state.belief._replace(predictions=state.belief.predictions[: points - 1])
                moves = plan(prior, points, nodes, belief, denoised)
            adams = _stretch(moves, tuple(nodes), state.nodes, denoised, steep, ode.bounded_error)
            return state._replace(
                moves=_handed_over(moves, nodes, adams, ode.bounded_error),
                next=0,
                predictions=state.predictions[: points - 1],
                belief=belief,
            )
        known = tuple(node for node, _ in past)
        moves, belief, adams = _planned_and_handed_over(
            prior, points, tuple(nodes), known, denoised, steep, ode.bounded_error
        )
        exact = past[: max(points - 1, adams.earlier - adams.first)]
        made = [(node, ode.predict(node, known)) for node, known in exact]
        predictions = tuple(single(prediction.terms(1.0, 0.0)) for _, prediction in made[: points - 1])
        slopes = tuple(single(LINE.terms(node, prediction)) for node, prediction in made if adams.formulas)
        return History(moves, 0, predictions, belief, slopes, known[: len(slopes)])

    def step(self, ode: PathODE, a: Node, b: Node, x: Tensor, state: History | None = None) -> Step:
        """Predict at a, unless the step needs no call; move to b."""
        if state is None:
            state = self.start(ode, (a, b), x)
        move = state.moves[state.next]
        end, predictions, slopes = (_regressed if move.belief else _along_slopes)(ode, a, x, state, move)
        nodes = (a, *state.nodes) if move.calls else state.nodes
        following = History(
            state.moves,
            state.next + 1,
            predictions[: len(move.belief.predictions)] if move.belief else (),
            move.belief,
            slopes[: move.slopes],
            nodes[: move.slopes],
        )
        return Step(end, state=following)


def _regressed(ode: PathODE, a: Node, x: Tensor, state: History, move: Move) -> Reached:
    """The move as a sum over predictions of x0; it also keeps the slope that a later handover will read."""
    start, predictions, slopes = (move.ratio, x), state.predictions, state.slopes
    if not move.calls:
        return combine(start, *_weighted(move.weights, predictions)), predictions, slopes
    prediction = ode.predict(a, x)
    if move.slopes:
        slopes = (single(prediction.terms(*move.shares)), *slopes)[: move.slopes]
    newest = pending(prediction.terms(1.0, 0.0))
    # The network's output would be one more state beside those that are kept.
    del prediction
    kept, end = advance(start, move.weights, newest, predictions)
    return end, (kept, *predictions), slopes


def _along_slopes(ode: PathODE, a: Node, x: Tensor, state: History, move: Move) -> Reached:
    """The move as a sum over slopes, by one of Adams' formulas."""
    start, slopes = (move.ratio, x), state.slopes
    if not move.calls:
        return combine(start, *_weighted(move.weights, slopes)), (), slopes
    newest, read, weights = pending(ode.predict(a, x).terms(*move.shares)), slopes, move.weights
    if move.older:
        read = (*slopes[: len(weights) - 1], *state.predictions)
        weights = (*weights[: 1 + len(slopes)], *move.older)
    kept, end = advance(start, weights, newest, read)
    return end, (), (kept, *slopes)


def _weighted(weights: Sequence[Real], terms: Sequence[Term]) -> list[Term]:
    return [(weight * factor, tensor) for weight, (factor, tensor) in zip(weights, terms, strict=False)]


@lru_cache(maxsize=64)
def planned(
    prior: Prior, points: int, nodes: tuple[Node, ...], past: tuple[Node, ...], denoised: Node | None = None
) -> tuple[tuple[Move, ...], Belief]:
    """The moves between ``nodes``, and the belief at the first: its state and the ``past`` predictions are exact."""
    distance = mean_distance(nodes)
    features = prior.features((nodes[0], *past), nodes[0], distance)
    # The only error of a prediction at an exact state is its own noise: the oldest has the first such coordinate.
    own = np.fliplr(np.eye(len(past))) * prior.noise
    predictions = tuple(np.append(data, noise) for data, noise in zip(features.data[1:], own, strict=True))
    state = np.append(features.state[0], np.zeros(len(past)))
    belief = Belief(nodes[0], distance, past[0] if past else None, state, predictions)
    return plan(prior, points, nodes, belief, denoised), belief


def plan(
    prior: Prior, points: int, nodes: Sequence[Node], belief: Belief, denoised: Node | None = None
) -> tuple[Move, ...]:
    """The moves between ``nodes``, from the belief at the first.

    If the node ``denoised`` is given, the last move leads to the data that denoising there gives, x0.
    """
    origin, distance, before, state, predictions = belief
    features = prior.features(nodes, origin, distance)
    targets = list(features.state[1:])
    if denoised:
        targets[-1] = prior.features((denoised,), origin, distance).data[0]
    moves = []
    for i, (a, b) in enumerate(pairwise(nodes)):
        calls = _tells(a, b, origin, nodes[-1])
        if calls:
            predictions = (_seen(state, features, i, prior.own_noise(a, before)), *predictions)[:points]
            state = np.append(state, 0.0)
        basis = np.zeros((len(state), 1 + len(predictions)))
        for column, form in enumerate((state, *predictions)):
            basis[: len(form), column] = form
        goals = np.zeros((len(state), 2))
        goals[: len(targets[i])] = np.stack([targets[i], features.state[i]], axis=1)
        ahead, here = np.linalg.lstsq(basis, goals, rcond=None)[0].T
        state = basis @ ahead
        radii = [math.hypot(node.alpha, node.sigma) for node in (a, b)]
        ratio, *weights = (ahead * radii[1]).tolist()
        own, *others = (here * radii[0]).tolist()
        corrected = (own / radii[0], *others) if calls and len(predictions) > 1 else ()
        before, predictions = a, predictions[: points - 1]
        belief = Belief(origin, distance, before, state, predictions)
        moves.append(Move(ratio / radii[0], tuple(weights), calls, belief, here=corrected))
    return tuple(moves)


@lru_cache(maxsize=64)
def _planned_and_handed_over(
    prior: Prior,
    points: int,
    nodes: tuple[Node, ...],
    past: tuple[Node, ...],
    denoised: Node | None,
    steep: bool,
    bounded: bool,
) -> tuple[tuple[Move, ...], Belief, Stretch]:
    """All moves between ``nodes`` of a solve that begins there, the belief at the first, and which are Adams'."""
    moves, belief = planned(prior, points, nodes, past[: points - 1], denoised)
    adams = _stretch(moves, nodes, past, denoised, steep, bounded)
    return _handed_over(moves, nodes, adams, bounded), belief, adams


def _stretch(
    moves: Sequence[Move],
    nodes: tuple[Node, ...],
    past: tuple[Node, ...],
    denoised: Node | None,
    steep: bool,
    bounded: bool,
) -> Stretch:
    """Which of the steps are Adams': none where slopes change too fast with the state for them."""
    return NO_HANDOVER if steep else stretch(nodes, tuple(move.calls for move in moves), past, denoised, bounded)


def _denoised(nodes: Sequence[Node], end: Node | None) -> Node | None:
    """The node where denoising gives the data at which a solve over ``nodes`` aims; None if it aims at a state.

    It is the last node but one if that lies at ``end``, up to round-off, or below, and otherwise ``end``.
    """
    if end is None or nodes[-1].sigma > 0:
        return None
    return nodes[-2] if nodes[-2].s <= end.s * (1 + 1e-9) else end


def _handed_over(moves: Sequence[Move], nodes: Sequence[Node], adams: Stretch, bounded: bool) -> tuple[Move, ...]:
    """The moves, with the stretch replacing the regression's; the slopes that it reads are kept.

    Its first step corrects the regression's last one unless the network's error is ``bounded``, which gains little.
    """
    found = list(moves)
    if adams.formulas:
        for i in range(max(0, adams.first - adams.earlier), adams.first):
            found[i] = found[i]._replace(slopes=adams.earlier, shares=LINE.shares(nodes[i]))
    for i, (ratio, weights) in enumerate(adams.formulas, adams.first):
        found[i] = Move(ratio, weights, moves[i].calls, None, adams.kept, LINE.shares(nodes[i]))
    if adams.formulas and moves[adams.first].here and not bounded:
        found[adams.first] = _corrected(found[adams.first], moves[adams.first].here, nodes[adams.first])
    return tuple(found)


def _corrected(move: Move, here: Sequence[Real], a: Node) -> Move:
    """The step from a along slopes, begun at the state ``here``, whose newest prediction follows from slope and x_a."""
    own, newest, *older = (move.ratio * coefficient for coefficient in here)
    of_state, of_slope = data_shares(a)
    first, *weights = move.weights
    return move._replace(
        ratio=own + newest * of_state, weights=(first + newest * of_slope, *weights), older=tuple(older)
    )


def _seen(state: Array, features: Features, i: int, noise: float) -> Array:
    """The prediction at the estimate ``state`` of node i: that of the process, and its response to the error."""
    known = features.state.shape[1]
    form = features.mean_response[i] * state
    form[:known] = features.data[i] + features.response[i] * (state[:known] - features.state[i])
    return np.append(form, noise)


def _tells(a: Node, b: Node, origin: Node, last: Node) -> bool:
    """Whether a step needs a call: all except the first of a descent and the last of an ascent if above s = 70."""
    return bool(min(a.s, b.s) <= FAR) or not (a == origin if b.s < a.s else b == last)
