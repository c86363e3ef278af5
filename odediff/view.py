"""How a network sees a node: all of a prediction that does not depend on the state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from odediff.prediction import Coefficients, coefficients, require_information
from odediff.schedule import Schedule, VPTable
from solvers import Node
from solvers.real import Real, anywhere, native

if TYPE_CHECKING:
    from odediff.model import Model

MOST = 4096
"""The most views that are kept of one model: more than the nodes of most grids, and less than two megabytes."""


class View(NamedTuple):
    """What the network is told at a node, and how its output is read there.

    Args:
        time: the time that the network receives.
        scale: the factor that brings a state to the schedule that the network was trained on; None if it is there.
        data: the coefficients of the state and the output in x0, see `NetworkPrediction`.
        noise: those in eps.
    """

    time: Real
    scale: Real | None
    data: Coefficients
    noise: Coefficients


class Views:
    """The views of one model, each computed once: a grid is solved again and again.

    Nodes at which samples keep their own times, as in methods that follow a tolerance, do not come back. A time
    convention of the user's own is asked at every call: it may read what changes, and return an array that the network
    writes to. The model is an argument instead of a part: a cycle would keep its network until the garbage collector
    runs.
    """

    def __init__(self) -> None:
        self._known: dict[Node, View] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy starts without views: another thread may add some meanwhile, and a pickle may outlive their rules."""
        return type(self), ()

    def at(self, model: Model, node: Node) -> View:
        """The view of ``node``.

        Raises:
            ValueError: the network cannot be evaluated there.
        """
        if not isinstance(node.t, float) or model.network_time is not None:
            return _view(model, node)
        found = self._known.get(node)
        if found is None:
            if len(self._known) >= MOST:
                self._known.clear()
            found = self._known[node] = _view(model, node)
        return found


def told_time(model: Model, node: Node) -> Real:
    """The time that the network receives at ``node``, whether or not it is defined there."""
    return _clock(model, _seen(model, node).t)


def _view(model: Model, node: Node) -> View:
    seen = _seen(model, node)
    _require_defined(model, seen)
    require_information(model.prediction, seen)
    time = _clock(model, seen.t)
    if model.integer_time:
        _require_whole(time, remapped=model.trained_path is not None)
    scale = None
    if model.trained_path is not None:
        scale = native(np.hypot(seen.alpha, seen.sigma) / np.hypot(node.alpha, node.sigma))
    return View(time, scale, *coefficients(model.prediction, seen))


def own_path(model: Model) -> Schedule:
    """The schedule that the network was trained on."""
    return model.trained_path or model.path


def _seen(model: Model, node: Node) -> Node:
    """The node of equal signal-to-noise ratio on the schedule that the network was trained on."""
    return node if model.trained_path is None else model.trained_path.node_at(node.log_snr)


def _clock(model: Model, t: Real) -> Real:
    """The time that the network receives at a time of the schedule that it was trained on."""
    path = own_path(model)
    if model.network_time is None and model.continuous and isinstance(path, VPTable):
        return t * path.T - 1  # down to -1 at the data; the table itself ends at 0
    if model.network_time is None:
        return path.network_time(t)
    told = model.network_time(t)
    if np.asarray(told).dtype.kind not in "iuf":
        raise TypeError(f"network_time={model.network_time!r} returned {told!r} for t={t!r}; let it return numbers")
    return told


def _require_defined(model: Model, seen: Node) -> None:
    first = 0.0 if model.continuous else own_path(model).first_defined
    # The tolerance covers grids that miss the first entry by round-off.
    if anywhere(seen.t < first * (1 - 1e-9)):
        raise ValueError(
            f"times: the network would be evaluated at t={np.min(seen.t):g}, below the first time it was trained "
            f"on, {first:g}; leave 0 out of inversion grids (odediff.encode does), keep a closing rule for "
            "sampling, or declare Model(..., continuous=True)"
        )


def _require_whole(time: Real, remapped: bool) -> None:
    beside = np.abs(time - np.round(time))
    if anywhere(beside > 1e-6):
        remedy = (
            "use a grid of table entries, such as odediff.grid.uniform_t(path, steps) or odediff.grid.subsequence, "
            "and a solver that evaluates only at its nodes: DDIM, Heun or a multistep method"
        )
        if remapped:
            remedy = "sample on its own schedule: of another one, most times lie between the entries"
        raise ValueError(
            f"times: the network is declared integer_time=True but would be evaluated at {time}; "
            + (remedy if anywhere(beside > 1e-3) else "give the times in float64: float32 misses the entries")
        )
