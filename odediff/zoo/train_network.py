"""Train the embedded epsilon network, in a run that can be interrupted and resumed without changing the weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from odediff.zoo.training import batch_rows, generator, optimise
from odediff.zoo.unet import NULL_LABEL, UNet


@dataclass(frozen=True)
class Recipe:
    """What determines the trained weights."""

    steps: int = 7000
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 200
    ema: float = 0.999
    label_dropout: float = 0.1
    seed: int = 0
    save_every: int = 250


def train(
    images: Tensor, labels: Tensor, alphas_cumprod: Tensor, recipe: Recipe, checkpoint: Path, device: str = "cpu"
) -> UNet:
    """Minimise |eps - network(alpha_n x0 + sigma_n eps, n, label)|^2 (Ho, Jain & Abbeel 2020, eq. 14).

    ``images`` are ``(N, 1, 28, 28)`` in [-1, 1]. Every random number of step k is a function of (seed, k), so a run
    resumed from ``checkpoint`` ends with the weights of an uninterrupted one. Returns the averaged network.
    """
    torch.manual_seed(recipe.seed)
    network = UNet().to(device)
    average = UNet().to(device).requires_grad_(False)
    average.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=1e-4)
    alpha, sigma = alphas_cumprod.sqrt().float(), (1 - alphas_cumprod).sqrt().float()

    def loss_at(step: int) -> Tensor:
        rows, time, noise, dropped = _draw(step, len(images), len(alpha), recipe)
        label = labels[rows].masked_fill(dropped, NULL_LABEL)
        noisy = alpha[time].view(-1, 1, 1, 1) * images[rows] + sigma[time].view(-1, 1, 1, 1) * noise
        predicted = network(noisy.to(device), time.float().to(device), label.to(device))
        return (predicted - noise.to(device)).square().mean()

    def update_average(step: int) -> None:
        decay = min(recipe.ema, (1 + step) / (10 + step))
        for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
            slow.lerp_(fast.detach(), 1 - decay)

    modules = {"network": network, "average": average}
    optimise("train", recipe, checkpoint, optimizer, loss_at, clip=1.0, after=update_average, **modules)
    return average


def _draw(step: int, images: int, entries: int, recipe: Recipe) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, table entries, noise and dropped labels of one step, from (seed, step) alone."""
    rows = batch_rows(recipe.seed, step, recipe.batch, images)
    random = generator(recipe.seed, step)
    # Stratified times: every batch covers the whole table, which removes much of the variance of the loss.
    strata = (torch.arange(recipe.batch) + torch.rand(recipe.batch, generator=random)) / recipe.batch
    time = (strata * entries).long().clamp_(max=entries - 1)
    noise = torch.randn(recipe.batch, 1, 28, 28, generator=random)
    dropped = torch.rand(recipe.batch, generator=random) < recipe.label_dropout
    return rows, time, noise, dropped
