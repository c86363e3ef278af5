"""Integrals of Lagrange's polynomials over uneven nodes, one set of nodes per sample."""

from functools import cache

import numpy as np

Rule = tuple[np.ndarray, np.ndarray]


@cache
def gauss_legendre(count: int) -> Rule:
    """Nodes and weights on [0, 1], exact for degree ``2 count - 1``."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return 0.5 * (nodes + 1), 0.5 * weights


def quadrature_weights(
    nodes: np.ndarray, used: np.ndarray, a: np.ndarray, b: np.ndarray, gauss: Rule | None = None
) -> np.ndarray:
    """The weights ``(..., n)`` of the integral from a to b of the polynomial through the first ``used`` of n nodes.

    The weight of node j is the integral of Lagrange's ``prod_{i != j} (q - q_i)/(q_j - q_i)``, by a Gauss rule that is
    exact for it. Products of differences lose no digits, whatever the spacing, where a Vandermonde system would.

    ``nodes`` are ``(B, n)``, ``a`` and ``b`` ``(B,)``; ``used`` is ``(B,)``, or has leading axes for several sets of
    weights at once.
    """
    points, rule = gauss or gauss_legendre((nodes.shape[-1] + 1) // 2)
    x = a[:, None] + (b - a)[:, None] * points
    # A sum, not a matrix product: a sample's bits must not depend on the shape of the batch.
    return _padded((_basis(nodes, used, x) * rule).sum(axis=-1) * (b - a)[:, None], nodes)


def odd_weights(nodes: np.ndarray, used: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The same for the odd polynomial ``q p(q^2)`` through the values at ``nodes``, all other than 0.

    It is the polynomial of twice the degree through the nodes and their mirror images.
    """
    points, rule = gauss_legendre(nodes.shape[-1])
    x = a[:, None] + (b - a)[:, None] * points
    weights = _padded((_basis(nodes**2, used, x**2) * (x * rule)[:, None, :]).sum(axis=-1), nodes)
    return np.where(weights == 0, 0.0, weights * (b - a)[:, None] / np.where(nodes == 0, 1.0, nodes))


def _basis(nodes: np.ndarray, used: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Lagrange's polynomials ``(..., m, len(x))`` at ``x``: of the first m nodes, those that any sample uses.

    Zero for the nodes that a sample does not use; the others' factors are 1, so that m changes no bit.
    """
    nodes = nodes[:, : int(used.max(initial=1))]
    position = np.arange(nodes.shape[-1])
    taking = position < used[..., None]
    distance = np.where(taking[..., None], x[:, None, :] - nodes[:, :, None], 1.0)
    product = np.ones_like(distance)
    product[..., 1:, :] = np.cumprod(distance[..., :-1, :], axis=-2)
    product[..., :-1, :] *= np.cumprod(distance[..., :0:-1, :], axis=-2)[..., ::-1, :]
    others = taking[..., None, :] & (position[:, None] != position)
    scale = np.where(others, nodes[:, :, None] - nodes[:, None, :], 1.0).prod(axis=-1)
    return np.where(taking[..., None], product / scale[..., None], 0.0)


def _padded(weights: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Weights of zero for the nodes that no sample uses."""
    whole = np.zeros((*weights.shape[:-1], nodes.shape[-1]))
    whole[..., : weights.shape[-1]] = weights
    return whole
