"""Dense output: a step of the adaptive Adams method as a function of its variable."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from solvers.newton_form import integral_weights
from solvers.sums import combine
from solvers.tolerance import Span


@dataclass(frozen=True)
class AdamsPiece:
    """One step of one sample: ``z(q) = z + integral from q_a to q of the polynomial through the slopes``."""

    span: Span
    q_a: float
    q_b: float
    z: Tensor
    nodes: np.ndarray
    slopes: tuple[Tensor, ...]
    odd: bool

    def __call__(self, q: float) -> Tensor:
        """The line's state at ``q``."""
        used = np.array([len(self.nodes)])
        weights = integral_weights(self.nodes[:, None], used, np.array([self.q_a]), np.array([q]), self.odd)[:, 0]
        return combine((1.0, self.z), *zip(weights.tolist(), self.slopes, strict=True))
