"""Networks that write every answer into the memory of the one before, which a method may still hold."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odediff.fingerprint import held_modules


class LastAnswer:
    """The last answer of a network, as long as somebody holds it, and how often it had been written to."""

    def __init__(self) -> None:
        self._answer: weakref.ref[Tensor] | None = None
        self._version = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has seen nothing."""
        return type(self), ()

    def replace(self, answer: Tensor, told: Sequence[Any], network: Any) -> None:
        """Take the next answer, to what the network was ``told``.

        What a replayed CUDA graph or another library writes is not counted: another tensor in the memory of an answer
        that is held is taken for written there, unless it `is_constant`.

        Raises:
            ValueError: it was written over the last one, which is still held.
        """
        before = self._answer() if self._answer is not None else None
        if before is not None:
            rewritten = not before.is_inference() and before._version != self._version
            if (rewritten or before is not answer) and share_memory(before, answer):
                if rewritten:
                    raise _overwritten(network)
                if not is_constant(answer, told, network):
                    raise one_memory(network, "the one before is overwritten")
        # Tensors of inference mode do not count what is written to them.
        self._answer, self._version = weakref.ref(answer), 0 if answer.is_inference() else answer._version


def is_constant(answer: Tensor, told: Sequence[Any], network: Any) -> bool:
    """Whether an answer is what the network was told, one of its own weights, or one value for many places."""
    modules = (tensor for module in held_modules(network) for tensor in (*module.parameters(), *module.buffers()))
    known = (*(value for value in told if isinstance(value, Tensor)), *modules)
    return 0 in answer.stride() or any(share_memory(answer, tensor) for tensor in known)


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
