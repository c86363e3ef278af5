"""Frechet distances of images to the test split, with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odediff import zoo
from odediff.metrics import feature_statistics, frechet_distance

RESAMPLES = 100
"""Bootstrap samples from which deviations are estimated."""
SEED = 0
WIDTH = 1.96
"""Half the width of a 95 % interval, in deviations."""


@dataclass(frozen=True)
class Distance:
    """A Frechet distance and those of the bootstrap samples, which are paired between sets of equally many images."""

    value: float
    resampled: Tensor

    @staticmethod
    def of(features: Tensor) -> Distance:
        """The distance of ``features`` ``(N, D)`` to those of the 10,000 test images."""
        generator = torch.Generator().manual_seed(SEED)
        draws = torch.randint(len(features), (RESAMPLES, len(features)), generator=generator)
        values = [
            frechet_distance(*feature_statistics(rows), *zoo.feature_statistics())
            for rows in (features, *(features[draw] for draw in draws))
        ]
        return Distance(values[0], torch.tensor(values[1:]))

    def __str__(self) -> str:
        return f"{self.value:.2f} +- {self.resampled.std():.2f}"

    def against(self, other: Distance) -> tuple[float, float]:
        """The difference from another distance, and its deviation."""
        return self.value - other.value, float((self.resampled - other.resampled).std())

    def interval(self, other: Distance) -> tuple[float, float]:
        """The 95 % interval of the difference from another distance."""
        difference, deviation = self.against(other)
        return difference - WIDTH * deviation, difference + WIDTH * deviation
