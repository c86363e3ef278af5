"""Linear combinations by a compiler: one pass over memory, where one operation for each term makes several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor

fusing: ContextVar[bool] = ContextVar("fusing", default=False)
"""Whether combinations go through `fused`."""


@contextmanager
def fusion(compile: bool) -> Iterator[None]:
    """Within, let `torch.compile` make the combinations if ``compile``."""
    token = fusing.set(compile)
    try:
        yield
    finally:
        fusing.reset(token)


def fused(coefficients: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """``sum of c * x``, in the dtype of the tensors; its last bits may differ from those of separate operations."""
    first = tensors[0]
    # Numbers of their own would be compiled in, and every step would wait for the compiler; so would every new shape.
    weights = torch.tensor(coefficients, dtype=torch.promote_types(first.dtype, torch.float32), device=first.device)
    return _kernel(len(tensors))(weights, *(tensor.reshape(-1) for tensor in tensors)).reshape(first.shape)


@cache
def _kernel(count: int) -> Callable[..., Tensor]:
    def weighted_sum(weights: Tensor, *tensors: Tensor) -> Tensor:
        total = weights[0] * tensors[0].to(weights.dtype)
        for i in range(1, count):
            total = total + weights[i] * tensors[i].to(weights.dtype)
        return total.to(tensors[0].dtype)

    return torch.compile(weighted_sum, dynamic=True)


@cache
def require_compiler() -> None:
    """Raise `ValueError` where `torch.compile` finds no compiler that works."""
    try:
        fused((1.0, 1.0), (torch.zeros(2), torch.zeros(2)))
    except Exception as error:  # what is missing decides which of torch's many errors it is
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"compile=True needs a C++ compiler that torch.compile can use ({reason}); install one, or leave it out"
        ) from error
