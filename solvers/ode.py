"""The problem: an ODE, and the ODE of a path from data to noise."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers.fusion import fused, fusing
from solvers.real import Real, divide, log, native


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

    def mix(self, data: Real, noise: Real) -> Tensor:
        """``data x0 + noise eps``; a network's prediction computes it from its output in one go."""
        return combine((data, self.x0), (noise, self.eps))


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


def combine(*terms: tuple[Real, Tensor]) -> Tensor:
    """``sum of c * x`` over the pairs ``(c, x)``: the one place where coefficients meet tensors.

    Coefficients are floats or ``(B,)`` float64 arrays; an array scales the rows of its tensor. The result keeps the
    dtype and device of the tensors, whatever the precision of the coefficients.
    """
    if fusing.get() and all(isinstance(coefficient, float) for coefficient, _ in terms):
        return fused(*zip(*terms, strict=True))
    (first, x), *rest = terms
    total = x * (first if isinstance(first, float) else per_row(first, x))
    for coefficient, x in rest:
        if isinstance(coefficient, float):
            total.add_(x, alpha=coefficient)
        else:
            total.addcmul_(x, per_row(coefficient, x))
    return total


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
