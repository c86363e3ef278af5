"""The solution between the nodes: `Solution.__call__`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solvers.ode import Node
from solvers.sums import combine


class Dense:
    """The steps of a solve, sample by sample, as functions of the line's variable.

    A piece has ``span``, ``q_a``, ``q_b`` and is called with q.
    """

    def __init__(self, batch: int) -> None:
        self.pieces: list[list[Any]] = [[] for _ in range(batch)]

    def add(self, sample: int, piece: Any) -> None:
        """Append the next step of a sample."""
        self.pieces[sample].append(piece)

    def __call__(self, node: Node, dtype: torch.dtype) -> Tensor:
        """The states ``(B, ...)`` at ``node``."""
        return torch.stack([self._one(sample, node) for sample in range(len(self.pieces))]).to(dtype)

    def _one(self, sample: int, node: Node) -> Tensor:
        for piece in self.pieces[sample]:
            q = float(piece.span.q(node))
            if min(piece.q_a, piece.q_b) <= q <= max(piece.q_a, piece.q_b):
                return combine((float(piece.span.scale(node)), piece(q)))
        raise ValueError(
            f"t={node.t}: sample {sample} did not get there, or only by a DDIM step, which has no states between its "
            "ends: the closing step, or one at a node where the line is singular; pass a t in another step"
        )
