"""Integrals of Newton's interpolating polynomials over uneven nodes, one set of nodes per sample.

The polynomial through q_0 ... q_{n-1} is the sum over m < n of ``f[q_0 ... q_m] prod_{i < m} (q - q_i)``. Its integral
needs the integrals of the products, ``(n, B)``, and the weights ``(n, n, B)`` with which the values at the nodes enter
the divided differences: those of ``f[q_0 ... q_m]`` are row m. The orders share both, and term m is what node m adds.
Products of differences lose no digits, whatever the spacing, where a Vandermonde system would.

``nodes`` are ``(n, B)`` and distinct, ``a`` and ``b`` are ``(B,)``. The sample axis is last, and only elementwise
operations and sums over other axes are used, so that the bits of a sample do not depend on the batch.
"""

from functools import cache

import numpy as np

Rule = tuple[np.ndarray, np.ndarray]


@cache
def gauss_legendre(count: int) -> Rule:
    """Nodes and weights on [0, 1], ``(count, 1)``, exact for degree ``2 count - 1``."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return 0.5 * (nodes + 1)[:, None], 0.5 * weights[:, None]


def newton_integrals(nodes: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The integrals from a to b of ``prod_{i < m} (q - q_i)``, ``(n, B)``, by a Gauss rule that is exact for them."""
    points, rule = gauss_legendre((len(nodes) + 1) // 2)
    return _products(nodes, a + (b - a) * points, (b - a) * rule).sum(axis=1)


def step_integrals(nodes: np.ndarray, a: np.ndarray, b: np.ndarray, gauss: Rule) -> tuple[np.ndarray, np.ndarray]:
    """`newton_integrals` over ``nodes``, ``(n, B)``, and over b followed by ``nodes``, ``(n + 1, B)``.

    The products with b are those without it times ``q - b``. The rule is an argument, so that n changes no bit.
    """
    points, rule = gauss
    x = a + (b - a) * points
    products = _products(nodes, x, (b - a) * rule)
    ahead = products.sum(axis=1)
    return ahead, np.concatenate([ahead[:1], (products * (x - b)).sum(axis=1)])


def odd_newton_integrals(nodes: np.ndarray, a: np.ndarray, b: np.ndarray, gauss: Rule) -> np.ndarray:
    """The integrals from a to b of ``q prod_{i < m} (q^2 - q_i^2)``, ``(n, B)``, for odd polynomials ``q p(q^2)``.

    The divided differences are those of ``f(q_i)/q_i`` over ``q_i^2``. The rule is an argument, as in `step_integrals`.
    """
    points, rule = gauss
    x = a + (b - a) * points
    # Accumulated one by one: a plain sum would pair the points of a single sample, but not those of several.
    return np.asarray(np.add.accumulate(_products(nodes**2, x**2, (b - a) * rule * x), axis=1)[:, -1])


def divided_differences(nodes: np.ndarray) -> np.ndarray:
    """The weights of the values at ``nodes`` in ``f[q_0 ... q_m]``: ``1/prod_{i <= m, i != j} (q_j - q_i)``, j <= m."""
    count = len(nodes)
    distances = nodes - nodes[:, None]
    distances[range(count), range(count)] = 1.0
    return np.tri(count)[..., None] / np.multiply.accumulate(distances, axis=0)


def with_node_in_front(differences: np.ndarray, nodes: np.ndarray, node: np.ndarray) -> np.ndarray:
    """The `divided_differences` of ``node`` followed by ``nodes``, from those of ``nodes`` by one more factor each."""
    distances = nodes - node
    found = np.zeros((len(nodes) + 1, len(nodes) + 1, len(node)))
    np.divide(differences, distances, out=found[1:, 1:])
    found[0, 0] = 1.0
    np.divide(1.0, np.multiply.accumulate(-distances, axis=0), out=found[1:, 0])
    return found


def newton_weights(integrals: np.ndarray, differences: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The weights of the values at the nodes in the integral of the polynomial through the first ``used`` ``(B,)``."""
    kept = np.where(np.arange(len(integrals))[:, None] < used, integrals, 0.0)
    return np.asarray((kept[:, None] * differences).sum(axis=0))


def odd_terms(nodes: np.ndarray, a: np.ndarray, b: np.ndarray, gauss: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Integrals and differences of the odd polynomial ``q p(q^2)``, where p interpolates the values over q."""
    return odd_newton_integrals(nodes, a, b, gauss), divided_differences(nodes**2) / nodes


def integral_weights(nodes: np.ndarray, used: np.ndarray, a: np.ndarray, b: np.ndarray, odd: bool) -> np.ndarray:
    """The weights of the values in the integral from a to b of the polynomial through the first ``used`` of them."""
    if odd:
        return newton_weights(*odd_terms(nodes, a, b, gauss_legendre(len(nodes))), used)
    return newton_weights(newton_integrals(nodes, a, b), divided_differences(nodes), used)


def _products(nodes: np.ndarray, x: np.ndarray, rule: np.ndarray) -> np.ndarray:
    """The products at ``x``, times the weights ``rule``, both ``(points, B)``: ``(n, points, B)``."""
    factors = np.empty((len(nodes), *x.shape))
    factors[0] = rule
    np.subtract(x, nodes[:-1, None], out=factors[1:])
    return np.asarray(np.multiply.accumulate(factors, axis=0))
