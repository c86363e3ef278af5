"""Where tensors are: a device of this machine, or an error that lists its devices."""

from __future__ import annotations

import torch


def available(device: str | torch.device) -> torch.device:
    """``device`` as a `torch.device`, tested by sending an empty tensor there and back.

    Raises:
        ValueError: the device is unknown, or this machine does not have it.
    """
    known = _known(device)
    try:
        torch.empty(0, device=known).cpu()
    except (RuntimeError, AssertionError, ImportError):
        found = ["cpu"]
        if (accelerator := torch.accelerator.current_accelerator()) is not None:
            found += [f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())]
        raise ValueError(f"device={device} is not available on this machine; found: {', '.join(found)}") from None
    return known


def is_at(device: str | torch.device, actual: torch.device) -> bool:
    """Whether ``actual`` is ``device``, or of its type if ``device`` has no index."""
    known = _known(device)
    return known.type == actual.type and known.index in (None, actual.index)


def _known(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device={device} is unknown; use cpu, cuda, cuda:0 or mps") from None
