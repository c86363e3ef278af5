"""Thresholding: keep the predicted data inside the range of images."""

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
    """Clip each sample's x0 at its own quantile of |x0|, at least ``limit``, and scale it back to ``limit``.

    Saharia et al. 2022 ("Imagen"), section 2.3 and appendix figure A.10: ``s = max(quantile(|x0|), limit)``, then
    ``x0 = clip(x0, -s, s) limit / s``. diffusers bounds s by ``sample_max_value``, by default at 1, which makes its
    thresholding `StaticThreshold`. ``keep_eps`` as in `threshold_prediction`.
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
    """Threshold x0, and let eps follow so that the two still make up the state.

    ``eps' = eps + (alpha / sigma) (x0 - x0')``; at sigma = 0, and where nothing was cut, eps stays as it was. With
    ``keep_eps`` it stays so everywhere, and the two no longer make up the state: that is what DDIM of diffusers does
    with ``clip_sample``, unless it is told ``use_clipped_model_output``. Methods that go along the noise line read eps
    alone, and see nothing of the threshold then.
    """
    x0 = threshold(prediction.x0)
    if threshold.keep_eps:
        return Prediction(x0, lambda: prediction.eps)
    ratio = native(np.where(np.equal(node.sigma, 0), 0.0, divide(node.alpha, node.sigma)))
    return Prediction(x0, lambda: combine((1.0, prediction.eps), (ratio, prediction.x0 - x0)))


def _quantile(rows: Tensor, q: float) -> Tensor:
    """The quantile of every row, linear between two of its values; `torch.quantile` takes no more than 2^24."""
    place = q * (rows.shape[1] - 1)
    below = math.floor(place)
    ranks = below, math.ceil(place)
    if rows.is_cuda:  # there torch has no kthvalue for those who ask for deterministic algorithms
        lower, upper = rows.sort(dim=1).values[:, ranks].unbind(1)
    else:
        lower, upper = (rows.kthvalue(1 + rank, dim=1).values for rank in ranks)
    return torch.lerp(lower, upper, place - below)


def _require_limit(limit: float) -> None:
    if not 0 < as_number(limit) < math.inf:
        raise ValueError(f"threshold: limit={limit!r} must be positive and finite; images in [-1, 1] have limit 1")
