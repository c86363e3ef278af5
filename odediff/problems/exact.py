"""Exact problems on any schedule: distributions whose predictions are closed forms, in place of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from odediff.model import Model
from odediff.prediction import Form, network_output
from odediff.schedule import Schedule
from solvers import Node, Prediction, combine
from solvers.sums import per_row


class Distribution(Protocol):
    """A law of data with known posterior means, given a noisy state; `solvers.testing` has Gaussian and Mixture."""

    def predict(self, node: Node, x: Tensor) -> Prediction:
        """``E[x0 | x]`` and ``E[eps | x]`` at ``node``."""


class KernelDensity:
    """A Gaussian kernel of one width around every image: the optimum of a network trained on these images.

    With ``w_k = softmax_k(-|x - alpha m_k|^2 / (2 v))`` and ``v = alpha^2 width^2 + sigma^2``, the posterior mean of
    the data is ``sum_k w_k m_k`` moved towards the state, ``m + alpha width^2 (x - alpha m) / v`` for ``m`` that mean.

    ``images`` are ``(K, ...)``; ``width`` is the kernel's deviation in the units of the images. Samples are computed
    one by one, in matrix-vector products: memory stays at one copy of the images, and a sample's bits do not depend on
    the rest of its batch. With ``memory``, a bound in bytes on what a call needs beside the images, matrix products
    take the whole batch and one chunk of images after another, with a running softmax: this is many times faster, and
    the bits of a sample depend on the size of its batch.
    """

    def __init__(self, images: Tensor, width: float, memory: int | None = None) -> None:
        if not 0 < width < math.inf:
            raise ValueError(f"width={width!r} must be positive and finite; it is the kernel's deviation")
        if memory is not None and memory < 1:
            raise ValueError(f"memory={memory!r} must be a number of bytes, such as 2**30, or None: sample by sample")
        self.images = images.reshape(len(images), -1)
        self.width = width
        self.memory = memory
        self.square_norms = self.images.double().square().sum(1)

    def predict(self, node: Node, x: Tensor) -> Prediction:
        """``E[x0 | x]`` and ``E[eps | x]``."""
        alphas, sigmas = (per_row(v, x.double()).reshape(-1).expand(len(x)) for v in (node.alpha, node.sigma))
        if self.memory is None:
            samples = zip(alphas.tolist(), sigmas.tolist(), x, strict=True)
            means = torch.stack([self._mean(*sample) for sample in samples]).to(x)
        else:
            means = self._means(alphas[:, None], sigmas[:, None], x.flatten(1), self.memory).to(x).reshape(x.shape)
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

    def _means(self, alphas: Tensor, sigmas: Tensor, x: Tensor, memory: int) -> Tensor:
        """The means of all samples ``(B, D)``, by a running softmax and weighted sum over chunks of images."""
        x = x.to(self.images.dtype)
        scale = -0.5 / ((alphas * self.width) ** 2 + sigmas**2)
        highest = torch.full((len(x), 1), -math.inf, dtype=torch.float64, device=x.device)
        total, weighted = torch.zeros_like(highest), torch.zeros_like(x, dtype=torch.float64)
        # Products, energies and weights exist at the same time: 4 values of 8 bytes for each pair.
        rows = max(1, memory // (32 * len(x)))
        for images, norms in zip(self.images.split(rows), self.square_norms.split(rows), strict=True):
            logits = scale * alphas * (alphas * norms - 2 * (x @ images.T).double())
            peak = torch.maximum(highest, logits.amax(1, keepdim=True))
            weights = torch.exp(logits - peak)
            kept = torch.exp(highest - peak)
            total = kept * total + weights.sum(1, keepdim=True)
            weighted = kept * weighted + (weights.to(x.dtype) @ images).double()
            highest = peak
        return weighted / total

    def nearest(self, x: Tensor) -> Tensor:
        """The index of the image nearest to each sample, int64 ``(B,)``."""
        return torch.cat([torch.cdist(rows, self.images).argmin(1) for rows in x.flatten(1).to(self.images).split(64)])


@dataclass(frozen=True)
class ExactNetwork:
    """A perfect network for ``distribution`` on ``path``, which is told the time of the path itself."""

    distribution: Distribution
    path: Schedule
    prediction: Form = "epsilon"

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        """The output in the declared form."""
        # In the dtype of the state, the start may be rounded past the end of the path.
        times = np.minimum(time.double().cpu().numpy(), self.path.latest)
        node = self.path.node(float(times[0]) if (times == times[0]).all() else times)
        return network_output(self.prediction, node, self.distribution.predict(node, x))


def exact_model(distribution: Distribution, path: Schedule, prediction: Form = "epsilon") -> Model:
    """A `Model` without error, defined at all times and for states of any floating-point dtype."""
    return Model(
        ExactNetwork(distribution, path, prediction), path, prediction, continuous=True, network_time=lambda t: t
    )
