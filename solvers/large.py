"""Memory for large states on the CPU: that of states that are gone.

The allocator returns it to the system, whose fresh pages cost as much as a pass over a state does; here it is kept for
the next one.
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
"""Bytes of a large state: memory for smaller ones the allocator keeps at hand by itself."""
MOST = 16
"""States whose memory is watched at once: more than a method holds."""


class _Memory(threading.local):
    """Tensors, with the number of users that their memory has where nobody else holds it.

    A thread has its own: between two that ask at once, free memory would go to both.
    """

    watched: list[tuple[Tensor, tuple[int, int]]] | None = None


_memory = _Memory()


@contextmanager
def reusing(x: Tensor) -> Iterator[None]:
    """Within, let `spare` find memory for states like ``x``, if they are large and on the CPU."""
    outer, _memory.watched = _memory.watched, [] if _is_plain(x) else None
    try:
        yield
    finally:
        _memory.watched = outer


def spare(tensors: Sequence[Tensor]) -> Tensor | None:
    """A tensor for ``out=`` of a sum of ``tensors``, in memory that no tensor uses any more.

    None leaves it to torch: for small states, and where the sum has to be recorded for derivatives.
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
    """Whether nobody else holds the memory, in another process neither, and torch may write to it here."""
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
