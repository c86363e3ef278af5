"""From the host's memory to a device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def placed(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """``values`` on ``device``; a CUDA device is not waited for.

    CUDA has read the host's ordinary memory when the call returns, even if the copy has not arrived, so that ``values``
    may change then; pinned memory it reads later.
    """
    at_once = device.type == "cuda" and not values.is_pinned()
    return values.to(device=device, dtype=dtype, non_blocking=at_once)


def index_on(device: torch.device, rows: np.ndarray) -> Tensor:
    """Numbers of rows, or a mask of them, on ``device``."""
    return placed(torch.from_numpy(rows), device)
