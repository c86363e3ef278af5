"""Solving to a tolerance, with steps for each sample: what the adaptive methods share."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from solvers.arguments import require_whole
from solvers.counting import affording, evaluations_left
from solvers.exponential import DDIM
from solvers.lines import Line, Rotation, followed, singular_step
from solvers.node_states import NodeStates
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node
from solvers.own_steps import OwnSteps
from solvers.real import Real
from solvers.requests import requests
from solvers.solution import Status
from solvers.solver import Law, Past, Step, require_path
from solvers.sums import combine, per_row
from solvers.transfer import index_on

SMALLEST_STEP = 16 * float(np.finfo(np.float64).eps)
"""The smallest step as a fraction of the span, or of ``|q|`` if that is larger: a smaller one does not move."""
FLOOR = 4.0
"""The smallest relative tolerance that a state can meet, in units of its rounding error."""


class Span:
    """The interval from node a to node b in the line's variable q (t without a line), for samples at their own places.

    ``known`` is the node up to which the field may be evaluated: b, or the node before it if the last interval is
    extrapolated.
    """

    def __init__(self, ode: Any, line: Line | None, a: Node, b: Node, known: Node) -> None:
        self.ode, self.line, self.ends = ode, followed(line), (a, b, known)
        self.q_a, self.q_b, self.q_known = (float(self.q(node)) for node in self.ends)
        self.exact = {self.q_a: a, self.q_b: b, self.q_known: known}
        self.length = abs(self.q_b - self.q_a)
        self.direction = 1.0 if self.q_b > self.q_a else -1.0
        self.smallest = SMALLEST_STEP * max(self.length, abs(self.q_a), abs(self.q_b))

    def q(self, node: Node) -> Real:
        """The variable of integration."""
        return self.line.q(node)

    def node(self, q: np.ndarray) -> Node:
        """The nodes at ``q``; at the ends, the end nodes themselves, without a round trip through q."""
        found = self.line.node(self.ode, q)
        first, last = sorted((self.ends[0].t, self.ends[1].t))
        found = found._replace(t=np.minimum(np.maximum(found.t, first), last))
        for q_end, end in self.exact.items():
            there = q == q_end
            if there.any():
                found = Node(*(np.where(there, exact, value) for exact, value in zip(end, found, strict=True)))
        return found

    def scale(self, node: Node) -> Real:
        """The factor in ``x = scale z``."""
        return self.line.scale(node)

    def judged(self, node: Node) -> Real:
        """The scale by which an error of z at ``node`` is judged: on a rotation that at the end, elsewhere its own.

        On a rotation the flow of data of deviation c leaves z unchanged, and so an error of z; there the scale is
        positive at both ends of a path.
        """
        return self.scale(self.ends[1] if isinstance(self.line, Rotation) else node)

    def slope(self, ode: Any, node: Node, z: Tensor, dtype: torch.dtype) -> Tensor:
        """``dz/dq`` of the samples of ``ode`` at ``(node, z)``; the field receives a state of ``dtype``."""
        x = combine((self.line.scale(node), z)).to(dtype)
        return self.line.slope_at(ode, node, x).to(z.dtype)


def error_scale(span: Span, tolerances: tuple[float, float], node: Node, z: Tensor) -> Tensor:
    """The factor from an error of z at ``node`` to units of the tolerance: ``1 / (atol / scale + rtol |z|)``."""
    rtol, atol = tolerances
    return torch.add(per_row(atol / span.judged(node), z), z.abs(), alpha=rtol).reciprocal_()


class Run(ABC):
    """Samples that move over one `Span`: their places ``q``, states ``z`` on the line and next steps ``h``.

    It lives for one solve and is modified in place. ``ids`` are the samples' rows in the batch that is solved.
    """

    calls: int
    """Evaluations of one attempt."""
    stops_at_nodes: bool = False
    """Whether steps end at the nodes: for methods whose interpolation has a lower order."""

    def __init__(self, span: Span, z: Tensor, dtype: torch.dtype, ids: np.ndarray) -> None:
        count = len(z)
        self.span, self.z, self.dtype, self.ids = span, z, dtype, ids
        self.q = np.full(count, span.q_a)
        self.h = np.full(count, span.length)
        self.stops = np.full(count, span.q_known)
        self.broken = np.zeros(count, dtype=bool)  # whether the last attempt met a value that is not finite
        self.calm = np.ones(count, dtype=bool)  # whether it was not rejected

    @abstractmethod
    def attempt(self, ode: Any) -> np.ndarray:
        """Try a step from every place and move the samples whose error is small enough; return which moved."""

    def between(self, rows: np.ndarray, q: np.ndarray) -> Tensor:
        """The line's states of ``rows`` at ``q``, inside the steps that they have just made."""
        raise NotImplementedError(f"{type(self).__name__}: override between, or set stops_at_nodes = True")

    @abstractmethod
    def piece(self, row: int) -> Any:
        """The last step of a row as a function of q, which outlives the run; see `Dense`."""

    def finish(self) -> np.ndarray:
        """Move samples to the end without a call where that is accurate enough; return which moved."""
        return np.zeros(len(self.ids), dtype=bool)

    def closing_errors(self, rows: np.ndarray) -> np.ndarray:
        """The error estimates, in units of the tolerance, of samples that `finish` moved to the end."""
        return np.zeros(len(rows))

    @abstractmethod
    def keep(self, rows: np.ndarray) -> None:
        """Continue with these rows alone."""

    def _keep_places(self, rows: np.ndarray) -> Tensor:
        for name in ("q", "h", "stops", "broken", "calm", "ids"):
            setattr(self, name, getattr(self, name)[rows])
        index = index_on(self.z.device, rows)
        self.z = self.z[index]
        return index

    def target(self) -> np.ndarray:
        """The ends of the next attempts: exactly at the next stop, or well before it, never just short of it."""
        left = np.abs(self.stops - self.q)
        short = np.minimum(self.h, 0.6 * left)
        return np.where(self.h >= 0.95 * left, self.stops, self.q + self.span.direction * short)


