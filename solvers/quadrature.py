"""Quadrature along a line: the weights of past slopes in the integral that a multistep method takes.

With the slope replaced by its polynomial through the nodes ``v_j`` in a chosen variable ``v``,

    integral_{q_a}^{q_b} slope dq = sum_j w_j slope_j,     w_j = integral_{q_a}^{q_b} L_j(v(q)) dq,

and L_j the Lagrange polynomials of the nodes. Between two neighbouring nodes L_j keeps its sign, so a Gauss-Legendre
rule, whose weights are positive, is accurate relative to w_j itself: for tiny steps, where recursions of phi functions
cancel like eps / h^k, and for huge ones.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from solvers.lines import Data, Line, Noise
from solvers.ode import Node, PathODE
from solvers.real import Real

Array = np.ndarray
Basis = Callable[[Array, Sequence[Array]], list[Array]]
Variable = Literal["log_snr", "s", "t", "angle", "q", "index"]
VARIABLES: tuple[str, ...] = get_args(Variable)

POINTS, WEIGHTS = np.polynomial.legendre.leggauss(24)
POINTS, WEIGHTS = (1 + POINTS) / 2, WEIGHTS / 2
LONGEST_EXPONENTIAL = 16.0
"""The rule integrates exp(y) times a polynomial to round-off over this length of y, with room: at 32 it still does."""
LONGEST_PANEL = 2.0
"""In log-SNR. q grows by e^2 at most over a panel, which keeps the singularities of v(q), where q, alpha or sigma
vanish, so far away that the rule's error is about 2.2^-48."""


def value(variable: Variable, line: Line, node: Node) -> Real:
    """The variable at ``node``; an index is no property of a node, and the line's own q stands for it.

    A polynomial in log s is one in log-SNR, which is its negative.
    """
    if variable == "log_snr":
        return node.log_snr
    if variable == "s":
        return node.s
    if variable == "t":
        return node.t
    return node.angle if variable == "angle" else line.q(node)


def lagrange(v: Array, nodes: Sequence[Array]) -> list[Array]:
    """The Lagrange polynomials of ``nodes``, each ``(n,)``, at ``v``, ``(n, points)``."""
    columns = [node[:, None] for node in nodes]
    found = []
    for j, own in enumerate(columns):
        product = np.ones_like(v)
        for m, other in enumerate(columns):
            if m != j:
                product *= (v - other) / (own - other)
        found.append(product)
    return found


def adams_weights(
    ode: PathODE, line: Line, variable: Variable, a: Node, b: Node, nodes: Sequence[Node], basis: Basis = lagrange
) -> list[Array]:
    """The weight of the slope at each of ``nodes`` in the integral from a to b, ``(n,)`` each, for n steps at once.

    ``nodes`` are newest first: a and earlier ones, for a predictor, or b, a and earlier ones. With
    ``variable="index"`` they are numbered evenly, and the weights are those of a grid that is uniform in q.

    The weights add up to ``q_b - q_a`` to the last bit: a constant slope is integrated exactly, and the round-off of
    differences between nodes multiplies differences between slopes alone.
    """
    q_a, q_b = np.asarray(line.q(a)), np.asarray(line.q(b))
    if len(nodes) == 1:
        return [q_b - q_a]
    if variable == "index":
        newest = 1.0 if nodes[0] is b else 0.0
        at_nodes = [np.full_like(q_a, newest - j) for j in range(len(nodes))]
        v, dq = np.broadcast_to(POINTS, (len(q_a), len(POINTS))), np.multiply.outer(q_b - q_a, WEIGHTS)
    elif variable == "log_snr" and isinstance(line, Noise | Data):
        # Offsets from a: q is an exponential of them, without the round-off of a large logarithm.
        at_nodes = [np.asarray(node.log_snr) - np.asarray(a.log_snr) for node in nodes]
        v, dv = panels(np.zeros_like(q_a), np.asarray(b.log_snr) - np.asarray(a.log_snr), LONGEST_EXPONENTIAL)
        sign = 1 if isinstance(line, Data) else -1
        dq = sign * q_a[:, None] * np.exp(sign * v) * dv
    else:
        at_nodes = [np.asarray(value(variable, line, node)) for node in nodes]
        if variable == "q":
            v, dq = panels(q_a, q_b, math.inf)
        else:
            q, dq = by_log_snr(ode, line, a, b)
            v = np.asarray(value(variable, line, line.node(ode, q.ravel()))).reshape(q.shape)
    weights = [(dq * polynomial).sum(-1) for polynomial in basis(v, at_nodes)[1:]]
    return [q_b - q_a - np.sum(weights, axis=0), *weights]


def panels(begin: Array, end: Array, longest: float) -> tuple[Array, Array]:
    """Points and weights of a composite rule from ``begin`` to ``end``, both ``(n,)``, in panels of bounded length."""
    count = max(1, math.ceil(float(np.abs(end - begin).max(initial=0.0)) / longest))
    return between([begin + (end - begin) * (i / count) for i in range(count)] + [end])


def between(edges: Sequence[Array]) -> tuple[Array, Array]:
    """Points and weights of the rule on every panel between neighbouring ``edges``."""
    points, weights = [], []
    for low, high in zip(edges, edges[1:], strict=False):
        points.append(low[:, None] + np.multiply.outer(high - low, POINTS))
        weights.append(np.multiply.outer(high - low, WEIGHTS))
    return np.concatenate(points, axis=1), np.concatenate(weights, axis=1)


def by_log_snr(ode: PathODE, line: Line, a: Node, b: Node) -> tuple[Array, Array]:
    """Points and weights in q from a to b, in panels that are short in log-SNR.

    An end at the data or at pure noise, where log-SNR is infinite, has a last panel to itself: q is regular there.
    """
    low, high = (np.asarray(node.log_snr) for node in (a, b))
    finite = [np.isfinite(end) for end in (low, high)]
    # The last panel begins where alpha or sigma is small, and not before the other end.
    farthest = [np.abs(end[known]).max(initial=0.0) for end, known in zip((low, high), finite, strict=True)]
    reach = LONGEST_PANEL + float(max(farthest))
    low, high = (np.clip(end, -reach, reach) for end in (low, high))
    count = max(1, math.ceil(float(np.abs(high - low).max(initial=0.0)) / LONGEST_PANEL))
    edges = [np.asarray(line.q(ode.node_at(low + (high - low) * (i / count)))) for i in range(count + 1)]
    q_a, q_b = (np.asarray(line.q(node)) for node in (a, b))
    edges[0], edges[-1] = np.where(finite[0], q_a, edges[0]), np.where(finite[1], q_b, edges[-1])
    before, after = ([] if known.all() else [q] for known, q in zip(finite, (q_a, q_b), strict=True))
    return between([*before, *edges, *after])
