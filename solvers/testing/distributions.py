"""Distributions whose predictions are closed forms, and their probability-flow ODEs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm

from solvers.ode import Node, PathODE, Prediction
from solvers.real import Real, anywhere, everywhere, is_zero, native
from solvers.sums import Terms, combine, per_row

BLOCK = 2**17
"""The most numbers that a temporary of `Mixture` holds."""
KEPT = 2**22
"""The most numbers that a `Mixture` keeps for the nodes at which it was asked."""
SMALL = 2**11
"""The largest temporary beside which it keeps them: among large ones they would leave the heap in pieces, gigabytes of
it, and there they take little of the time."""
LINES = 4
"""The number of sums of x0 and eps for which it keeps them at each node: methods read theirs along a few lines."""


class Trigonometric:
    """The path ``alpha = cos t, sigma = sin t`` for t in [0, pi/2]: the simplest that has both ends."""

    def node(self, t: Real) -> Node:
        """The node at angle ``t``."""
        return Node(t, native(np.cos(t)), native(np.sin(t)))

    def node_at(self, log_snr: Real) -> Node:
        """``tan t = exp(-log_snr)``."""
        return self.node(native(np.arctan(np.exp(np.negative(log_snr)))))

    def rates(self, t: Real) -> tuple[Real, Real]:
        """``-sin t`` and ``cos t``."""
        return native(-np.sin(t)), native(np.cos(t))


@dataclass(frozen=True)
class Gaussian:
    """Data ``N(mean, deviation^2)``, independent in every component; prediction and flow have closed forms."""

    mean: float = 0.5
    deviation: float = 0.6

    def predict(self, node: Node, x: Tensor) -> Prediction:
        """``E[x0 | x]`` and ``E[eps | x]``."""
        variance = self.deviation**2
        total = node.alpha**2 * variance + node.sigma**2
        centred = self._centred(node, x)
        return Prediction(
            lambda: combine((node.alpha * variance / total, centred)).add_(self.mean),
            lambda: combine((node.sigma / total, centred)),
        )

    def flow(self, a: Node, b: Node, x: Tensor) -> Tensor:
        """The exact solution of the probability-flow ODE from a to b, which preserves quantiles."""
        spread = [np.hypot(node.alpha * self.deviation, node.sigma) for node in (a, b)]
        moved = combine((native(spread[1] / spread[0]), self._centred(a, x)))
        return moved.add_(per_row(b.alpha * self.mean, x))

    def _centred(self, node: Node, x: Tensor) -> Tensor:
        return x - per_row(node.alpha * self.mean, x)


class _Place:
    """What a mixture's predictions at a node need beside the state, ``(K,)`` or ``(K, d)``, as tensors like it."""

    def __init__(self, mixture: "Mixture", alpha: Real, sigma: Real, like: Tensor) -> None:
        self.alpha, self.sigma = _column(alpha), _column(sigma)
        self.variances = mixture._variances
        self.total = self.variances * (self.alpha * self.alpha) + self.sigma * self.sigma
        prior = mixture._log_weights - mixture._means.shape[1] / 2 * np.log(self.total)
        means = _column(self.alpha) * mixture._means
        with torch.inference_mode(False):  # autograd refuses tensors that are made in inference mode
            self.means, self.prior, self.falls = (
                torch.from_numpy(value).to(like) for value in (means, prior, -0.5 / self.total)
            )
        self._parts: dict[tuple[float, float], tuple[Tensor | None, Tensor]] = {}

    def parts(self, data: Real, noise: Real, mixture: "Mixture", like: Tensor) -> tuple[Tensor | None, Tensor]:
        """``data m_k`` and the factor of ``x - alpha m_k`` in ``data x0 + noise eps``, given component k.

        They are kept if all samples share them. The first is None where it is 0.
        """
        if not (isinstance(data, float) and isinstance(noise, float)):
            return self._computed(data, noise, mixture, like)
        if (data, noise) not in self._parts:
            if len(self._parts) >= LINES:
                self._parts.clear()
            self._parts[data, noise] = self._computed(data, noise, mixture, like)
        return self._parts[data, noise]

    def _computed(self, data: Real, noise: Real, mixture: "Mixture", like: Tensor) -> tuple[Tensor | None, Tensor]:
        data, noise = _column(data), _column(noise)
        slopes = (data * self.alpha * self.variances + noise * self.sigma) / self.total
        with torch.inference_mode(False):
            means = torch.from_numpy(_column(data) * mixture._means).to(like) if anywhere(data != 0) else None
            return means, torch.from_numpy(slopes).to(like)


