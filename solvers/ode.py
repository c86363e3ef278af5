"""The problem: an ODE, and the ODE of a path from data to noise."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from solvers.real import Real, divide, is_zero, log, native
from solvers.sums import Terms, combine


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
        """``atan2(sigma, alpha)``, from 0 at the data to pi/2 at alpha = 0; regular at both ends."""
        return native(np.arctan2(self.sigma, self.alpha))


DATA = Node(0.0, 1.0, 0.0)
"""The data, on every path."""


class Prediction:
    """What the network predicts from a state: the data ``x0`` and the noise ``eps`` of ``x = alpha x0 + sigma eps``.

    Both have the shape of the state. Each may be given as a function without arguments. It is called on first use, so
    that a method that reads only one of the two never pays for the other.
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

    def hold_to(self, ode: "ODE", shape: tuple[int, ...]) -> None:
        """Raise `ValueError`, at once or when a part is computed, unless ``ode`` made both in the state's ``shape``.

        A part that a subclass computes by a property of its own is not checked.
        """
        if type(self).x0 is Prediction.x0:
            self._x0 = _held(ode, "x0", self._x0, shape)
        if type(self).eps is Prediction.eps:
            self._eps = _held(ode, "eps", self._eps, shape)

    def terms(self, data: Real, noise: Real) -> Terms:
        """``data x0 + noise eps`` as a sum over the tensors at hand: for a network, the state and its output."""
        parts = ((data, lambda: self.x0), (noise, lambda: self.eps))
        return [(share, part()) for share, part in parts if not is_zero(share)] or [(0.0, self.x0)]

    def mix(self, data: Real, noise: Real) -> Tensor:
        """``data x0 + noise eps`` as a new tensor."""
        return combine(*self.terms(data, noise))


def require_part(ode: "ODE", name: str, found: object, shape: tuple[int, ...]) -> Tensor:
    """``found``, which ``ode`` returned as ``name``; raises `ValueError` unless it has the ``shape`` of the state."""
    if isinstance(found, Tensor) and found.shape == shape and found.is_floating_point():
        return found
    got = f"{tuple(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
    raise ValueError(
        f"ode={type(ode).__name__} returned {got} as {name} for a state of {tuple(shape)}; let it be a real "
        "floating-point tensor of that shape"
    )


def _held(
    ode: "ODE", name: str, part: Tensor | Callable[[], Tensor], shape: tuple[int, ...]
) -> Tensor | Callable[[], Tensor]:
    if isinstance(part, Tensor):
        return require_part(ode, name, part, shape)
    return lambda: require_part(ode, name, part(), shape)


class ODE(ABC):
    """An initial value problem's right-hand side, ``dx/dt = f(t, x)``, for a batch of independent samples."""

    passes: int = 1
    """Network passes that one call costs: 2 under classifier-free guidance."""

    @abstractmethod
    def __call__(self, t: Any, x: Tensor) -> Tensor:
        """Return dx/dt as a new tensor in the shape of ``x``, ``(B, ...)``; ``x`` itself must not be written to.

        ``t`` is a float. Methods whose samples keep their own times pass a ``(B,)`` array to a `PathODE`, and to any
        other ODE a tensor ``(B, 1, ...)`` in the dtype of ``x``, which broadcasts against it.
        """

    def node(self, t: Real) -> Node:
        """The node at time ``t``. A plain ODE has no path: its alpha and sigma are NaN."""
        return Node(t, math.nan, math.nan)

    def nodes(self, times: Sequence[float]) -> list[Node]:
        """The nodes of a grid; a path that finds all of them faster together overrides this."""
        return [self.node(t) for t in times]

    def rows(self, index: Tensor) -> Any:
        """The same problem for the samples ``index`` alone; an ODE with data for each sample overrides this."""
        return self

    def require_batch(self, batch: int) -> None:  # noqa: B027  most hold no data for each sample
        """Raise `ValueError` if the ODE holds data for each sample, and not for ``batch`` of them."""


class PathODE(ODE):
    """The probability-flow ODE of a path, ``dx/dt = alpha'(t) x0(x, t) + sigma'(t) eps(x, t)``.

    It is the path ``x = alpha x0 + sigma eps`` with the predictions substituted for the data and the noise
    (Song et al. 2021, "Score-based generative modeling through SDEs", eq. 13, rewritten).
    """

    end: Node | None = None
    """The node below which predictions are unreliable, so that denoising from it gives the data; None: reliable down to
    the data."""

    amplification: float = 1.0
    """The ratio of a prediction's error to the error of one network pass: sqrt(w^2 + (w - 1)^2) under classifier-free
    guidance ``u + w (c - u)``, where the errors of the two passes are independent."""

    bounded_error: bool = False
    """Whether the error of a predicted x0 stays bounded far above the data, as that of a network that predicts x0, v or
    a flow does. That of one that predicts eps grows with s: x0 = (x - sigma eps)/alpha."""

    @abstractmethod
    def predict(self, node: Node, x: Tensor) -> Prediction:
        """Split ``x`` at ``node`` into data and noise by one call of the network."""

    @abstractmethod
    def node(self, t: Real) -> Node:
        """The node at time ``t``."""

    @abstractmethod
    def node_at(self, log_snr: Real) -> Node:
        """The node with ``log(alpha / sigma) = log_snr``: the inverse of `Node.log_snr`."""

    @abstractmethod
    def rates(self, t: Real) -> tuple[Real, Real]:
        """``alpha'(t)`` and ``sigma'(t)``."""

    def coordinates(self) -> "Coordinates | None":
        """The path by itself, for which grid coefficients are cached between solves; None disables the cache."""
        return None

    def __call__(self, t: Real, x: Tensor) -> Tensor:
        alpha_rate, sigma_rate = self.rates(t)
        return self.predict(self.node(t), x).mix(alpha_rate, sigma_rate)


@dataclass(frozen=True)
class Coordinates(PathODE):
    """A path without predictions. ``path`` has ``node``, ``node_at`` and ``rates``, and equals every equal path."""

    path: Any

    def predict(self, node: Node, x: Tensor) -> Prediction:
        """Raise `TypeError`: there are no predictions."""
        raise TypeError(f"{self.path} is a path alone, without predictions; plan a grid from the nodes only")

    def node(self, t: Real) -> Node:
        """The path's node."""
        found: Node = self.path.node(t)
        return found

    def node_at(self, log_snr: Real) -> Node:
        """The path's node."""
        found: Node = self.path.node_at(log_snr)
        return found

    def rates(self, t: Real) -> tuple[Real, Real]:
        """The path's rates."""
        found: tuple[Real, Real] = self.path.rates(t)
        return found
