"""The states at the nodes of a grid, where every sample passes them at its own pace."""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from solvers.transfer import index_on


class NodeStates:
    """The states at ``count`` nodes, each kept from the first sample that passes it until the last has passed.

    ``following`` ``(B,)`` is the number of the next node of each sample.
    """

    def __init__(self, x: Tensor, count: int) -> None:
        self.count, self.yielded = count, 0
        self.following = np.zeros(len(x), dtype=np.int64)
        self.found: dict[int, Tensor] = {}
        self.last = x.clone()  # the states of samples that go no further

    def put(self, ids: np.ndarray, states: Tensor) -> None:
        """Record that the samples ``ids`` pass their next nodes in ``states``."""
        numbers = self.following[ids]
        for number in np.unique(numbers):
            mine = numbers == number
            rows, of = (index_on(states.device, one) for one in (ids[mine], np.flatnonzero(mine)))
            self._at(int(number))[rows] = states[of]
        self.following[ids] += 1

    def stay(self, ids: np.ndarray, states: Tensor) -> None:
        """Record that the samples ``ids`` go no further: ``states`` hold at all nodes that they did not reach."""
        self.last[index_on(states.device, ids)] = states
        for number, found in self.found.items():
            behind = number >= self.following[ids]
            rows, of = (index_on(states.device, one) for one in (ids[behind], np.flatnonzero(behind)))
            found[rows] = states[of]

    def by_all(self, ids: np.ndarray) -> Iterator[Tensor]:
        """The states at nodes that all of the samples ``ids`` have passed, except the last node."""
        while self.yielded < min(int(self.following[ids].min()), self.count - 1):
            yield self._next()

    def rest(self) -> Iterator[Tensor]:
        """The states at the nodes that are left."""
        while self.yielded < self.count:
            yield self._next()

    def _next(self) -> Tensor:
        states = self._at(self.yielded)
        del self.found[self.yielded]
        self.yielded += 1
        return states

    def _at(self, number: int) -> Tensor:
        if number not in self.found:
            self.found[number] = self.last.clone()
        return self.found[number]
