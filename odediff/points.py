"""Samples as points: checked, in float64, ``(rows, D)``; and their distances."""

import math

import torch
from torch import Tensor


def finite(name: str, values: Tensor) -> Tensor:
    """``values`` on the CPU in float64; ValueError unless all of them are finite."""
    values = values.detach().to("cpu", torch.float64)
    if not values.isfinite().all():
        raise ValueError(f"{name} holds {int((~values.isfinite()).sum())} values that are not finite; drop their rows")
    return values


def require_finite(name: str, x: Tensor) -> None:
    """Raise `ValueError` if some samples of ``x`` contain infinities or NaNs: the network would be blamed for them."""
    if not (known := x.isfinite()).all():
        broken = (~components(known)).any(1).nonzero().ravel().tolist()
        raise ValueError(f"{name}: samples {broken} contain infinities or NaNs; leave them out")


def components(x: Tensor) -> Tensor:
    """The components of each sample, ``(B, D)``: samples ``(B,)`` have one, and a batch may be empty."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def as_points(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both as ``(rows, D)``, finite and in float64."""
    x, y = (finite(name, points) for name, points in (("x", x), ("y", y)))
    x, y = (points[:, None] if points.ndim == 1 else points for points in (x, y))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or 0 in (*x.shape, *y.shape):
        raise ValueError(f"x {tuple(x.shape)} and y {tuple(y.shape)}: pass (N, D) and (M, D), neither of them empty")
    return x, y


def distances(x: Tensor, y: Tensor) -> Tensor:
    """The Euclidean distances ``(N, M)`` between the points of x and of y, to their last digits."""
    # The default mode forms |x|^2 + |y|^2 - 2 x y, which loses half of the digits of small distances.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
