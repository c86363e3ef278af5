"""The memory of the tensors that are alive at once, counted as they are made and freed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts, within its context, the bytes of all tensors made there that are alive; ``peak`` is their maximum.

    It counts what the program holds, not what the allocator reserves, so the figure does not depend on the machine.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                self._watch(one)
        return result

    def _watch(self, tensor: Tensor) -> None:
        # Views share their storage, and operations in place return their argument.
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in self._sizes and storage.nbytes():
            self._sizes[address] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, address)

    def _release(self, address: int) -> None:
        self.live -= self._sizes.pop(address)
