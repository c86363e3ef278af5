"""Train the embedded classifier: one resumable run, the same weights whenever it was interrupted."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from odediff.zoo.convnet import Classifier
from odediff.zoo.training import batch_rows, generator, restore_checkpoint, save_checkpoint, warmup_cosine


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
    that resumes from ``checkpoint`` ends with the weights of an unbroken one. Returns the network in eval mode.
    """
    torch.manual_seed(recipe.seed)
    network = Classifier().to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs do not know it
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    first = restore_checkpoint(checkpoint, optimizer, network=network)

    progress = tqdm(range(first, recipe.steps), initial=first, total=recipe.steps, desc="classifier", unit="step")
    for step in progress:
        rows = batch_rows(recipe.seed, step, recipe.batch, len(images))
        seen = _mirror_half(images[rows], generator(recipe.seed, step))
        logits = network(seen.to(device, memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, labels[rows].to(device))

        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * warmup_cosine(step, recipe.steps, recipe.warmup)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        if (step + 1) % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            save_checkpoint(checkpoint, step + 1, optimizer, network=network)
    return network.eval()


def _mirror_half(images: Tensor, random: torch.Generator) -> Tensor:
    mirrored = torch.rand(len(images), 1, 1, 1, generator=random) < 0.5
    return torch.where(mirrored, images.flip(-1), images)
