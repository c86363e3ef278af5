"""Variance-preserving schedules, alpha^2 + sigma^2 = 1: linear, scaled linear, cosine and sigmoid."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from odediff.schedule.base import Array, Schedule, require_increasing
from solvers.arguments import as_number, require_positive


class VP(Schedule):
    """A schedule with alpha^2 + sigma^2 = 1, so that alpha = 1 / sqrt(1 + s^2) and sigma = s alpha, s = sigma/alpha."""

    def _path_at(self, log_snr: Array) -> tuple[Array, Array]:
        # sigma = 1 / sqrt(1 + 1/s^2) instead of s alpha, which is inf * 0 at the noise end.
        return 1.0 / np.hypot(1.0, np.exp(-log_snr)), 1.0 / np.hypot(1.0, np.exp(log_snr))


class IntegratedBeta(Schedule):
    """A schedule given by its noise rate beta(t), through B(t), the integral of beta from 0 to t.

    The underlying process is dx = -beta/2 x dt + noise, so alpha = exp(-B/2) whatever the noise (Song et al. 2021,
    "Score-based generative modeling through SDEs", appendix B).
    """

    def beta(self, t: float) -> float:
        """Return the noise rate at time t, per unit of t."""
        return float(self._beta(self._inside(t)))

    @abstractmethod
    def _beta(self, t: Array) -> Array:
        """Return beta(t)."""

    @abstractmethod
    def _integral(self, t: Array) -> Array:
        """Return B(t)."""

    @abstractmethod
    def _time_of_integral(self, integral: Array) -> Array:
        """Return the time of B."""


class VPFromBeta(VP, IntegratedBeta):
    """alpha = exp(-B/2), sigma = sqrt(1 - exp(-B)); sigma' is infinite at t = 0 wherever beta(0) > 0."""

    def _path(self, t: Array) -> tuple[Array, Array]:
        integral = self._integral(t)
        return np.exp(-0.5 * integral), np.sqrt(-np.expm1(-integral))

    def _rates(self, t: Array) -> tuple[Array, Array]:
        alpha, sigma = self._path(t)
        half_beta = 0.5 * self._beta(t)
        return -half_beta * alpha, half_beta * alpha**2 / sigma

    def _time(self, log_snr: Array) -> Array:
        # s^2 = exp(B) - 1; logaddexp is log(1 + s^2) without overflow.
        return self._time_of_integral(np.logaddexp(0.0, -2.0 * log_snr))


@dataclass(frozen=True)
class LinearBeta(IntegratedBeta):
    """beta(t) = beta_min + t (beta_max - beta_min), hence B(t) = beta_min t + (beta_max - beta_min) t^2 / 2."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        require_positive("beta_min", self.beta_min, "0.1")
        require_increasing(beta_min=self.beta_min, beta_max=self.beta_max)

    def _beta(self, t: Array) -> Array:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _integral(self, t: Array) -> Array:
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def _time_of_integral(self, integral: Array) -> Array:
        # The root with the sum in the denominator: no cancellation as B -> 0.
        slope = self.beta_max - self.beta_min
        return 2.0 * integral / (self.beta_min + np.sqrt(self.beta_min**2 + 2.0 * slope * integral))


@dataclass(frozen=True)
class VPLinear(VPFromBeta, LinearBeta):
    """The VP SDE with linear beta (Song et al. 2021, app. C): log alpha = -t b_0 / 2 - t^2 (b_1 - b_0) / 4.

    Here b_0 = beta_min and b_1 = beta_max. The defaults are the continuous limit of DDPM's table of 1,000 betas from
    1e-4 to 0.02.
    """


@dataclass(frozen=True)
class VPScaledLinear(VPFromBeta):
    """The VP SDE with sqrt(beta) linear in t: beta = (r + t d)^2, r = sqrt(beta_min), d = sqrt(beta_max) - r.

    The schedule of latent diffusion (Rombach et al. 2022). The defaults are the continuous limit of Stable Diffusion's
    table: 1,000 times its betas 0.00085 and 0.012.
    """

    beta_min: float = 0.85
    beta_max: float = 12.0

    def __post_init__(self) -> None:
        require_positive("beta_min", self.beta_min, "0.85")
        require_increasing(beta_min=self.beta_min, beta_max=self.beta_max)

    @property
    def _root(self) -> tuple[float, float]:
        root = math.sqrt(self.beta_min)
        return root, math.sqrt(self.beta_max) - root

    def _beta(self, t: Array) -> Array:
        root, slope = self._root
        return (root + t * slope) ** 2

    def _integral(self, t: Array) -> Array:
        root, slope = self._root
        rise = t * slope
        return t * (root * (root + rise) + rise**2 / 3.0)

    def _time_of_integral(self, integral: Array) -> Array:
        # (r + t d)^3 = r^3 + 3 d B; factoring the difference of two cubes avoids the cancellation.
        root, slope = self._root
        end = np.cbrt(root**3 + 3.0 * slope * integral)
        return 3.0 * integral / (end * (end + root) + root**2)


@dataclass(frozen=True)
class VPCosine(VP):
    """The cosine schedule (Nichol & Dhariwal 2021, eq. 17), continuous: alpha = cos(u) / cos(u_0).

    u = (t + s) / (1 + s) * pi/2 and u_0 = u(0), so alpha(0) = 1. With w = u - u_0,
    sigma = sqrt(sin(w) sin(w + 2 u_0)) / cos(u_0).

    alpha reaches 0 at t = 1, where epsilon has no information about the data. The path is defined up to there
    (alpha(1) is exactly 0), but sampling starts at `start`, by default 0.9946 as in dpm-solver: alpha = 0.0084,
    sigma/alpha = 119. A network with x0- or v-prediction may use start = 1.

    Args:
        s: the offset, above 0.
        start: the largest time of a grid, in (0, 1].
    """

    s: float = 0.008
    start: float = 0.9946

    def __post_init__(self) -> None:
        require_positive("s", self.s, "0.008")
        require_start(self.start)

    @property
    def _angles(self) -> tuple[float, float]:
        """The speed du/dt and the offset u_0."""
        speed = 0.5 * math.pi / (1.0 + self.s)
        return speed, self.s * speed

    def _path(self, t: Array) -> tuple[Array, Array]:
        # cos(u) as the sine of pi/2 - u, which is exact where it vanishes.
        speed, offset = self._angles
        w = speed * t
        cosine = math.cos(offset)
        return np.sin(speed * (1.0 - t)) / math.sin(speed), np.sqrt(np.sin(w) * np.sin(w + 2.0 * offset)) / cosine

    def _rates(self, t: Array) -> tuple[Array, Array]:
        speed, offset = self._angles
        alpha, sigma = self._path(t)
        alpha_rate = -speed * np.sin(speed * t + offset) / math.cos(offset)
        return alpha_rate, -alpha * alpha_rate / sigma

    def _time(self, log_snr: Array) -> Array:
        # w from its sine and cosine; sin(w) = sigma^2 cos^2(u_0) / sin(u + u_0) keeps its digits as w -> 0.
        speed, offset = self._angles
        cosine, sine = math.cos(offset), math.sin(offset)
        alpha, sigma = self._path_at(log_snr)
        cos_u, sin_u = alpha * cosine, np.hypot(sigma * cosine, sine)
        sin_w = (sigma * cosine) ** 2 / (sin_u * cosine + cos_u * sine)
        return np.arctan2(sin_w, cos_u * cosine + sin_u * sine) / speed


MOST_LOGITS = 340.0
"""A bound on the logistic's |argument| x below which exp(2 x) is finite in float64."""


