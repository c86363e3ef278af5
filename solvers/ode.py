"""The problem: an ODE, and the ODE of a path from data to noise."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers.fusion import fused, fusing
from solvers.large import spare
from solvers.real import Real, divide, is_zero, log, native


class Node(NamedTuple):
    """A time on the path ``x = alpha x0 + sigma eps``; ``(B,)`` float64 arrays when samples keep their own time."""

    t: Real
    alpha: Real
    sigma: Real

    @property
    def s(self) -> Real:
        """``sigma / alpha``, the noise-to-signal ratio; infinite at alpha = 0."""
        return divide(self.sigma, self.alpha)

    @property
    def log_snr(self) -> Real:
        """``log(alpha / sigma)``, half the log of the signal-to-noise power; +inf at the data, -inf at alpha = 0."""
        return log(self.alpha) - log(self.sigma)

    @property
    def angle(self) -> Real:
        """``atan2(sigma, alpha)``, from 0 at the data to pi/2 at alpha = 0: regular at both ends."""
        return native(np.arctan2(self.sigma, self.alpha))


Term = tuple[Real, Tensor]
"""A coefficient and a tensor."""
Terms = Sequence[Term]


class Prediction:
    """What the network sees in a state: the data ``x0`` and the noise ``eps`` of ``x = alpha x0 + sigma eps``.

    Each may be given as a function without arguments. It is called on first use, so that a method which reads only one
    of the two never pays for the other.
    """

    __slots__ = ("_eps", "_x0")

    def __init__(self, x0: Tensor | Callable[[], Tensor], eps: Tensor | Callable[[], Tensor]) -> None:
        self._x0, self._eps = x0, eps

    @property
    def x0(self) -> Tensor:
        """The predicted data."""
        if not isinstance(self._x0, Tensor):
            self._x0 = self._x0()
        return self._x0

    @property
    def eps(self) -> Tensor:
        """The predicted noise."""
        if not isinstance(self._eps, Tensor):
            self._eps = self._eps()
        return self._eps

    def terms(self, data: Real, noise: Real) -> Terms:
        """``data x0 + noise eps`` as a sum over what is there: a network's prediction has the state and its output."""
        parts = ((data, lambda: self.x0), (noise, lambda: self.eps))
        return [(share, part()) for share, part in parts if not is_zero(share)] or [(0.0, self.x0)]

    def mix(self, data: Real, noise: Real) -> Tensor:
        """``data x0 + noise eps``, a tensor of its own."""
        return combine(*self.terms(data, noise))


class ODE(ABC):
    """An initial value problem's right-hand side, ``dx/dt = f(t, x)``, for a batch of independent samples."""

    passes: int = 1
    """Network passes that one call costs: 2 under classifier-free guidance."""

    @abstractmethod
    def __call__(self, t: Any, x: Tensor) -> Tensor:
        """Return dx/dt in the shape of ``x``, ``(B, ...)``.

        ``t`` is a float or, from methods whose samples keep their own times, what `PathODE` works with, a ``(B,)``
        array; any other ODE gets a tensor ``(B, 1, ...)`` that broadcasts against ``x``.
        """

    def node(self, t: Real) -> Node:
        """The node at time ``t``. A plain ODE has no path: its alpha and sigma are NaN."""
        return Node(t, math.nan, math.nan)

    def nodes(self, times: Sequence[float]) -> list[Node]:
        """The nodes of a grid; a path that finds them all at once in less time overrides this."""
        return [self.node(t) for t in times]

    def rows(self, index: Tensor) -> Any:
        """The same problem for the samples ``index`` alone; an ODE with data of its own per sample overrides this."""
        return self


class PathODE(ODE):
    """The probability-flow ODE of a path, ``dx/dt = alpha'(t) x0(x, t) + sigma'(t) eps(x, t)``.

    It is the path ``x = alpha x0 + sigma eps`` with the predictions put in for the data and the noise
    (Song et al. 2021, "Score-based generative modeling through SDEs", eq. 13, rewritten).
    """

    @abstractmethod
    def predict(self, node: Node, x: Tensor) -> Prediction:
        """Split ``x`` at ``node`` into data and noise, by one call of the network."""

    @abstractmethod
    def node(self, t: Real) -> Node:
        """The node at time ``t``."""

    @abstractmethod
    def node_at(self, log_snr: Real) -> Node:
        """The node with ``log(alpha / sigma) = log_snr``: the inverse of `Node.log_snr`."""

    @abstractmethod
    def rates(self, t: Real) -> tuple[Real, Real]:
        """``alpha'(t)`` and ``sigma'(t)``."""

    def __call__(self, t: Real, x: Tensor) -> Tensor:
        alpha_rate, sigma_rate = self.rates(t)
        return self.predict(self.node(t), x).mix(alpha_rate, sigma_rate)


