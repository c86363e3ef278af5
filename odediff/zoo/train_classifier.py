"""Train the embedded classifier, in a run that can be interrupted and resumed without changing the weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from odediff.zoo.convnet import Classifier
from odediff.zoo.training import batch_rows, generator, optimise


@dataclass(frozen=True)
class Recipe:
    """What determines the trained weights."""

    steps: int = 3000
    batch: int = 128
    learning_rate: float = 4e-3
    warmup: int = 200
    weight_decay: float = 1e-2
    seed: int = 0
    save_every: int = 250


def train(images: Tensor, labels: Tensor, recipe: Recipe, checkpoint: Path, device: str = "cpu") -> Classifier:
    """Minimise the cross entropy on images half of which are mirrored.

    ``images`` are ``(N, 1, 28, 28)`` in [-1, 1]. Every random number of step k is a function of (seed, k), so a run
    resumed from ``checkpoint`` ends with the weights of an uninterrupted one. Returns the network in eval mode.
    """
    torch.manual_seed(recipe.seed)
    network = Classifier().to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)

    def loss_at(step: int) -> Tensor:
        rows = batch_rows(recipe.seed, step, recipe.batch, len(images))
        seen = _mirror_half(images[rows], generator(recipe.seed, step))
        logits = network(seen.to(device, memory_format=torch.channels_last))
        return F.cross_entropy(logits, labels[rows].to(device))

    optimise("classifier", recipe, checkpoint, optimizer, loss_at, network=network)
    return network.eval()


def _mirror_half(images: Tensor, random: torch.Generator) -> Tensor:
    mirrored = torch.rand(len(images), 1, 1, 1, generator=random) < 0.5
    return torch.where(mirrored, images.flip(-1), images)
