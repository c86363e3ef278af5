"""Schedules that do not preserve the variance: sub-VP, variance exploding (EDM), rectified flow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from odediff.schedule.base import Array, Schedule, Times, require_increasing
from odediff.schedule.vp import LinearBeta
from solvers.arguments import require_positive


@dataclass(frozen=True)
class SubVP(LinearBeta):
    """The sub-VP SDE with linear beta (Song et al. 2021, appendix C): alpha = exp(-B/2), sigma = 1 - exp(-B).

    s = sigma/alpha = 2 sinh(B/2), and sigma' = beta exp(-B) is finite everywhere.
    """

    def _path(self, t: Array) -> tuple[Array, Array]:
        integral = self._integral(t)
        return np.exp(-0.5 * integral), -np.expm1(-integral)

    def _rates(self, t: Array) -> tuple[Array, Array]:
        alpha, beta = np.exp(-0.5 * self._integral(t)), self._beta(t)
        return -0.5 * beta * alpha, beta * alpha**2

    def _time(self, log_snr: Array) -> Array:
        return self._time_of_integral(2.0 * np.arcsinh(0.5 * np.exp(-log_snr)))

    def _path_at(self, log_snr: Array) -> tuple[Array, Array]:
        s = np.exp(-log_snr)
        alpha = 2.0 / (s + np.hypot(s, 2.0))
        return alpha, s * alpha


@dataclass(frozen=True)
class VE(Schedule):
    """Variance exploding with time = noise level (Karras et al. 2022, "EDM", table 1): alpha = 1, sigma = t.

    The network is told sigma itself; EDM's log(sigma)/4 belongs to its preconditioning, and so to the network.

    Args:
        sigma_min: the smallest noise level above 0 that a sampler visits.
        sigma_max: the noise level at which sampling starts, from sigma_max times standard normal noise.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        require_positive("sigma_min", self.sigma_min, "0.002")
        require_increasing(sigma_min=self.sigma_min, sigma_max=self.sigma_max)

    @property
    def latest(self) -> float:
        """The largest time, sigma_max."""
        return self.sigma_max

    @property
    def end(self) -> float:
        """The smallest time above 0 that a sampler visits, sigma_min."""
        return self.sigma_min

    def _path(self, t: Array) -> tuple[Array, Array]:
        return np.ones_like(t), t

    def _rates(self, t: Array) -> tuple[Array, Array]:
        return np.zeros_like(t), np.ones_like(t)

    def _time(self, log_snr: Array) -> Array:
        return np.exp(-log_snr)

    def _path_at(self, log_snr: Array) -> tuple[Array, Array]:
        return np.ones_like(log_snr), np.exp(-log_snr)


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """Straight paths (Liu et al. 2022; Lipman et al. 2022): alpha = 1 - tau, sigma = tau.

    tau = shift t / (1 + (shift - 1) t) is the time shift for high resolutions (Esser et al. 2024, "Stable Diffusion 3",
    eq. 23). The shift only re-times the path: the network is told its noise level, `time_scale` tau, as Stable
    Diffusion 3 (time_scale = 1000) and Flux (1, which it multiplies by 1000 itself) are.

    Args:
        shift: a value above 1 puts more of a uniform grid at high noise.
        time_scale: what the network is told at pure noise.
    """

    shift: float = 1.0
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        require_positive("shift", self.shift, "3")
        require_positive("time_scale", self.time_scale, "1000")

    def network_time(self, t: Times) -> Times:
        """Return time_scale times the noise level tau."""
        return self.time_scale * self.sigma(t)

    def _path(self, t: Array) -> tuple[Array, Array]:
        total = 1.0 + (self.shift - 1.0) * t
        return (1.0 - t) / total, self.shift * t / total

    def _rates(self, t: Array) -> tuple[Array, Array]:
        rate = self.shift / (1.0 + (self.shift - 1.0) * t) ** 2
        return -rate, rate

    def _time(self, log_snr: Array) -> Array:
        return 1.0 / (1.0 + self.shift * np.exp(log_snr))

    def _path_at(self, log_snr: Array) -> tuple[Array, Array]:
        return 1.0 / (1.0 + np.exp(-log_snr)), 1.0 / (1.0 + np.exp(log_snr))
