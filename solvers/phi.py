"""The phi functions of exponential integrators, ``phi_k(z) = sum over n >= 0 of z^n / (n + k)!``.

``phi_0(z) = e^z``, ``phi_1(z) = (e^z - 1)/z``, and ``phi_{k+1}(z) = (phi_k(z) - 1/k!)/z`` with ``phi_k(0) = 1/k!``.
They are the moments of the exponential, ``phi_{k+1}(z) = integral_0^1 e^{(1-u) z} u^k / k! du``: the exact weights for
a polynomial times it (Hochbruck & Ostermann 2010, "Exponential integrators", section 2.1).
"""

from functools import lru_cache
from math import exp, expm1, factorial

import numpy as np

from solvers.real import Real

SMALL = 2.0
"""Below this |z| the series is used: the recursion divides round-off by z, k times."""
TERMS = 30
"""The number of terms of the series: the first one left out, at z = 2 and k = 0, is 2^30/30! = 4e-24 of the first."""
RECIPROCALS = tuple(1 / factorial(n) for n in range(TERMS + 8))


def phi(k: int, z: Real) -> Real:
    """``phi_k(z)``, accurate to a few units of round-off for ``k <= 4`` and every z up to 709, where e^z overflows."""
    if isinstance(z, np.ndarray):
        return np.array([_phi(k, value) for value in z.tolist()], dtype=np.float64)
    return _phi(k, float(z))


@lru_cache(maxsize=256)  # the rows of a tableau share most of them
def _phi(k: int, z: float) -> float:
    if abs(z) < SMALL:
        total = 0.0
        for reciprocal in RECIPROCALS[k : k + TERMS][::-1]:
            total = total * z + reciprocal
        return total
    if k == 0:
        return exp(z)
    value = expm1(z) / z
    for j in range(1, k):
        value = (value - RECIPROCALS[j]) / z
    return value
