"""From the host's memory to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def placed(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """``values``, from the host's ordinary memory, on ``device``; a CUDA device is not waited for.

    CUDA has read such memory when the call returns, even if the copy has not arrived: `values` may change then.
    """
    return values.to(device=device, dtype=dtype, non_blocking=device.type == "cuda")
