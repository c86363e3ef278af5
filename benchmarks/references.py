"""The exact flows, computed once and kept beside the cells."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.store import Entry, Store, key_of
from odediff.problems import Problem
from odediff.version import __version__


class Flow(NamedTuple):
    """Where the exact flow carries a problem's noise: states, their modes, and the rms error of the states."""

    x: Tensor
    modes: Tensor
    error: float


class References:
    """Exact flows by problem and seed; the last one is kept in memory."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._last: tuple[str, Flow] | None = None

    def get(self, problem: Problem, seed: int, rows: range) -> Flow:
        """Where the exact flow carries the noise of the samples ``rows`` of a seed."""
        key = key_of(
            {
                "problem": problem.name,
                "weights": problem.fingerprint,
                "version": __version__,
                "flow": f"{problem.flow.solver} {problem.flow.grid.__name__} {problem.flow.steps}",
                "seed": seed,
                "rows": str(rows),
            }
        )
        if self._last is None or self._last[0] != key:
            self._last = key, self._stored(key, problem, seed, rows)
        return self._last[1]

    def _stored(self, key: str, problem: Problem, seed: int, rows: range) -> Flow:
        entry = self.store.load(key)
        if entry is None:
            x, error = problem.reference(problem.noise(seed, rows))
            arrays = {"x": x.numpy(), "modes": problem.modes(x).numpy()}
            entry = Entry({"problem": problem.name, "error": error}, arrays)
            self.store.save(key, entry)
        x, modes = (torch.from_numpy(entry.arrays[name]) for name in ("x", "modes"))
        return Flow(x, modes, entry.record["error"])
