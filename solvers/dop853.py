"""The pair of order 8 of Hairer, Norsett & Wanner."""

from dataclasses import dataclass
from typing import ClassVar

from scipy import integrate

from solvers.runge_kutta import Embedded, Tableau

_PUBLISHED = integrate.DOP853
"""Its coefficients, as scipy publishes them."""


@dataclass(frozen=True)
class DOP853:
    """The order-8 method of Dormand & Prince in the form of DOP853, for `Adaptive`.

    Hairer, Norsett & Wanner, "Solving ordinary differential equations I", II.5 and II.10: the estimate of order 5 is
    damped by one of order 3.
    """

    order: ClassVar[int] = 8
    tableau: ClassVar[Tableau] = Tableau(
        tuple(_PUBLISHED.C.tolist()),
        tuple(tuple(row[:i]) for i, row in enumerate(_PUBLISHED.A.tolist())),
        tuple(_PUBLISHED.B.tolist()),
    )
    embedded: ClassVar[Embedded] = Embedded(tuple(_PUBLISHED.E5.tolist()), 8, tuple(_PUBLISHED.E3.tolist()))

    def calls(self, n_steps: int) -> int:
        """Twelve for each step: the slope at its end is the next one's first."""
        return len(self.tableau.c) * n_steps
