"""The pair of order 8 of Hairer, Norsett & Wanner."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.polynomial import Polynomial
from scipy import integrate

from solvers.runge_kutta import Embedded, Extension, Tableau

_PUBLISHED = integrate.DOP853
"""The coefficients of the method as published in scipy."""


def _extension() -> Extension:
    """The method's polynomial of degree 7, published as ``sum_j F_j u^ceil(j/2) (1 - u)^floor(j/2)``.

    F_1 is the step, F_2 and F_3 match the slopes at its ends, and the others are ``h D k``.
    """
    stages, slopes = len(_PUBLISHED.B), _PUBLISHED.D.shape[1]
    step, first, last = np.zeros(slopes), np.eye(slopes)[0], np.eye(slopes)[stages]
    step[:stages] = _PUBLISHED.B
    parts = np.stack([step, first - step, 2 * step - last - first, *_PUBLISHED.D])
    u = Polynomial([0.0, 1.0])
    basis = [u]
    for j in range(1, len(parts)):
        basis.append(basis[-1] * (1 - u if j % 2 else u))
    powers = np.stack([np.pad(term.coef, (0, len(parts) + 1 - len(term.coef))) for term in basis])
    further = tuple(tuple(row[: stages + 1 + i]) for i, row in enumerate(_PUBLISHED.A_EXTRA.tolist()))
    weights = parts.T @ powers[:, 1:]
    return Extension(7, tuple(map(tuple, weights.tolist())), tuple(_PUBLISHED.C_EXTRA.tolist()), further)


@dataclass(frozen=True)
class DOP853:
    """The order-8 method of Dormand & Prince in the form of DOP853, for `Adaptive`.

    Hairer, Norsett & Wanner, "Solving ordinary differential equations I", II.5 and II.10: the estimate of order 5 is
    damped by one of order 3. Between its steps the solution has order 7, at three further calls per step.
    """

    order: ClassVar[int] = 8
    tableau: ClassVar[Tableau] = Tableau(
        tuple(_PUBLISHED.C.tolist()),
        tuple(tuple(row[:i]) for i, row in enumerate(_PUBLISHED.A.tolist())),
        tuple(_PUBLISHED.B.tolist()),
    )
    embedded: ClassVar[Embedded] = Embedded(
        tuple(_PUBLISHED.E5.tolist()), 8, tuple(_PUBLISHED.E3.tolist()), _extension()
    )

    def calls(self, n_steps: int) -> int:
        """Twelve for each step: the slope at its end is the next one's first."""
        return len(self.tableau.c) * n_steps
