"""What a solve asks of a method beyond the steps of its grid."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers.dense import Dense
from solvers.ode import Node, Prediction


class Recorded(NamedTuple):
    """A prediction at a node, of the samples ``ids`` in ascending order, or of all."""

    node: Node
    prediction: Prediction
    ids: Tensor | None

    def data(self, samples: Tensor) -> Tensor:
        """The predicted data of ``samples``, which must be among ``ids``."""
        x0 = self.prediction.x0
        rows = samples if self.ids is None else torch.searchsorted(self.ids, samples)
        return x0 if len(rows) == len(x0) else x0[rows.to(x0.device)]


class FirstPredictions:
    """The first prediction of each of the latest ``kept`` steps: the one at the node that the step leaves."""

    def __init__(self, kept: int) -> None:
        self._finished: deque[Recorded] = deque(maxlen=kept)
        self._current: Recorded | None = None

    def see(self, node: Node, prediction: Prediction, ids: Tensor | None) -> None:
        """Record the prediction, if it is the first of its step."""
        if self._current is None:
            self._current = Recorded(node, prediction, ids)

    def finish_step(self) -> None:
        """Keep the first prediction of the step that has just been made."""
        if self._current is not None:
            self._finished.append(self._current)
            self._current = None

    def drop(self) -> None:
        """Forget a prediction that belongs to no step, such as those at the nodes of ``past``."""
        self._current = None

    @property
    def latest(self) -> list[Recorded]:
        """Those of finished steps, oldest first."""
        return list(self._finished)


@dataclass(frozen=True)
class Requests:
    """What a solve asks of a method beyond its steps; `requests` finds them on the ODE that the method is given.

    Args:
        denoised: a closing DDIM step follows the method's own, as one more step of the grid.
        free_end: the last interval costs no call, for methods with `Solver.extrapolates`.
        dense: receives the steps of a method that follows a tolerance, as functions of its variable.
        firsts: receives the first prediction of each step.
    """

    denoised: bool = False
    free_end: bool = False
    dense: Dense | None = None
    firsts: FirstPredictions | None = None


NONE = Requests()
"""Nothing beyond the steps, as where a method is used without a solve."""


def requests(ode: Any) -> Requests:
    """What the solve of ``ode`` asks of its method."""
    found: Requests = getattr(ode, "requests", NONE)
    return found