def combine(*terms: Term) -> Tensor:
    """``sum of c * x`` over the pairs ``(c, x)``: the one place where coefficients meet tensors.

    Coefficients are floats or ``(B,)`` float64 arrays; an array scales the rows of its tensor. The result keeps the
    dtype and device of the tensors, whatever the precision of the coefficients.
    """
    shared = _shared(terms)
    if shared is not None:
        if fusing.get():
            return fused([shared], [tensor for _, tensor in terms])[0]
        factor, found = _up_to_a_factor(shared, [tensor for _, tensor in terms])
        if len(terms) == 1:
            return torch.mul(found, factor, out=spare([found]))
        return found if factor == 1 else found.mul_(factor)
    (first, x), *rest = terms
    found = x * (first if isinstance(first, float) else per_row(first, x))
    for coefficient, x in rest:
        if isinstance(coefficient, float):
            found.add_(x, alpha=coefficient)
        else:
            found.addcmul_(x, per_row(coefficient, x))
    return found


def total(terms: Terms) -> Tensor:
    """`combine`, but a tensor itself where that is the sum."""
    coefficient, tensor = terms[0]
    alone = len(terms) == 1 and isinstance(coefficient, float) and coefficient == 1
    return tensor if alone else combine(*terms)


def single(terms: Terms) -> Term:
    """The sum as one term: a factor, which is left to those who read it, and a tensor; saves a pass over memory."""
    shared = _shared(terms)
    return (1.0, combine(*terms)) if shared is None else _up_to_a_factor(shared, [tensor for _, tensor in terms])


def pending(terms: Terms) -> Terms:
    """What `advance` makes the newest slope from: one term, or the terms as they are where all is fused there."""
    return terms if fusing.get() else [single(terms)]


def _up_to_a_factor(coefficients: Sequence[float], tensors: Sequence[Tensor]) -> tuple[float, Tensor]:
    """A factor and the sum over it; one term stays as it is.

    The factor is 1 where it can be, so that zeros added to a state leave it as it was, and otherwise the largest
    coefficient, beside which no other one overflows.
    """
    if len(tensors) == 1:
        return coefficients[0], tensors[0]
    factor = 1.0 if 1.0 in coefficients else max(coefficients, key=abs)
    first = coefficients.index(factor)
    second = 0 if first else 1
    found = torch.add(
        tensors[first], tensors[second], alpha=coefficients[second] / factor if factor else 0.0, out=spare(tensors)
    )
    for i in range(len(tensors)):
        if i != first and i != second:
            found.add_(tensors[i], alpha=coefficients[i] / factor if factor else 0.0)
    return factor, found


def _shared(terms: Terms) -> list[float] | None:
    """The coefficients, if all samples have the same."""
    coefficients = [coefficient for coefficient, _ in terms if isinstance(coefficient, float)]
    return coefficients if len(coefficients) == len(terms) else None


def advance(start: Term, weights: Sequence[Real], newest: Terms, earlier: Terms) -> tuple[Term, Tensor]:
    """A multistep formula: ``start`` plus the weighted sum of the newest slope, `pending`, and earlier ones.

    Returns the newest slope as one term as well, for the steps that follow. Fused, both are made in one pass.
    """
    read = [(weight * factor, tensor) for weight, (factor, tensor) in zip(weights[1:], earlier, strict=False)]
    if fusing.get() and len(newest) > 1:
        own, direct, weight = _shared(newest), _shared([start, *read]), weights[0]
        if own is not None and direct is not None and isinstance(weight, float):
            # The slope's own terms in the place of the slope.
            tensors = [tensor for _, tensor in (*newest, start, *read)]
            slope, end = fused([own, [*(weight * coefficient for coefficient in own), *direct]], tensors)
            return (1.0, slope), end
    factor, tensor = newest_slope = single(newest)
    return newest_slope, combine(start, (weights[0] * factor, tensor), *read)


def accumulate(start: Tensor | None, weights: np.ndarray, tensors: Tensor) -> Tensor:
    """``start + sum over j of weights[j] tensors[j]``: `combine` for weights ``(M, B)`` and tensors ``(M, B, ...)``.

    Weights ``(S, M, B)`` give S sums at once, ``(S, B, ...)``. All weights are transferred at once; zeros cost nothing.
    """
    *several, count, batch = weights.shape
    total = tensors.new_zeros((*several, *tensors.shape[1:])) if start is None else start.clone()
    columns = per_row(weights, tensors[0]).unbind(len(several))
    for j in np.flatnonzero(weights.reshape(-1, count, batch).any(axis=(0, 2))).tolist():
        total.addcmul_(tensors[j], columns[j])
    return total


def per_row(values: Real, like: Tensor) -> Tensor:
    """``values``, ``(..., B)`` or one for all, as a tensor that multiplies the rows of ``like``, ``(B, ...)``."""
    column = np.asarray(values, dtype=np.float64)
    return torch.from_numpy(column.reshape(column.shape + (1,) * (like.ndim - 1) if column.ndim else ())).to(like)
