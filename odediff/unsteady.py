"""Parts of networks whose output for a sample depends on more than the sample."""

from __future__ import annotations

import torch
from torch import nn


def is_unsteady(part: nn.Module) -> bool:
    """Whether a part of a network draws random numbers, or normalises by the statistics of the batch.

    A part of a script is judged by the class that it was made from; a traced one has lost its settings.
    """
    kind = getattr(nn, part.original_name, nn.Module) if isinstance(part, torch.jit.ScriptModule) else type(part)
    if issubclass(kind, nn.modules.batchnorm._BatchNorm):
        return part.training or getattr(part, "running_mean", None) is None
    if not part.training:
        return False
    if issubclass(kind, nn.modules.dropout._DropoutNd):
        return getattr(part, "p", 1) > 0
    if issubclass(kind, nn.RNNBase):
        return getattr(part, "dropout", 1) > 0 and getattr(part, "num_layers", 2) > 1  # the last layer drops nothing
    return issubclass(kind, nn.RReLU) or (issubclass(kind, nn.MultiheadAttention) and getattr(part, "dropout", 1) > 0)
