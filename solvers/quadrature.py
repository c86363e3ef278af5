"""Quadrature along a line: the weights of past slopes in the integral over a multistep method's step.

With the slope replaced by its polynomial through the nodes ``v_j`` in a chosen variable ``v``,

    integral_{q_a}^{q_b} slope dq = sum_j w_j slope_j,     w_j = integral_{q_a}^{q_b} L_j(v(q)) dq,

and L_j the Lagrange polynomials of the nodes. Between two neighbouring nodes L_j keeps its sign, so a Gauss-Legendre
rule, whose weights are positive, is accurate relative to w_j itself: for tiny steps, where recursions of phi functions
cancel like eps / h^k, and for huge ones.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from solvers.lines import Data, Line, Noise, Rotation
from solvers.newton_form import gauss_legendre
from solvers.ode import Node, PathODE
from solvers.real import Real, native

Array = np.ndarray
Basis = Callable[[Array, Sequence[Array]], list[Array]]
Variable = Literal["log_snr", "s", "t", "angle", "asinh", "q", "index"]
VARIABLES: tuple[str, ...] = get_args(Variable)

POINTS, WEIGHTS = (column[:, 0] for column in gauss_legendre(8))
LONGEST_EXPONENTIAL = 1.0
"""The longest panel in log-SNR, y, where q is exp(y): the rule's error is 2e-23, with room for a polynomial factor."""
LONGEST_PANEL = 0.5
"""The longest panel in log-SNR, y, where q and v are any functions of y with singularities no nearer than pi/2, those
of atan(exp(y)): the error is about 12^-16."""


def value(variable: Variable, line: Line, node: Node) -> Real:
    """The variable at ``node``; for an index, which is not a property of a node, the line's own q.

    A polynomial in log s is one in log-SNR, its negative. ``asinh(s/c)``, with the c of a `Rotation` and otherwise 1,
    behaves like log s far from the data and like s near it: it is the inverse Gudermannian of the rotation's angle.
    """
    if variable == "log_snr":
        return node.log_snr
    if variable == "s":
        return node.s
    if variable == "t":
        return node.t
    if variable == "asinh":
        return native(np.arcsinh(node.s / (line.c if isinstance(line, Rotation) else 1.0)))
    return node.angle if variable == "angle" else line.q(node)


def lagrange(v: Array, nodes: Sequence[Array]) -> list[Array]:
    """The Lagrange polynomials of ``nodes``, each ``(m, 1)``, at ``v``, ``(m, points)``."""
    found = []
    for j, own in enumerate(nodes):
        product = np.ones_like(v)
        for m, other in enumerate(nodes):
            if m != j:
                product *= (v - other) / (own - other)
        found.append(product)
    return found


class Rule(NamedTuple):
    """Gauss-Legendre panels of n steps; the panels of one step do not depend on the others.

    ``v`` and ``dq`` are the variable and the weights at the points, ``(m, 8)``; ``step`` is the step to which each
    panel belongs, ``(m,)``.
    """

    v: Array
    dq: Array
    step: Array


