"""What both trainings share: everything random about step k is a function of (seed, k), so a run can be resumed."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from odediff.files import replacing


class Pace(Protocol):
    """The part of a recipe that the loop reads."""

    @property
    def steps(self) -> int:
        """The number of steps."""

    @property
    def learning_rate(self) -> float:
        """The largest learning rate."""

    @property
    def warmup(self) -> int:
        """The number of steps of the warm-up."""

    @property
    def save_every(self) -> int:
        """The number of steps from one checkpoint to the next."""


def optimise(
    name: str,
    recipe: Pace,
    checkpoint: Path,
    optimizer: torch.optim.AdamW,
    loss_at: Callable[[int], Tensor],
    clip: float | None = None,
    after: Callable[[int], None] = lambda step: None,
    **modules: nn.Module,
) -> None:
    """Minimise ``loss_at(step)`` over the parameters of ``modules["network"]``, from where ``checkpoint`` stops.

    ``clip`` bounds the norm of the gradient; ``after`` is called after every step.
    """
    first = restore_checkpoint(checkpoint, optimizer, **modules)
    progress = tqdm(range(first, recipe.steps), initial=first, total=recipe.steps, desc=name, unit="step")
    for step in progress:
        loss = loss_at(step)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * warmup_cosine(step, recipe.steps, recipe.warmup)
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(modules["network"].parameters(), clip)
        optimizer.step()
        after(step)
        if (step + 1) % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            save_checkpoint(checkpoint, step + 1, optimizer, **modules)


def generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step."""
    return torch.Generator().manual_seed((seed << 40) + step)


def batch_rows(seed: int, step: int, batch: int, size: int) -> Tensor:
    """The rows of the data set for one step: a new shuffle in each epoch, without its incomplete last batch."""
    epoch, position = divmod(step, size // batch)
    shuffle = torch.Generator().manual_seed((seed << 40) + (1 << 39) + epoch)
    return torch.randperm(size, generator=shuffle)[position * batch : (position + 1) * batch]


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """The factor on the learning rate: linear warm-up, then half a cosine down to zero (Loshchilov & Hutter 2017)."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def save_checkpoint(path: Path, step: int, optimizer: torch.optim.AdamW, **modules: nn.Module) -> None:
    """Write step, modules and the moments of ``modules["network"]`` in one file, replaced atomically."""
    tensors = {f"{prefix}.{k}": v for prefix, module in modules.items() for k, v in module.state_dict().items()}
    for name, _, state in _moments(modules["network"], optimizer):
        tensors |= {f"mean.{name}": state["exp_avg"], f"square.{name}": state["exp_avg_sq"]}
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    with replacing(path) as partial:
        save_file(tensors | {"step": torch.tensor(step)}, partial)


def restore_checkpoint(path: Path, optimizer: torch.optim.AdamW, **modules: nn.Module) -> int:
    """Undo `save_checkpoint` and return the next step; 0 if ``path`` does not exist yet.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.exists():
        return 0
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error}); delete it to train anew") from error
    step = int(tensors["step"])
    for prefix, module in modules.items():
        module.load_state_dict({k: tensors[f"{prefix}.{k}"] for k in module.state_dict()})
    for name, parameter, state in _moments(modules["network"], optimizer):
        state["step"] = torch.tensor(float(step))
        state["exp_avg"] = torch.empty_like(parameter).copy_(tensors[f"mean.{name}"])
        state["exp_avg_sq"] = torch.empty_like(parameter).copy_(tensors[f"square.{name}"])
    return step


def _moments(network: nn.Module, optimizer: torch.optim.AdamW) -> Iterator[tuple[str, nn.Parameter, dict[str, Tensor]]]:
    for name, parameter in network.named_parameters():
        yield name, parameter, optimizer.state[parameter]
