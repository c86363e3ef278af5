"""Score a model's class-conditional samples: are they of the requested class, and distributed like real images?"""

from typing import NamedTuple

import torch
from torch import Tensor

from odediff import metrics, zoo
from odediff.model import Model
from odediff.sampling import sample
from odediff.zoo.assets import read
from odediff.zoo.unet import CLASSES
from solvers import DDIM


class Scores(NamedTuple):
    """What `evaluate` returns."""

    guidance: float
    accuracy: float
    """The share of samples that the classifier assigns to the requested class."""
    frechet: float
    """The distance of the samples' features to those of the full test split."""
    real: float
    """The floor: the distance of 2,048 test images' features to those of the rest of the test split."""


def evaluate(
    model: Model,
    guidance: float,
    samples: int = 2048,
    steps: int = 50,
    seed: int = 0,
    device: torch.device | str = "cpu",
    batch: int = 256,
) -> Scores:
    """Draw ``samples`` images, class after class in turn, by DDIM in ``steps`` steps, clip them to [-1, 1], score them.

    Equal seeds give equal noise, whatever the guidance and the batch.
    """
    labels = torch.arange(samples) % CLASSES
    parts = []
    for rows in torch.arange(samples).split(batch):
        conditioned = model.condition(label=labels[rows], guidance=guidance)
        shape = (len(rows), 1, 28, 28)
        drawn = sample(conditioned, shape, solver=DDIM(), steps=steps, seed=seed, samples=rows.tolist(), device=device)
        parts.append(drawn.cpu().clamp(-1, 1))
    images = torch.cat(parts)
    real = read("features.safetensors")["real_distance"].item()
    return Scores(guidance, metrics.class_accuracy(images, labels, zoo.classifier()), frechet(images, batch), real)


def frechet(images: Tensor, batch: int = 256) -> float:
    """The distance of images ``(N, 1, 28, 28)`` to the full test split, in the embedded classifier's features."""
    network = zoo.classifier()
    with torch.no_grad():
        features = torch.cat([network.features(part) for part in images.split(batch)])
    return metrics.frechet_distance(*metrics.feature_statistics(features), *zoo.feature_statistics())