def adams_weights(
    ode: PathODE, line: Line, variable: Variable, a: Node, b: Node, nodes: Sequence[Node], basis: Basis = lagrange
) -> list[Array]:
    """The weight of the slope at each of ``nodes`` in the integral from a to b, ``(n,)`` each, for n steps at once.

    ``nodes`` are newest first: a and earlier ones, for a predictor, or b, a and earlier ones. With
    ``variable="index"`` they are numbered evenly, and the weights are those of a grid that is uniform in q.

    The weights add up to ``q_b - q_a``, whatever the quadrature: a constant slope is integrated exactly, and the
    round-off in differences of nodes multiplies differences of slopes only.
    """
    q_a, q_b = np.asarray(line.q(a)), np.asarray(line.q(b))
    if len(nodes) == 1:
        return [q_b - q_a]
    if variable == "index":
        newest = 1.0 if nodes[0] is b else 0.0
        at_nodes = [np.full_like(q_a, newest - j) for j in range(len(nodes))]
        step = np.arange(len(q_a))
        rule = Rule(np.broadcast_to(POINTS, (len(q_a), len(POINTS))), np.multiply.outer(q_b - q_a, WEIGHTS), step)
    elif variable == "log_snr" and isinstance(line, Noise | Data):
        # Offsets from a avoid the round-off of a large logarithm in the exponential.
        log_snr_a = np.asarray(a.log_snr)
        at_nodes = [np.asarray(node.log_snr) - log_snr_a for node in nodes]
        change = np.asarray(b.log_snr) - log_snr_a
        step, begin, end = cut(np.abs(change) / LONGEST_EXPONENTIAL)
        v, dv = between(change[step] * begin, change[step] * end)
        sign = 1.0 if isinstance(line, Data) else -1.0
        rule = Rule(v, sign * q_a[step, None] * np.exp(sign * v) * dv, step)
    elif variable == "q":
        at_nodes = [np.asarray(line.q(node)) for node in nodes]
        rule = Rule(*between(q_a, q_b), np.arange(len(q_a)))
    else:
        at_nodes = [np.asarray(value(variable, line, node)) for node in nodes]
        q, dq, step = by_log_snr(ode, line, a, b)
        rule = Rule(np.asarray(value(variable, line, line.node(ode, q.ravel()))).reshape(q.shape), dq, step)
    polynomials = basis(rule.v, [node[rule.step, None] for node in at_nodes])
    parts = ((rule.dq * polynomial).sum(axis=1) for polynomial in polynomials[1:])
    weights = [np.bincount(rule.step, weights=part, minlength=len(q_a)) for part in parts]
    return [q_b - q_a - np.sum(weights, axis=0), *weights]


def cut(lengths: Array) -> tuple[Array, Array, Array]:
    """Cut every step into panels of length at most 1: each panel's step, and where in the step it begins and ends."""
    counts = np.maximum(np.ceil(lengths), 1).astype(np.int64)
    step = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(step)) - (np.cumsum(counts) - counts)[step]
    return step, place / counts[step], (place + 1) / counts[step]


def between(begin: Array, end: Array) -> tuple[Array, Array]:
    """Points and weights of the rule on every panel from ``begin`` to ``end``."""
    return begin[:, None] + np.multiply.outer(end - begin, POINTS), np.multiply.outer(end - begin, WEIGHTS)


def by_log_snr(ode: PathODE, line: Line, a: Node, b: Node) -> tuple[Array, Array, Array]:
    """Points and weights in q from a to b, in panels that are short in log-SNR, and the steps to which they belong.

    An end at the data or at pure noise, where log-SNR is infinite, has its own panel: q is regular there.
    """
    ends = [np.asarray(node.log_snr) for node in (a, b)]
    infinite = [np.isinf(end) for end in ends]
    # That panel begins where alpha or sigma is small relative to the other, and beyond the other end.
    reach = 2 + np.where(infinite[0], 0, np.abs(ends[0])) + np.where(infinite[1], 0, np.abs(ends[1]))
    low, high = (np.clip(end, -reach, reach) for end in ends)
    step, begin, end = cut(np.abs(high - low) / LONGEST_PANEL)
    q_a, q_b = (np.asarray(line.q(node)) for node in (a, b))

    first, last = (np.asarray(line.q(ode.node_at(low[step] + (high - low)[step] * place))) for place in (begin, end))
    # The ends are the nodes themselves: a round trip through log-SNR would move them by round-off.
    first = np.where((begin == 0) & ~infinite[0][step], q_a[step], first)
    last = np.where((end == 1) & ~infinite[1][step], q_b[step], last)
    leaving, reaching = np.flatnonzero(infinite[0]), np.flatnonzero(infinite[1])
    outer = [first[(begin == 0) & infinite[0][step]], last[(end == 1) & infinite[1][step]]]
    q, dq = between(np.concatenate((first, q_a[leaving], outer[1])), np.concatenate((last, outer[0], q_b[reaching])))
    return q, dq, np.concatenate((step, leaving, reaching))