@dataclass(frozen=True)
class VPSigmoid(VP):
    """The sigmoid schedule (Jabri, Fleet & Chen 2022, "Scalable adaptive computation", and Chen 2023, algorithm 1).

    alpha^2 = (S(w_1) - S(w)) / (S(w_1) - S(w_0)) with S the logistic function, w = (low + t (high - low)) / tau,
    w_0 = w(0) and w_1 = w(1). Differences of S are written S(a) - S(b) = sinh((a-b)/2) / (2 cosh(a/2) cosh(b/2)), so
    neither end cancels.

    alpha reaches 0 at t = 1. The path is defined up to there, but sampling starts at `start`, by default 0.9998:
    alpha = 0.0077, sigma/alpha = 129. A network with x0- or v-prediction may use start = 1.

    Args:
        low: the logistic's argument at the data, times tau (-3 in the paper, where it is called start).
        high: the logistic's argument at the noise, times tau (3 in the paper, where it is called end).
        tau: the temperature, above 0.
        start: the largest time of a grid, in (0, 1].
    """

    low: float = -3.0
    high: float = 3.0
    tau: float = 1.0
    start: float = 0.9998

    def __post_init__(self) -> None:
        require_positive("tau", self.tau, "1")
        require_increasing(low=self.low, high=self.high)
        require_start(self.start)
        widest = max(self.high - self.low, abs(self.low), abs(self.high)) / self.tau
        if widest > MOST_LOGITS:
            raise ValueError(
                f"tau={self.tau!r} is too small for low={self.low!r} and high={self.high!r}: their quotient "
                f"{widest:.4g} must be at most {MOST_LOGITS:g} in float64; give a larger tau"
            )

    @property
    def _half_span(self) -> float:
        return 0.5 * (self.high - self.low) / self.tau

    @property
    def _ratio(self) -> float:
        """cosh(w_1/2) / cosh(w_0/2)."""
        return math.cosh(0.5 * self.high / self.tau) / math.cosh(0.5 * self.low / self.tau)

    def _path(self, t: Array) -> tuple[Array, Array]:
        span = self._half_span
        signal = np.sinh(span * (1.0 - t))
        noise = np.sinh(span * t) * self._ratio
        return np.sqrt(signal / (signal + noise)), np.sqrt(noise / (signal + noise))

    def _rates(self, t: Array) -> tuple[Array, Array]:
        # d(sigma^2)/dt = -d(alpha^2)/dt; its numerator is constant by the addition theorem.
        span = self._half_span
        signal = np.sinh(span * (1.0 - t))
        noise = np.sinh(span * t) * self._ratio
        alpha, sigma = self._path(t)
        half_rate = 0.5 * self._ratio * span * math.sinh(span) / (signal + noise) ** 2
        return -half_rate / alpha, half_rate / sigma

    def _time(self, log_snr: Array) -> Array:
        # With R = s^2 / ratio: span t = log((1 + R e^span) / (1 + R e^-span)) / 2, and the mirror image from the noise.
        span = self._half_span
        ratio = np.exp(-2.0 * log_snr) / self._ratio
        from_noise = ratio > 1.0
        small = np.where(from_noise, np.exp(2.0 * log_snr) * self._ratio, ratio)
        share = 0.5 * (np.log1p(small * math.exp(span)) - np.log1p(small * math.exp(-span))) / span
        return np.where(from_noise, 1.0 - share, share)


def require_start(start: float) -> None:
    """Raise ValueError unless 0 < start <= 1."""
    if not 0.0 < as_number(start) <= 1.0:
        raise ValueError(f"start={start!r} must be in (0, 1]; give the largest time that a sampler may visit")
