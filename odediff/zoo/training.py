"""What both trainings share: everything random about step k is a function of (seed, k), so any step can come next."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from odediff.files import replacing


def generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step."""
    return torch.Generator().manual_seed((seed << 40) + step)


def batch_rows(seed: int, step: int, batch: int, size: int) -> Tensor:
    """Rows of the data set that step ``step`` sees: a fresh shuffle per epoch, its incomplete last batch dropped."""
    epoch, position = divmod(step, size // batch)
    shuffle = torch.Generator().manual_seed((seed << 40) + (1 << 39) + epoch)
    return torch.randperm(size, generator=shuffle)[position * batch : (position + 1) * batch]


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine down to zero (Loshchilov & Hutter 2017)."""
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
    """Undo `save_checkpoint` and return the next step; 0 where ``path`` does not exist yet.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.exists():
        return 0
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error}); delete it to train anew") from error
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
