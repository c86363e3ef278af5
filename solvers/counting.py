"""The one place where calls are counted: a wrapper around the ODE."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from solvers.contract import require_prediction, require_slope, writes
from solvers.ode import ODE, Coordinates, Node, PathODE, Prediction
from solvers.real import Real
from solvers.requests import NONE, Requests
from solvers.solution import Stats, Status
from solvers.transfer import as_array


class BudgetSpent(Exception):
    """The next evaluation would exceed ``max_nfe``."""


class Ledger:
    """The evaluations of one solve, shared by a wrapped ODE and its row selections.

    Every sample has the whole ``budget``: one that needs many evaluations takes none from the others. A method that
    follows a tolerance counts its steps by `tried`.
    """

    def __init__(self, ode: ODE, batch: int, budget: int | None) -> None:
        self.passes = ode.passes
        self.budget = math.inf if budget is None else budget
        self.batch_calls = 0
        # Arrays: inside a transform of torch.func a new tensor has no memory of its own to write to.
        self.row_calls = np.zeros(batch, dtype=np.int64)
        self.accepted: np.ndarray | None = None
        self.rejected: np.ndarray | None = None

    def left(self, index: Tensor) -> np.ndarray:
        """How many evaluations the samples ``index`` can still afford."""
        return self.budget - self.evaluations[as_array(index)]

    def count(self, index: Tensor | None) -> None:
        if self.budget < math.inf and not self.affordable[... if index is None else as_array(index)].all():
            raise BudgetSpent
        if index is None:
            self.batch_calls += 1
        else:
            self.row_calls[as_array(index)] += 1

    def tried(self, ids: np.ndarray, accepted: np.ndarray, rejected: np.ndarray) -> None:
        """Count the steps that the samples ``ids`` have just tried."""
        if self.accepted is None or self.rejected is None:
            self.accepted, self.rejected = np.zeros_like(self.row_calls), np.zeros_like(self.row_calls)
        self.accepted[ids] += accepted
        self.rejected[ids] += rejected

    @property
    def evaluations(self) -> np.ndarray:
        """The evaluations of the field for each sample, ``(B,)``."""
        return self.row_calls + self.batch_calls

    @property
    def nfe(self) -> int:
        """The evaluations of the sample that needed most."""
        return max(self.evaluations.tolist(), default=self.batch_calls)

    def stats(self, steps: int) -> Stats:
        """What was counted, for a grid of which ``steps`` are complete."""
        tried = (None if counts is None else torch.from_numpy(counts) for counts in (self.accepted, self.rejected))
        return Stats(self.nfe, self.nfe * self.passes, torch.from_numpy(self.evaluations), steps, *tried)

    @property
    def affordable(self) -> np.ndarray:
        """Which samples have an evaluation left, ``(B,)``."""
        return self.evaluations < self.budget


class CountedODE(ODE):
    """An ODE that counts its calls, holds the first one to the contract, and carries what the solve requests."""

    held = False
    """Whether a call has been checked. One is enough: a problem that breaks the contract does so at its first call."""

    def __init__(self, ode: ODE, ledger: Ledger, requests: Requests, index: Tensor | None = None) -> None:
        self.ode, self.ledger, self.requests, self.index = ode, ledger, requests, index
        self.passes = ode.passes

    def __call__(self, t: Real, x: Tensor) -> Tensor:
        self.ledger.count(self.index)
        if self.held:
            return self.ode(t, x)
        before = writes(x)
        slope = self.ode(t, x)
        require_slope(self.ode, slope, x, before)
        self.held = True
        return slope

    def node(self, t: Real) -> Node:
        return self.ode.node(t)

    def rows(self, index: Tensor) -> CountedODE:
        ids = index.cpu() if self.index is None else self.index[index.cpu()]
        return type(self)(self.ode.rows(index), self.ledger, self.requests, ids)


class CountedPathODE(CountedODE, PathODE):
    """A path ODE that counts its predictions, and shows them to `Requests.firsts`."""

    ode: PathODE

    @property
    def end(self) -> Node | None:  # type: ignore[override]
        return self.ode.end

    @property
    def amplification(self) -> float:  # type: ignore[override]
        return self.ode.amplification

    @property
    def bounded_error(self) -> bool:  # type: ignore[override]
        return self.ode.bounded_error

    def coordinates(self) -> Coordinates | None:
        return self.ode.coordinates()

    def __call__(self, t: Real, x: Tensor) -> Tensor:
        return PathODE.__call__(self, t, x)

    def predict(self, node: Node, x: Tensor) -> Prediction:
        self.ledger.count(self.index)
        prediction = self.ode.predict(node, x) if self.held else self._first(node, x)
        if (firsts := self.requests.firsts) is not None:
            firsts.see(node, prediction, self.index)
        return prediction

    def _first(self, node: Node, x: Tensor) -> Prediction:
        before = writes(x)
        prediction = self.ode.predict(node, x)
        require_prediction(self.ode, prediction, x, before)
        self.held = True
        return prediction

    def node_at(self, log_snr: Real) -> Node:
        return self.ode.node_at(log_snr)

    def rates(self, t: Real) -> tuple[Real, Real]:
        return self.ode.rates(t)


def counted(ode: ODE, batch: int, budget: int | None, requests: Requests = NONE) -> CountedODE:
    """Wrap ``ode`` so that its calls are counted and end at ``budget``, and its method finds the ``requests``."""
    wrapper = CountedPathODE if isinstance(ode, PathODE) else CountedODE
    return wrapper(ode, Ledger(ode, batch, budget), requests)


def evaluations_left(ode: ODE, rows: np.ndarray | Tensor) -> np.ndarray:
    """How many evaluations the samples ``rows`` of ``ode`` can still afford; infinite where nothing limits them."""
    if not isinstance(ode, CountedODE) or ode.ledger.budget == math.inf:
        return np.full(len(rows), math.inf)
    ids = torch.as_tensor(rows, device="cpu")
    return ode.ledger.left(ids if ode.index is None else ode.index[ids])


def affording(ode: ODE, rows: np.ndarray, calls: int, status: np.ndarray) -> np.ndarray:
    """The samples among ``rows`` that can afford ``calls`` evaluations; the ``status`` of the others becomes BUDGET."""
    poor = evaluations_left(ode, rows) < calls
    status[rows[poor]] = Status.BUDGET
    return rows[~poor]