class Mixture:
    """Data from a mixture of isotropic Gaussians: weights ``(K,)``, means ``(K, d)``, deviations ``(K,)``."""

    def __init__(self, weights: Tensor, means: Tensor, deviations: Tensor) -> None:
        self.weights, self.means, self.deviations = weights, means, deviations
        shares, self._means, spreads = (v.double().cpu().numpy() for v in (weights, means, deviations))
        self._log_weights, self._variances = np.log(shares), spreads**2
        self._places: dict[tuple[float, float, torch.dtype, torch.device], _Place] = {}

    def predict(self, node: Node, x: Tensor) -> Prediction:
        """``E[x0 | x]`` and ``E[eps | x]``: the posterior means given each component, weighted by responsibility.

        Component k gives ``m_k + alpha d_k^2 / v_k (x - alpha m_k)`` and ``sigma / v_k (x - alpha m_k)`` for
        ``v_k = alpha^2 d_k^2 + sigma^2``. What does not depend on x is computed in NumPy's float64.
        """
        size = max(1, BLOCK // self._means.size)
        if x.shape[0] <= size:
            return self._predict(node, x)

        def mix(data: Real, noise: Real) -> Tensor:
            # In blocks, the distances to all means, K states for each sample, stay in the processor's cache.
            parts = []
            for first in range(0, len(x), size):
                *place, of_data, of_noise = (_rows(value, slice(first, first + size)) for value in (*node, data, noise))
                parts.append(self._predict(Node(*place), x[first : first + size]).mix(of_data, of_noise))
            return torch.cat(parts)

        return Mixed(mix)

    def _predict(self, node: Node, x: Tensor) -> Prediction:
        place = self._place(node, x)
        # Row-wise reductions, no matrix product across the batch: a sample's bits do not depend on its batch mates.
        centred = x.reshape(x.shape[0], 1, self._means.shape[1]) - place.means
        log_density = torch.addcmul(place.prior, vector_norm(centred, dim=-1).square(), place.falls)
        responsibility = torch.softmax(log_density, dim=1)

        def mix(data: Real, noise: Real) -> Tensor:
            means, slopes = place.parts(data, noise, self, x)
            if means is None:  # eps, which most solvers read
                parts = (slopes * responsibility).unsqueeze(-1) * centred
            else:
                parts = torch.addcmul(means, slopes.unsqueeze(-1), centred)
                parts.mul_(responsibility.unsqueeze(-1))
            found = parts.sum(1)
            return found if x.ndim == 2 else found.reshape(x.shape)

        return Mixed(mix)

    def _place(self, node: Node, x: Tensor) -> _Place:
        """The place of ``node``, kept where samples share it: many methods are measured on one grid."""
        small = len(x) * self._means.size <= SMALL
        if not (small and isinstance(node.alpha, float) and isinstance(node.sigma, float)):
            return _Place(self, node.alpha, node.sigma, x)
        key = node.alpha, node.sigma, x.dtype, x.device
        if key not in self._places:
            if len(self._places) * self._means.size * (1 + LINES) >= KEPT:
                self._places.clear()
            self._places[key] = _Place(self, node.alpha, node.sigma, x)
        return self._places[key]

    def sample(self, count: int, seed: int) -> Tensor:
        """``count`` samples of the data, ``(count, d)`` in float64."""
        generator = torch.Generator().manual_seed(seed)
        component = torch.multinomial(self.weights.double(), count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[component] + self.deviations[component, None] * noise


def _column(value: Real) -> Real:
    """An array ``(...)`` as ``(..., 1)``; one number for the whole batch stays as it is."""
    return value if isinstance(value, float) else np.asarray(value)[..., None]


def _rows(value: Real, rows: slice) -> Real:
    return value if np.ndim(value) == 0 else value[rows]  # type: ignore[index]


class Mixed(Prediction):
    """A prediction for which any combination, ``mix(data, noise)``, costs as much as either part."""

    def __init__(self, mix: Callable[[Real, Real], Tensor]) -> None:
        super().__init__(partial(mix, 1.0, 0.0), partial(mix, 0.0, 1.0))
        self._mix = mix

    def mix(self, data: Real, noise: Real) -> Tensor:
        """``data x0 + noise eps``."""
        return self._mix(data, noise)

    def terms(self, data: Real, noise: Real) -> Terms:
        """That sum as one term."""
        both = not (is_zero(data) or is_zero(noise))
        return [(1.0, self._mix(data, noise))] if both else super().terms(data, noise)


class ExactODE(PathODE):
    """The probability-flow ODE of a known distribution: no network, no network error.

    ``distribution`` has ``predict(node, x)``; ``path`` has ``node``, ``node_at`` and ``rates``. Every call checks that
    the solver stays inside ``span`` and keeps the state's dtype and shape.
    """

    def __init__(self, distribution: Gaussian | Mixture, path: Trigonometric | None = None, span: Sequence[float] = ()):
        self.distribution = distribution
        self.path = path or Trigonometric()
        self.span = span
        self.like: tuple[torch.dtype, torch.device, torch.Size] | None = None

    def watching(self, like: Tensor, span: Sequence[float]) -> "ExactODE":
        """The same problem, which raises for states unlike ``like`` and times outside ``span``."""
        watched = ExactODE(self.distribution, self.path, span)
        watched.like = like.dtype, like.device, like.shape[1:]
        return watched

    def predict(self, node: Node, x: Tensor) -> Prediction:
        """The exact posterior means."""
        if self.span and not everywhere((min(self.span) <= node.t) & (node.t <= max(self.span))):
            raise AssertionError(f"the field was called at t={node.t}, outside the span {self.span}")
        if self.like is not None:
            got = x.dtype, x.device, x.shape[1:]
            if got != self.like:
                raise AssertionError(f"the field was called with {got} for a state of {self.like}")
        return self.distribution.predict(node, x)

    def node(self, t: Real) -> Node:
        """The path's node."""
        return self.path.node(t)

    def node_at(self, log_snr: Real) -> Node:
        """The path's node."""
        return self.path.node_at(log_snr)

    def rates(self, t: Real) -> tuple[Real, Real]:
        """The path's rates."""
        return self.path.rates(t)
