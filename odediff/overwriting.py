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

    def replace(self, answer: Tensor, network: Any) -> None:
        """Take the next answer.

        Raises:
            ValueError: it was written over the last one, which is still held.
        """
        if answer.is_inference():  # such tensors do not count what is written to them
            return
        before = self._answer() if self._answer is not None else None
        if before is not None and before._version != self._version and share_memory(before, answer):
            raise ValueError(
                f"network {type(network).__name__} writes its answer over the one before, which the method still reads;"
                " let it return a clone"
            )
        self._answer, self._version = weakref.ref(answer), answer._version


def written(tensors: Sequence[Tensor]) -> list[int | None]:
    """How often each has been written to; None in inference mode, which does not count."""
    return [None if tensor.is_inference() else tensor._version for tensor in tensors]


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are stored in one place; those of torch.func's transforms answer as well."""
    return bool(torch._C._is_alias_of(one, other))  # type: ignore[attr-defined]
