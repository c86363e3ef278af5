"""Networks that write every answer into the memory of the one before, which a method may still hold."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class LastAnswer:
    """The last answer of a network, as long as somebody holds it, and how often it had been written to."""

    def __init__(self) -> None:
        self._answer: weakref.ref[Tensor] | None = None
        self._version = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has seen nothing."""
        return type(self), ()

    def replace(self, answer: Tensor, given: Tensor, network: Any) -> None:
        """Take the next answer, to the state ``given``.

        What a replayed CUDA graph or another library writes is not counted: an answer in the memory of one that is held
        is taken for written there. One and the same tensor may be a constant, and an alias of the state is no answer's.

        Raises:
            ValueError: it was written over the last one, which is still held.
        """
        before = self._answer() if self._answer is not None else None
        counts = not answer.is_inference()  # such tensors do not count what is written to them
        if before is not None:
            rewritten = counts and before._version != self._version
            other = before is not answer and not share_memory(answer, given)
            if (rewritten or other) and share_memory(before, answer):
                raise _overwritten(network) if rewritten else one_memory(network, "the one before is overwritten")
        self._answer, self._version = weakref.ref(answer), answer._version if counts else 0


def _overwritten(network: Any) -> ValueError:
    return ValueError(
        f"network {type(network).__name__} writes its answer over the one before, which the method still reads; let it "
        "return a clone"
    )


def one_memory(network: Any, consequence: str) -> ValueError:
    """What to say of a network that answers where it answered before."""
    return ValueError(
        f"network {type(network).__name__} answers in one and the same memory from call to call, so that "
        f"{consequence}; let it return a clone"
    )


def written(tensors: Sequence[Tensor]) -> list[int | None]:
    """How often each has been written to; None in inference mode, which does not count."""
    return [None if tensor.is_inference() else tensor._version for tensor in tensors]


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are stored in one place; those of torch.func's transforms answer as well."""
    return bool(torch._C._is_alias_of(one, other))  # type: ignore[attr-defined]
