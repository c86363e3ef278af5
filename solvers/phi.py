"""The phi functions of exponential integrators, ``phi_k(z) = sum over n >= 0 of z^n / (n + k)!``.

``phi_0(z) = e^z``, ``phi_1(z) = (e^z - 1)/z``, and ``phi_{k+1}(z) = (phi_k(z) - 1/k!)/z`` with ``phi_k(0) = 1/k!``.
They are the moments of the exponential, ``phi_{k+1}(z) = integral_0^1 e^{(1-u) z} u^k / k! du``: the exact weights of a
polynomial under it (Hochbruck & Ostermann 2010, "Exponential integrators", section 2.1).
"""

from math import factorial

import numpy as np

from solvers.real import Real, native

SMALL = 2.0
"""Below it the series is used: the recursion divides round-off by z, k times."""
TERMS = 30
"""The series' last term at z = 2 is 2^30/30! = 4e-24 of its first."""


def phi(k: int, z: Real) -> Real:
    """``phi_k(z)`` in float64, accurate to a few units of round-off for ``k <= 4`` and every real z; for each sample if
    ``z`` is an array.
    """
    values = np.atleast_1d(np.asarray(z, dtype=np.float64))
    small = np.abs(values) < SMALL
    result = np.empty_like(values)
    result[small] = _series(k, values[small])
    result[~small] = _recursion(k, values[~small])
    return native(result.reshape(np.shape(z)))


def _series(k: int, z: np.ndarray) -> np.ndarray:
    total = np.zeros_like(z)
    for n in reversed(range(TERMS)):
        total = total * z + 1 / factorial(n + k)
    return total


def _recursion(k: int, z: np.ndarray) -> np.ndarray:
    if k == 0:
        return np.exp(z)
    value = np.expm1(z) / z
    for j in range(1, k):
        value = (value - 1 / factorial(j)) / z
    return value
