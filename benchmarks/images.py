"""Quality of images, in the embedded classifier's features."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.frechet import Distance
from benchmarks.problems import NetworkProblem, classifier, training_images
from odediff import metrics, zoo
from odediff.quality import kernel_distance, memorised, precision_recall
from odediff.zoo.assets import read

BATCH = 250


def few(problem: NetworkProblem, images: Tensor, rows: range) -> dict[str, float]:
    """Measures for a few dozen images: the share classified as asked, and an unbiased distance."""
    seen = _seen(images)
    return {
        "accuracy": metrics.class_accuracy(seen, problem.labels(rows), classifier()),
        "kernel_distance": kernel_distance(features(seen), _real_features()),
    }


def many(problem: NetworkProblem, images: Tensor, rows: range, root: str) -> tuple[dict[str, Any], np.ndarray]:
    """Measures for thousands of images: Frechet distance with its floor, precision and recall, memorisation.

    The floor is the distance of 2,048 real test images to the rest of the test split. The array holds the Frechet
    distances of bootstrap samples, which draw the same images for every method.
    """
    seen = _seen(images)
    found = features(seen)
    precision, recall = precision_recall(found, _real_features())
    training = training_images(root)
    distance = Distance.of(found)
    record = {
        **few(problem, images, rows),
        "frechet": distance.value,
        "frechet_floor": read("features.safetensors")["real_distance"].item(),
        "precision": precision,
        "recall": recall,
        "memorised": None if training is None else memorised(seen.flatten(1), training.flatten(1)),
    }
    return record, distance.resampled.numpy()


def features(images: Tensor) -> Tensor:
    """The classifier's features, ``(N, 96)``."""
    with torch.no_grad():
        return torch.cat([classifier().features(part) for part in images.split(BATCH)])


@cache
def _real_features() -> Tensor:
    return features(zoo.test_images()[0])


def _seen(images: Tensor) -> Tensor:
    """The images as they are displayed, clipped to [-1, 1]."""
    return images.float().clamp(-1, 1)
