"""From a model to its ODE."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import copy
from functools import cached_property

from torch import Tensor

from odediff.model import Model
from solvers import Node, PathODE, Prediction
from solvers.ode import Coordinates
from solvers.real import Real


class ProbabilityFlow(PathODE):
    """``dx/dt = alpha'(t) x0(x, t) + sigma'(t) eps(x, t)``, with the model's predictions of x0 and eps."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.passes, self.amplification = model.passes, model.amplification
        self.bounded_error = model.prediction in ("x0", "v", "flow")

    @cached_property
    def end(self) -> Node | None:  # type: ignore[override]
        """The node at the schedule's end, where grids end; None if the model is declared continuous."""
        return None if self.model.continuous else self.node(self.model.path.end)

    def coordinates(self) -> Coordinates:
        return Coordinates(self.model.path)

    def predict(self, node: Node, x: Tensor) -> Prediction:
        return self.model.predict(node, x)

    def node(self, t: Real) -> Node:
        return self.model.path.node(t)

    def nodes(self, times: Sequence[float]) -> list[Node]:
        return self.model.path.nodes(times)

    def node_at(self, log_snr: Real) -> Node:
        return self.model.path.node_at(log_snr)

    def rates(self, t: Real) -> tuple[Real, Real]:
        return self.model.path.rates(t)

    def require_batch(self, batch: int) -> None:
        self.model.require_batch(batch)

    def rows(self, index: Tensor) -> ProbabilityFlow:
        """The same flow for the samples ``index`` alone; a subclass with data for each sample overrides this."""
        part = copy(self)  # of a subclass too, with its own predictions
        part.model = self.model.rows(index)
        return part


def probability_flow(model: Model) -> ProbabilityFlow:
    """The probability-flow ODE of ``model``: solved towards noise it inverts, towards data it samples."""
    require_model(model)
    return ProbabilityFlow(model)


def require_model(model: object) -> None:
    """Raise unless ``model`` is a `Model` whose path begins in the data; warn if its network is unsteady.

    Each public function calls this once, directly: the warning points at the line that called that function.
    """
    if not isinstance(model, Model):
        raise TypeError(
            f"model must be an odediff.Model, not a {type(model).__name__}; wrap the network: "
            "odediff.Model(network, path)"
        )
    data = model.path.node(0.0)
    if not (data.alpha == 1 and data.sigma == 0):
        raise ValueError(
            f"path={model.path!r} has alpha={data.alpha:g} and sigma={data.sigma:g} at t = 0, so its samples would "
            "keep noise; let it begin in the data, alpha = 1 and sigma = 0 (odediff.VPCosine does so)"
        )
    if model.unsteady:
        warnings.warn(
            f"the output of network {type(model.network).__name__} depends on dropout, other chance or the statistics "
            "of its batch, so no seed fixes a sample; end its training mode by network.eval(), and let every batch "
            "norm track running statistics",
            stacklevel=3,
        )