class Journey:
    """The samples of a `Run` on their way: attempts until each has arrived or failed, and what they leave behind.

    The states at the ``nodes`` after the first go to ``passed``, the steps to `Requests.dense`, the outcome of each
    sample to ``status``, and the error that `Run.finish` left to ``closing_errors``, both ``(B,)`` of the whole batch.
    """

    def __init__(self, ode: Any, nodes: Sequence[Node], run: Run, passed: NodeStates, status: np.ndarray) -> None:
        self.ode, self.run, self.passed, self.status = ode, run, passed, status
        self.places = np.array([float(run.span.q(node)) for node in nodes[1:]])
        self.closing_errors = np.zeros(len(status))
        self.dense, self.ledger = requests(ode).dense, getattr(ode, "ledger", None)
        self.live = self._live()

    def attempts(self, most: int) -> Iterator[Tensor]:
        """Make at most so many attempts; yield the states at inner nodes that all samples have passed."""
        run, status = self.run, self.status
        status[run.ids[run.broken]] = Status.NON_FINITE
        self._leave(run.broken)
        for _ in range(most):
            self._finish()
            poor = evaluations_left(self.ode, run.ids) < run.calls
            status[run.ids[poor]] = Status.BUDGET
            self._leave(poor)
            if not len(run.ids):
                return
            yield from self.passed.by_all(run.ids)
            self._attempt()
        if len(run.ids):
            self._finish()
        status[run.ids] = Status.BUDGET
        self._leave(np.ones(len(run.ids), dtype=bool))

    def _attempt(self) -> None:
        """One attempt of all samples; those that arrive, or whose step is too small, leave."""
        run = self.run
        if run.stops_at_nodes:
            run.stops = self.places[self.passed.following[run.ids]]
        moved = run.attempt(self.live)
        if self.ledger is not None:
            self.ledger.tried(run.ids, moved, ~run.calm)
        self._report(moved)
        arrived = moved & (run.q == run.span.q_b)
        stuck = ~arrived & ~(run.h >= run.span.smallest)
        if stuck.any():
            self.status[run.ids[stuck]] = np.where(run.broken[stuck], Status.NON_FINITE, Status.STEP_UNDERFLOW)
        self._leave(stuck | arrived)

    def _finish(self) -> None:
        """Let samples leave that can be moved to the end without a call."""
        ended = self.run.finish()
        if ended.any():
            self.closing_errors[self.run.ids[ended]] = self.run.closing_errors(np.flatnonzero(ended))
            self._report(ended)
            self._leave(ended)

    def _report(self, moved: np.ndarray) -> None:
        """Hand over the steps of the samples that have ``moved``, and the states at the nodes that they passed."""
        run, span, places = self.run, self.run.span, self.places
        if self.dense is not None:
            for row in np.flatnonzero(moved):
                self.dense.add(int(run.ids[row]), run.piece(int(row)))
        while True:
            following = self.passed.following[run.ids]
            place = places[np.minimum(following, len(places) - 1)]
            rows = np.flatnonzero(moved & (following < len(places)) & (span.direction * (run.q - place) >= 0))
            if not len(rows):
                return
            q, device = place[rows], run.z.device
            z, inside = run.z[index_on(device, rows)], np.flatnonzero((q != run.q[rows]) & (not run.stops_at_nodes))
            if len(inside):
                z[index_on(device, inside)] = run.between(rows[inside], q[inside])
            self.passed.put(run.ids[rows], self._states(q, z))

    def _leave(self, rows: np.ndarray) -> None:
        """Continue without these rows, whose states hold from here on."""
        run = self.run
        if rows.any():
            gone = np.flatnonzero(rows)
            states = run.z[index_on(run.z.device, gone)]
            self.passed.stay(run.ids[gone], self._states(run.q[gone], states))
            run.keep(np.flatnonzero(~rows))
            self.live = self._live()

    def _states(self, q: np.ndarray, z: Tensor) -> Tensor:
        """The states x, in the dtype of the solve, from those on the line at ``q``."""
        span = self.run.span
        return combine((span.scale(span.node(q)), z)).to(self.run.dtype)

    def _live(self) -> Any:
        """The problem of the samples that are still on their way."""
        return _rows(self.ode, self.run.ids, self.run.z.device)


