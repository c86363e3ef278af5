"""Memory for large states on the CPU: that of states that are gone.

The allocator returns it to the system, whose fresh pages cost as much as a pass over a state does; here it is kept for
the next one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

LEAST = 2**20
"""Bytes of a large state: memory for smaller ones the allocator keeps at hand by itself."""
MOST = 16
"""States whose memory is watched at once: more than a method holds."""

_memory: ContextVar[list[tuple[Tensor, tuple[int, int]]] | None] = ContextVar("memory", default=None)
"""Tensors, with the number of users that their memory has where nobody else holds it."""


@contextmanager
def reusing(x: Tensor) -> Iterator[None]:
    """Within, let `spare` find memory for states like ``x``, if they are large and on the CPU."""
    token = _memory.set([] if _is_plain(x) else None)
    try:
        yield
    finally:
        _memory.reset(token)


def spare(tensors: Sequence[Tensor]) -> Tensor | None:
    """A tensor for ``out=`` of a sum of ``tensors``, in memory that no tensor uses any more.

    None leaves it to torch: for small states, and where the sum has to be recorded for derivatives.
    """
    memory = _memory.get()
    if memory is None or torch.is_grad_enabled():
        return None
    x = tensors[0]
    if x.nbytes < LEAST or not all(t.is_contiguous() and t.shape == x.shape and t.dtype is x.dtype for t in tensors):
        return None
    for held, users in memory:
        if held.shape == x.shape and held.dtype is x.dtype and _users(held) == users:
            return held.detach()
    new = torch.empty(x.shape, dtype=x.dtype)
    memory.append((new, _users(new)))
    del memory[:-MOST]
    return new.detach()


def _users(x: Tensor) -> tuple[int, int]:
    """How many tensors, views and arrays share the memory, and how many variables its storage."""
    storage = x.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(storage)


def _is_plain(x: Tensor) -> bool:
    """Whether ``x`` is a large tensor on the CPU, and no stand-in for one as the transforms of torch.func make."""
    if type(x) is not Tensor or not x.is_cpu or x.nbytes < LEAST or forward_ad.unpack_dual(x).tangent is not None:
        return False
    try:
        x.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return False
    return True
