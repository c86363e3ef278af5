"""Exact problems on any schedule: distributions whose predictions are closed forms, in place of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from odediff.model import Model
from odediff.prediction import Form, native
from odediff.schedule import Schedule
from solvers import Node, Prediction, combine
from solvers.ode import per_row


class Distribution(Protocol):
    """Data whose posterior means given a noisy state are known; `solvers.testing` has Gaussian and Mixture."""

    def predict(self, node: Node, x: Tensor) -> Prediction:
        """``E[x0 | x]`` and ``E[eps | x]`` at ``node``."""


class KernelDensity:
    """A Gaussian kernel of one width around every image: the exact optimum of a network trained on them.

    With ``w_k = softmax_k(-|x - alpha m_k|^2 / (2 v))`` and ``v = alpha^2 width^2 + sigma^2``, the posterior mean of
    the data is ``sum_k w_k m_k`` moved towards the state, ``m + alpha width^2 (x - alpha m) / v`` for ``m`` that mean.

    ``images`` are ``(K, ...)``; ``width`` is the kernel's deviation in the units of the images. Samples are treated one
    by one, in matrix-vector products: memory stays at one copy of the images, and a sample's bits do not depend on its
    batch mates.
    """

    def __init__(self, images: Tensor, width: float) -> None:
        if not 0 < width < math.inf:
            raise ValueError(f"width={width!r} must be positive and finite; it is the kernel's deviation")
        self.images = images.reshape(len(images), -1)
        self.width = width
        self.square_norms = self.images.double().square().sum(1)

    def predict(self, node: Node, x: Tensor) -> Prediction:
        """``E[x0 | x]`` and ``E[eps | x]``."""
        alphas, sigmas = (per_row(v, x).double().reshape(-1).expand(len(x)).tolist() for v in (node.alpha, node.sigma))
        means = torch.stack([self._mean(*sample) for sample in zip(alphas, sigmas, x, strict=True)]).to(x)
        variance = (node.alpha * self.width) ** 2 + node.sigma**2
        residual = combine((1.0, x), (-node.alpha, means))
        return Prediction(
            lambda: combine((1.0, means), (node.alpha * self.width**2 / variance, residual)),
            lambda: combine((node.sigma / variance, residual)),
        )

    def _mean(self, alpha: float, sigma: float, x: Tensor) -> Tensor:
        """The responsibility-weighted mean of the images for one sample."""
        inner = self.images @ x.reshape(-1).to(self.images.dtype)
        energy = alpha * (alpha * self.square_norms - 2 * inner.double())
        weights = torch.softmax(-0.5 * energy / ((alpha * self.width) ** 2 + sigma**2), dim=0)
        return (self.images.T @ weights.to(self.images.dtype)).reshape(x.shape)


@dataclass(frozen=True)
class ExactNetwork:
    """A perfect network for ``distribution`` on ``path``, told the time of the path itself."""

    distribution: Distribution
    path: Schedule
    prediction: Form = "epsilon"

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        """The output in the declared form."""
        # The dtype of the state may have rounded the start past the end of the path.
        times = np.minimum(time.double().cpu().numpy(), self.path.latest)
        node = self.path.node(float(times[0]) if (times == times[0]).all() else times)
        prediction = self.distribution.predict(node, x)
        return native(self.prediction, node, prediction.x0, prediction.eps)


def exact_model(distribution: Distribution, path: Schedule, prediction: Form = "epsilon") -> Model:
    """A `Model` without error: defined at all times, for states of any floating-point dtype."""
    return Model(
        ExactNetwork(distribution, path, prediction), path, prediction, continuous=True, network_time=lambda t: t
    )
