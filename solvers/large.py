"""Reuses the memory of discarded large CPU states.

The allocator would return it to the system, whose fresh pages cost as much as a pass over a state.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

LEAST = 2**20
"""The size in bytes from which a state is large: the allocator itself keeps memory for smaller ones."""
MOST = 16
"""The most states whose memory is watched at once: more than a method holds."""


class _Watched(NamedTuple):
    """A tensor, the address of its storage, and the users that this has when nobody else holds it, see `_users`."""

    tensor: Tensor
    storage: int
    users: tuple[int, int]


class _Memory(threading.local):
    """The watched tensors.

    Each thread has its own list: otherwise two threads could receive the same free memory.
    """

    watched: list[_Watched] | None = None


_memory = _Memory()


@contextmanager
def reusing(x: Tensor) -> Iterator[None]:
    """Within this context `spare` finds memory for states like ``x``, if they are large and on the CPU."""
    outer, _memory.watched = _memory.watched, [] if x.nbytes >= LEAST and is_bare(x) else None
    try:
        yield
    finally:
        _memory.watched = outer


def spare(tensors: Sequence[Tensor]) -> Tensor | None:
    """A tensor for ``out=`` of a sum of ``tensors``, in memory that is no longer used.

    None leaves the allocation to torch: for small states, and where autograd must record the sum.
    """
    memory = _memory.watched
    if memory is None or torch.is_grad_enabled() or _transforms():
        return None
    x = tensors[0]
    shape, dtype = x.shape, x.dtype
    if x.nbytes < LEAST or not all(
        type(t) is Tensor and t.is_cpu and t.dtype is dtype and t.shape == shape and t.is_contiguous() for t in tensors
    ):
        return None
    for held in memory:
        if _is_free(held) and held.tensor.shape == shape and held.tensor.dtype is dtype:
            return held.tensor.detach()
    new = torch.empty(shape, dtype=dtype, device=x.device)
    memory.append(_Watched(new, new.untyped_storage()._cdata, _users(new)))
    del memory[:-MOST]
    return new.detach()


def _is_free(held: _Watched) -> bool:
    """Whether nobody else holds the memory, in this or another process, and torch may write to it here."""
    if torch._C._storage_Use_Count(held.storage) != held.users[0]:
        return False  # most of them, at a tenth of the cost of what follows
    x = held.tensor
    writable = x.is_inference() == torch.is_inference_mode_enabled()
    return writable and not x.untyped_storage().is_shared() and _users(x) == held.users


def _users(x: Tensor) -> tuple[int, int]:
    """How many tensors, views and arrays share the memory, and how many variables its storage."""
    storage = x.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(storage)


def is_bare(x: Tensor) -> bool:
    """Whether ``x`` is a tensor on the CPU, outside of automatic differentiation forwards and of torch.func."""
    return type(x) is Tensor and x.is_cpu and not _transforms()


def _transforms() -> bool:
    """Whether tensors may have tangents, or are those of torch.func's transforms."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None
