"""Detect networks that write every output into the memory of the previous one, which a method may still use."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odediff.conditions import tensors
from odediff.fingerprint import held_modules


class LastOutput:
    """A network's last output, while anything still references it, and how often it had been written to."""

    def __init__(self) -> None:
        self._output: weakref.ref[Tensor] | None = None
        self._version = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy starts without a last output."""
        return type(self), ()

    def replace(self, output: Tensor, inputs: tuple[Any, ...], network: Any) -> None:
        """Record the next output, computed from ``inputs``.

        Writes by a replayed CUDA graph or another library are not counted: another tensor in the memory of an output
        that is still referenced counts as an overwrite, unless it `is_constant`.

        Raises:
            ValueError: the network overwrote its last output, which is still referenced.
        """
        before = self._output() if self._output is not None else None
        if before is not None:
            rewritten = not before.is_inference() and before._version != self._version
            if (rewritten or before is not output) and share_memory(before, output):
                if rewritten:
                    raise _overwritten(network)
                if not is_constant(output, inputs, network):
                    raise one_memory(network, "the previous output is overwritten")
        # Tensors of inference mode do not count writes.
        self._output, self._version = weakref.ref(output), 0 if output.is_inference() else output._version


def is_constant(output: Tensor, inputs: tuple[Any, ...], network: Any) -> bool:
    """Whether an output shares memory with the network's inputs or weights, or repeats one value in many places.

    Tensors inside dicts, lists and tuples are inputs too. A tensor that a function holds is none of these: it may be
    the memory that a CUDA graph answers in.
    """
    modules = (tensor for module in held_modules(network) for tensor in (*module.parameters(), *module.buffers()))
    known = (*tensors(inputs), *modules)
    return 0 in output.stride() or any(share_memory(output, tensor) for tensor in known)


def _overwritten(network: Any) -> ValueError:
    return ValueError(
        f"network {type(network).__name__} writes its output over the previous one, which the method still reads; let "
        "it return a clone"
    )


def one_memory(network: Any, consequence: str) -> ValueError:
    """The error for a network that returns outputs in the same memory."""
    return ValueError(
        f"network {type(network).__name__} returns its outputs in the same memory at each call, so that {consequence}; "
        "let it return a clone"
    )


def written(tensors: Sequence[Tensor]) -> list[int | None]:
    """How often each tensor has been written to; None for those of inference mode, which do not count writes."""
    return [None if tensor.is_inference() else tensor._version for tensor in tensors]


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors share their storage; works for tensors inside torch.func's transforms too."""
    return bool(torch._C._is_alias_of(one, other))  # type: ignore[attr-defined]
