"""What a network is, in one line: the hash of its weights."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn


def fingerprint(network: Any) -> str:
    """SHA-256 of a network's weights; its name if none are to be found."""
    module = module_of(network)
    if module is None:
        named = network if hasattr(network, "__qualname__") else type(network)
        return f"{named.__module__}.{named.__qualname__}"
    return tensors_hash(module.state_dict())


def module_of(network: Any) -> nn.Module | None:
    """The module that a network is, or whose method it is."""
    owner = getattr(network, "__self__", network)
    return owner if isinstance(owner, nn.Module) else None


def tensors_hash(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of tensors: their names and bits, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
