"""Accurate references: the network's exact flow, as closely as a short computation allows."""

from __future__ import annotations

from torch import Tensor

from odediff.model import Model
from odediff.sampling import sample
from solvers import RK4, Rotation

REFERENCE = RK4(line=Rotation())


def reference_end(model: Model, noise: Tensor, steps: int, progress: bool = False) -> Tensor:
    """The end of the probability flow from ``noise``, by RK4 on the rotation line in ``steps`` steps."""
    return sample(model, noise=noise, solver=REFERENCE, steps=steps, progress=progress)
