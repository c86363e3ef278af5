"""Accurate references: the network's exact flow, as closely as a short computation allows."""

from __future__ import annotations

from torch import Tensor

from odediff.model import Model
from odediff.sampling import sample
from solvers import RK4, Heun, Rotation


def reference_end(model: Model, noise: Tensor, steps: int, progress: bool = False) -> Tensor:
    """The end of the probability flow from ``noise``, by RK4 on the rotation line in ``steps`` steps.

    A network that knows whole times alone has none between the entries of its table, where RK4 would ask it: there it
    is Heun's method on the same line, in as many calls, or in steps from each entry to the next.
    """
    if model.integer_time:
        most = getattr(model.path, "T", 2 * steps)
        return sample(model, noise=noise, solver=Heun(Rotation()), steps=min(2 * steps, most), progress=progress)
    return sample(model, noise=noise, solver=RK4(Rotation()), steps=steps, progress=progress)
