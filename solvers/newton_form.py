"""Integrals of Newton's interpolating polynomials over uneven nodes, one set of nodes per sample.

The polynomial through q_0 ... q_{k-1} is the sum over m < k of ``f[q_0 ... q_m] prod_{i < m} (q - q_i)``. Its integral
needs the integrals of the products, ``(B, m)``, and the weights ``(B, m, j)`` with which the values at the nodes enter
the divided differences. The orders share both, and term k is what one more node changes. Products of differences lose
no digits, whatever the spacing, where a Vandermonde system would.

``nodes`` are ``(B, n)`` and differ, ``a`` and ``b`` are ``(B,)``.
"""

from functools import cache

import numpy as np

Rule = tuple[np.ndarray, np.ndarray]


@cache
def gauss_legendre(count: int) -> Rule:
    """Nodes and weights on [0, 1], exact for degree ``2 count - 1``."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return 0.5 * (nodes + 1), 0.5 * weights


def newton_integrals(nodes: np.ndarray, a: np.ndarray, b: np.ndarray, gauss: Rule | None = None) -> np.ndarray:
    """The integrals from a to b of ``prod_{i < m} (q - q_i)``, ``(B, m)``.

    By a Gauss rule that is exact for them; a larger one may be given, so that n changes no bit.
    """
    points, rule = gauss or gauss_legendre((nodes.shape[-1] + 1) // 2)
    h = (b - a)[:, None]
    return _integrals(nodes, a[:, None] + h * points, h * rule)


def odd_newton_integrals(nodes: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The integrals from a to b of ``q prod_{i < m} (q^2 - q_i^2)``, ``(B, m)``, for odd polynomials ``q p(q^2)``.

    The divided differences are those of ``f(q_i)/q_i`` over ``q_i^2``.
    """
    points, rule = gauss_legendre(nodes.shape[-1])
    h = (b - a)[:, None]
    x = a[:, None] + h * points
    return _integrals(nodes**2, x**2, h * rule * x)


def divided_differences(nodes: np.ndarray) -> np.ndarray:
    """The weights of the values at ``nodes`` in ``f[q_0 ... q_m]``: ``1/prod_{i <= m, i != j} (q_j - q_i)``, j <= m."""
    count = nodes.shape[-1]
    distances = nodes[:, None, :] - nodes[:, :, None]
    distances[:, range(count), range(count)] = 1.0
    return np.tri(count) / np.multiply.accumulate(distances, axis=1)


def first_terms(terms: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The sum of the first ``used`` ``(B,)`` of the terms ``(B, m, j)``: the polynomial through that many nodes."""
    return terms.cumsum(axis=1)[np.arange(len(terms)), used - 1]


def _integrals(nodes: np.ndarray, x: np.ndarray, rule: np.ndarray) -> np.ndarray:
    """The integrals of the products at ``x`` ``(B, points)`` with the weights ``rule``."""
    products = np.empty((len(nodes), nodes.shape[-1], x.shape[-1]))
    products[:, 0] = rule
    np.subtract(x[:, None, :], nodes[:, :-1, None], out=products[:, 1:])
    # A sum, not a matrix product: a sample's bits must not depend on the shape of the batch.
    return np.multiply.accumulate(products, axis=1).sum(axis=-1)
