"""Where tensors are: a device that this machine has, or one error that says what it has."""

from __future__ import annotations

import torch


def available(device: str | torch.device) -> torch.device:
    """``device`` as torch names it, tried by an empty tensor that goes there and back.

    Raises:
        ValueError: no such device is known, or this machine has none.
    """
    try:
        known = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device={device} is unknown; use cpu, cuda, cuda:0 or mps") from None
    try:
        torch.empty(0, device=known).cpu()
    except (RuntimeError, AssertionError, ImportError):
        found = ["cpu"]
        if (accelerator := torch.accelerator.current_accelerator()) is not None:
            found += [f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())]
        raise ValueError(f"device={device} is not available on this machine; found: {', '.join(found)}") from None
    return known
