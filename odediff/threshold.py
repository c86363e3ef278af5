"""Thresholding keeps the predicted data inside the range of images."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solvers import Node, Prediction, combine
from solvers.arguments import as_number
from solvers.real import divide, native


@dataclass(frozen=True)
class StaticThreshold:
    """Clip x0 to [-limit, limit]; ``keep_eps`` as in `threshold_prediction`."""

    limit: float = 1.0
    keep_eps: bool = False

    def __post_init__(self) -> None:
        _require_limit(self.limit)

    def __call__(self, x0: Tensor) -> Tensor:
        return x0.clamp(-self.limit, self.limit)


@dataclass(frozen=True)
class DynamicThreshold:
    """Clip each sample's x0 at its own quantile of |x0|, but at least at ``limit``, and scale it back to ``limit``.

    Saharia et al. 2022 ("Imagen"), section 2.3 and appendix figure A.10: ``s = max(quantile(|x0|), limit)``, then
    ``x0 = clip(x0, -s, s) limit / s``. diffusers bounds s by ``sample_max_value``, whose default of 1 turns its
    thresholding into `StaticThreshold`. ``keep_eps`` as in `threshold_prediction`.
    """

    quantile: float = 0.995
    limit: float = 1.0
    keep_eps: bool = False

    def __post_init__(self) -> None:
        _require_limit(self.limit)
        if not 0 < as_number(self.quantile) <= 1:
            raise ValueError(f"DynamicThreshold: quantile={self.quantile!r} must lie in (0, 1]; Imagen uses 0.995")

    def __call__(self, x0: Tensor) -> Tensor:
        if not len(x0):
            return x0
        rows = x0.reshape(len(x0), -1)
        bound = _quantile(rows.abs(), self.quantile).clamp_(min=self.limit)[:, None]
        return (rows.clamp(-bound, bound) * (self.limit / bound)).reshape(x0.shape)


Threshold = StaticThreshold | DynamicThreshold


def threshold_prediction(threshold: Threshold, node: Node, prediction: Prediction) -> Prediction:
    """Threshold x0, and adapt eps so that the two still make up the state.

    ``eps' = eps + (alpha / sigma) (x0 - x0')``; at sigma = 0, and where nothing was clipped, eps does not change. With
    ``keep_eps`` it never changes, and the two no longer make up the state: diffusers' DDIM does this with
    ``clip_sample``, unless ``use_clipped_model_output`` is set. Methods on the noise line read only eps, so they then
    ignore the threshold.
    """
    x0 = threshold(prediction.x0)
    if threshold.keep_eps:
        return Prediction(x0, lambda: prediction.eps)
    ratio = native(np.where(np.equal(node.sigma, 0), 0.0, divide(node.alpha, node.sigma)))
    return Prediction(x0, lambda: combine((1.0, prediction.eps), (ratio, prediction.x0 - x0)))


def _quantile(rows: Tensor, q: float) -> Tensor:
    """The quantile of every row, interpolated linearly; `torch.quantile` accepts at most 2^24 values."""
    place = q * (rows.shape[1] - 1)
    below = math.floor(place)
    ranks = below, math.ceil(place)
    if rows.is_cuda:  # on CUDA, torch has no deterministic kthvalue
        lower, upper = rows.sort(dim=1).values[:, ranks].unbind(1)
    else:
        lower, upper = (rows.kthvalue(1 + rank, dim=1).values for rank in ranks)
    return torch.lerp(lower, upper, place - below)


def _require_limit(limit: float) -> None:
    if not 0 < as_number(limit) < math.inf:
        raise ValueError(
            f"threshold: limit={limit!r} must be positive and finite; for images in [-1, 1] the limit is 1"
        )
