"""How far end states lie from the exact flow, in units of the data's deviation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from odediff.points import components


class Accuracy(NamedTuple):
    """A summary of the errors of many samples; a failed sample has an infinite error."""

    rms: float
    median: float
    p90: float
    switched: float
    """The share of samples that end in another mode than the exact flow."""


def sample_errors(x: Tensor, exact: Tensor, deviation: float) -> Tensor:
    """The rms error of each sample in units of the data's deviation, float64 ``(B,)``; infinite where x is not finite.

    ``sqrt(mean over components of (x - exact)^2) / deviation``.
    """
    if x.shape != exact.shape or x.ndim < 1:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and exact {tuple(exact.shape)}; pass both in one shape, (B, ...)"
        )
    if not deviation > 0:
        raise ValueError(f"deviation={deviation!r} must be positive: it is the unit of the errors")
    errors = components(x.double() - exact.double()).square().mean(1).sqrt() / deviation
    return torch.where(errors.isfinite(), errors, torch.inf)


def accuracy(errors: Tensor, modes: Tensor, exact_modes: Tensor) -> Accuracy:
    """Summarise the errors ``(B,)`` of end states, and compare their modes ``(B,)`` with those of the exact flow."""
    lost = ~errors.isfinite()
    return Accuracy(
        rms=float(errors.square().mean().sqrt()),
        # Interpolating between infinities would give NaN.
        median=float(torch.quantile(errors, 0.5, interpolation="lower")),
        p90=float(torch.quantile(errors, 0.9, interpolation="lower")),
        switched=float(((modes != exact_modes) | lost).double().mean()),
    )