class Tolerance(OwnSteps):
    """A method that follows ``rtol`` and ``atol`` instead of a grid.

    A step is accepted when the root mean square over components of ``error / (atol + rtol |x|)`` is at most 1, for each
    sample by itself; ``atol=None`` is ``rtol``. On a `Rotation`, whose scale is R, atol is that at the end of the span,
    and ``atol R/R_end`` elsewhere: an error counts by what the flow leaves of it. Samples that arrive or fail leave the
    batch. The states at the inner nodes of the grid come from the method's interpolation, or steps end there, and a
    step that leaves or reaches a node where the line degenerates is a DDIM step. A sample that fails keeps the last
    state that it reached, and no sample makes more than ``max_steps`` attempts between singular nodes.
    """

    law: ClassVar[Law] = "tolerance"
    max_steps: int

    def __post_init__(self) -> None:
        self.require_settings("1e-3")
        require_whole(f"{type(self).__name__}: max_steps", self.max_steps, 1)

    @property
    def one_step(self) -> bool:
        """False: a step's size follows from the steps before."""
        return False

    def start(
        self,
        ode: ODE,
        nodes: Sequence[Node],
        x: Tensor,
        *,
        stream: NoiseStream | None = None,
        past: Past = (),
        state: Any = None,
    ) -> None:
        """Raise for what cannot be solved, before the first call; a run has no state."""
        if self.way is not None:
            require_path(self, ode)
        least = FLOOR * torch.finfo(x.dtype).eps
        if self.rtol < least:
            raise ValueError(
                f"{type(self).__name__}: rtol={self.rtol!r} is below what a {x.dtype} state can meet; use at least "
                f"{least:.1e}, or pass a state of higher precision"
            )

    @abstractmethod
    def begin(self, ode: Any, span: Span, z: Tensor, dtype: torch.dtype, ids: np.ndarray) -> Run:
        """Start the samples ``ids`` from ``z``, on the line at the start of ``span``; costs `begin_calls`."""

    @property
    @abstractmethod
    def begin_calls(self) -> int:
        """Evaluations before the first attempt."""

    def solve(self, ode: Any, nodes: Sequence[Node], x: Tensor, state: Any) -> Iterator[Step]:
        """Solve part by part; the state at a node is yielded when the last sample has passed it."""
        status, done = np.zeros(len(x), dtype=np.int64), 0
        if ledger := getattr(ode, "ledger", None):  # a solve that ends before its first step has counted none
            none = np.zeros(0, dtype=np.int64)
            ledger.tried(none, none, none)
        for singular, pairs in groupby(
            pairwise(nodes), key=lambda pair: bool(np.any(singular_step(self.way, ode, *pair)))
        ):
            part = [nodes[done], *(b for _, b in pairs)]
            done += len(part) - 1
            for reached in (_ddim if singular else self._follow)(ode, part, x, status):
                yield Step(reached, status=torch.from_numpy(status.copy()))
            x = reached

    def _follow(self, ode: Any, nodes: Sequence[Node], x: Tensor, status: np.ndarray) -> Iterator[Tensor]:
        """The states at the nodes after the first; samples that fail keep their last state and get a ``status``."""
        span = Span(ode, self.way, nodes[0], nodes[-1], nodes[-2 if requests(ode).free_end else -1])
        passed = NodeStates(x, len(nodes) - 1)
        ids = affording(ode, np.flatnonzero(status == Status.SUCCESS), self.begin_calls, status)
        if len(ids):
            wide = torch.promote_types(x.dtype, torch.float32)
            z = combine((1 / float(span.scale(nodes[0])), x[index_on(x.device, ids)].to(wide)))
            run = self.begin(_rows(ode, ids, x.device), span, z, x.dtype, ids)
            journey = Journey(ode, nodes, run, passed, status)
            yield from journey.attempts(self.max_steps)
            self._judge(journey.closing_errors, status)
        yield from passed.rest()

    def _judge(self, closing_errors: np.ndarray, status: np.ndarray) -> None:
        """Set the status of samples that missed the tolerance at the end, and warn of the error that remains."""
        missed = ~(closing_errors <= 1)
        status[missed] = Status.FLOOR
        if missed.any():
            warnings.warn(
                f"rtol={self.rtol}: the extrapolation over the last interval leaves an error of about "
                f"{closing_errors[missed].max() * self.rtol:.1e} in {missed.sum()} samples; raise rtol to that, or, if "
                "the field is defined there, use closing=None (for an odediff model, declare continuous=True)",
                stacklevel=2,
            )


def _ddim(ode: Any, nodes: Sequence[Node], x: Tensor, status: np.ndarray) -> Iterator[Tensor]:
    """The DDIM steps of the samples that have not failed and can afford them."""
    for a, b in pairwise(nodes):
        ids = affording(ode, np.flatnonzero(status == Status.SUCCESS), 1, status)
        if len(ids):
            index = index_on(x.device, ids)
            x = x.index_copy(0, index, DDIM().step(_rows(ode, ids, x.device), a, b, x[index]).x)
        yield x


def _rows(ode: Any, ids: np.ndarray, device: torch.device) -> Any:
    return ode.rows(index_on(device, ids))
