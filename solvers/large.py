"""Reuses the memory of discarded large CPU states.

The allocator would return it to the system, whose fresh pages cost as much as a pass over a state.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

LEAST = 2**20
"""The size in bytes from which a state is large: the allocator itself keeps memory for smaller ones."""
MOST = 16
"""The most states whose memory is watched at once: more than a method holds."""


class _Memory(threading.local):
    """The watched tensors, each with the number of users that its memory has when nobody else holds it.

    Each thread has its own list: otherwise two threads could receive the same free memory.
    """

    watched: list[tuple[Tensor, tuple[int, int]]] | None = None


_memory = _Memory()


@contextmanager
def reusing(x: Tensor) -> Iterator[None]:
    """Within this context `spare` finds memory for states like ``x``, if they are large and on the CPU."""
    outer, _memory.watched = _memory.watched, [] if _is_plain(x) else None
    try:
        yield
    finally:
        _memory.watched = outer


def spare(tensors: Sequence[Tensor]) -> Tensor | None:
    """A tensor for ``out=`` of a sum of ``tensors``, in memory that is no longer used.

    None leaves the allocation to torch: for small states, and where autograd must record the sum.
    """
    memory = _memory.watched
    if memory is None or torch.is_grad_enabled():
        return None
    x = tensors[0]
    if not all(t.shape == x.shape and t.dtype is x.dtype and _is_plain(t) and t.is_contiguous() for t in tensors):
        return None
    for held, users in memory:
        if held.shape == x.shape and held.dtype is x.dtype and _is_free(held, users):
            return held.detach()
    new = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    memory.append((new, _users(new)))
    del memory[:-MOST]
    return new.detach()


def _is_free(x: Tensor, users: tuple[int, int]) -> bool:
    """Whether nobody else holds the memory, in this or another process, and torch may write to it here."""
    writable = x.is_inference() == torch.is_inference_mode_enabled()
    return writable and not x.untyped_storage().is_shared() and _users(x) == users


def _users(x: Tensor) -> tuple[int, int]:
    """How many tensors, views and arrays share the memory, and how many variables its storage."""
    storage = x.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(storage)


def _is_plain(x: Tensor) -> bool:
    """Whether ``x`` is large, and `is_bare`."""
    return x.nbytes >= LEAST and is_bare(x)


def is_bare(x: Tensor) -> bool:
    """Whether ``x`` is a tensor on the CPU, without a tangent, and outside of the transforms of torch.func."""
    if type(x) is not Tensor or not x.is_cpu:
        return False
    return torch._C._functorch.peek_interpreter_stack() is None and forward_ad.unpack_dual(x).tangent is None
