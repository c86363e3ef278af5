"""From the host's memory to a device, and from tensors to NumPy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def placed(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """``values`` on ``device``, without waiting for a CUDA device.

    When the call returns, CUDA has read ordinary host memory, even if the copy has not arrived, so that ``values`` may
    change; pinned memory is read later.
    """
    at_once = device.type == "cuda" and not values.is_pinned()
    return values.to(device=device, dtype=dtype, non_blocking=at_once)


def index_on(device: torch.device, rows: np.ndarray) -> Tensor:
    """Row indices, or a mask of rows, on ``device``."""
    return placed(torch.from_numpy(rows), device)


def as_array(values: Tensor) -> np.ndarray:
    """``values``, on the host, as an array that is only read; a copy inside a transform of torch.func.

    There a tensor has no memory of its own that NumPy could share.
    """
    try:
        return values.numpy()
    except RuntimeError:
        return np.array(values.tolist(), dtype=str(values.dtype).removeprefix("torch."))
