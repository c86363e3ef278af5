"""The discrete chain: a network trained on a table of T alpha-bars, made continuous in time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike

from odediff.schedule.base import Array, Times, like, require_increasing
from odediff.schedule.monotone import MonotoneSpline
from odediff.schedule.vp import VP, VPCosine, VPSigmoid
from solvers.arguments import require_positive
from solvers.real import Real, anywhere

_SNAP = 1e-6
COARSE = ("float16", "bfloat16")
"""The dtypes that are refused: near the data, float16 moves the sigma/alpha of Stable Diffusion's table by 7 %."""


@dataclass(frozen=True, init=False, eq=False, repr=False)
class VPTable(VP):
    """The chain of DDPM (Ho et al. 2020) with its table of T alpha-bars, alpha^2 = alpha-bar, as a continuous path.

    Entry i sits at n = i + 1 on [0, T], t = n/T, with the data at n = 0, so alpha-bar_0 := 1 (Song, Meng & Ermon 2021).
    Between entries log alpha-bar is a C2 cubic spline, or PCHIP (C1) if the spline is not monotone. A table whose last
    entry is 0 (zero terminal SNR) interpolates the squared angle atan2(sigma, alpha)^2 instead, which is smooth at both
    ends, where log 0 is not. The network is told n - 1, and is undefined below t = 1/T.

    Two tables of one class are equal when their entries are.

    Args:
        alphas_cumprod: T >= 2 numbers in (0, 1), strictly decreasing; the last one may be 0. A tensor, an array or a
            sequence. They are copied to float64.

    Raises:
        TypeError: these are not numbers.
        ValueError: they have lost their digits in half precision, or break one of these rules; the message names the
            first one that does.
    """

    alphas_cumprod: Array

    def __init__(self, alphas_cumprod: torch.Tensor | ArrayLike) -> None:
        dtype = str(getattr(alphas_cumprod, "dtype", "")).removeprefix("torch.")
        if dtype in COARSE:
            raise ValueError(
                f"alphas_cumprod has dtype {dtype}, which has lost the noise levels near the data; give the table in "
                "float32 or float64, as it is before a pipeline is converted"
            )
        if isinstance(alphas_cumprod, torch.Tensor):
            alphas_cumprod = alphas_cumprod.detach().cpu().double().numpy()
        try:
            table = np.array(alphas_cumprod, dtype=np.float64)
        except (TypeError, ValueError):
            remedy = (
                "; of a scheduler: pass scheduler.alphas_cumprod" if hasattr(alphas_cumprod, "alphas_cumprod") else ""
            )
            raise TypeError(
                f"alphas_cumprod is a {type(alphas_cumprod).__name__}: give T numbers, a tensor or an array{remedy}"
            ) from None
        _validate(table)
        table.setflags(write=False)
        object.__setattr__(self, "alphas_cumprod", table)
        if (flat := np.diff(self._rise) <= 0).any():
            i = int(flat.argmax())
            variable, remedy = (
                ("its angle atan2(sigma, alpha)", "let alpha-bar fall less steeply, or end above 0")
                if self._ends_at_zero
                else ("its logarithm", "let alpha-bar fall more steeply")
            )
            raise ValueError(
                f"alphas_cumprod[{i}] = {table[i]:g}: in float64 {variable} equals that of the entry before; {remedy}"
            )

    @classmethod
    def linear(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> VPTable:
        """Return DDPM's table: betas linear from beta_start to beta_end (Ho et al. 2020, section 4)."""
        _require_betas(T, beta_start, beta_end)
        return cls(np.cumprod(1.0 - np.linspace(beta_start, beta_end, T)))

    @classmethod
    def scaled_linear(cls, T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> VPTable:
        """Return Stable Diffusion's table: square roots of the betas linear (Rombach et al. 2022)."""
        _require_betas(T, beta_start, beta_end)
        return cls(np.cumprod(1.0 - np.linspace(beta_start**0.5, beta_end**0.5, T) ** 2))

    @classmethod
    def cosine(cls, T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> VPTable:
        """Return the table of the cosine schedule, its betas cut at max_beta (Nichol & Dhariwal 2021, eq. 17)."""
        return cls(_entries(VPCosine(s), T, max_beta))

    @classmethod
    def sigmoid(
        cls, T: int = 1000, low: float = -3.0, high: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
    ) -> VPTable:
        """Return the table of the sigmoid schedule of Jabri et al. 2022, its betas cut at max_beta.

        Another table has this name: betas (not alpha-bars) along a sigmoid, from GeoDiff; diffusers has that one.
        """
        return cls(_entries(VPSigmoid(low, high, tau), T, max_beta))

    def zero_terminal_snr(self) -> VPTable:
        """Return this table with alpha shifted to end at 0 and scaled to keep its first entry (Lin et al. 2023)."""
        alphas = np.sqrt(self.alphas_cumprod)
        rescaled = (alphas - alphas[-1]) * (alphas[0] / (alphas[0] - alphas[-1]))
        return VPTable(rescaled**2)

    @cached_property
    def T(self) -> int:
        """The number of entries."""
        return len(self.alphas_cumprod)

    @property
    def end(self) -> float:
        """The smallest time above 0 that a sampler visits: the first entry, 1/T."""
        return 1.0 / self.T

    @cached_property
    def first_defined(self) -> float:
        """The smallest time for which the network is trained: the first entry, 1/T."""
        return 1.0 / self.T

    def network_time(self, t: Times) -> Times:
        """Return n - 1 = t T - 1, snapped to an integer when within 1e-6 (truncation would be off by one for some t).

        Raises:
            ValueError: t lies below 1/T, where the network has never been trained.
        """
        index = _snapped(self._inside(t) * self.T - 1.0)
        if anywhere(index < 0.0):
            raise ValueError(
                f"t = {np.min(t)!s} lies below the table's first entry, t = 1/{self.T}, where the network is undefined:"
                " end the grid there and leave the rest to the closing rule"
            )
        return like(t, index + 0.0)  # never -0.0

    @property
    def _ends_at_zero(self) -> bool:
        return bool(self.alphas_cumprod[-1] == 0.0)

    @property
    def _rise(self) -> Array:
        """-log alpha-bar, or the squared angle, at n = 0, 1, ..., T; both start at 0 and increase."""
        if self._ends_at_zero:
            rise = np.arctan2(np.sqrt(1.0 - self.alphas_cumprod), np.sqrt(self.alphas_cumprod)) ** 2
        else:
            rise = -np.log(self.alphas_cumprod)
        return np.concatenate([[0.0], rise])

    @cached_property
    def _spline(self) -> MonotoneSpline:
        return MonotoneSpline(self._rise)

    def _path(self, t: Array) -> tuple[Array, Array]:
        rise = self._spline(t * self.T)
        if self._ends_at_zero:
            angle = np.sqrt(rise)
            return np.cos(angle) * (t < 1.0), np.sin(angle)
        return np.exp(-0.5 * rise), np.sqrt(-np.expm1(-rise))

    def _rates(self, t: Array) -> tuple[Array, Array]:
        alpha, sigma = self._path(t)
        half_rate = 0.5 * self.T * self._spline.derivative(t * self.T)
        if self._ends_at_zero:
            angle = np.sqrt(self._spline(t * self.T))
            return -half_rate * np.sinc(angle / np.pi), half_rate * alpha / angle
        return -half_rate * alpha, half_rate * alpha**2 / sigma

    def _time(self, log_snr: Array) -> Array:
        rise = np.arctan(np.exp(-log_snr)) ** 2 if self._ends_at_zero else np.logaddexp(0.0, -2.0 * log_snr)
        return self._spline.inverse(rise) / self.T

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return np.array_equal(self.alphas_cumprod, other.alphas_cumprod)

    def __hash__(self) -> int:
        return hash((type(self), self.alphas_cumprod.tobytes()))

    def __repr__(self) -> str:
        return f"VPTable(T={self.T}, alphas_cumprod={self.alphas_cumprod[0]:.6g}..{self.alphas_cumprod[-1]:.6g})"


def _snapped(index: Real) -> Real:
    """The whole number within `_SNAP` of each index, or the index itself."""
    if isinstance(index, float):  # at every call of the network: Python's floats are faster than NumPy's
        whole = float(round(number := float(index)))
        return whole if abs(whole - number) <= _SNAP else number
    miss = np.rint(index) - index
    return index + miss * (np.abs(miss) <= _SNAP)  # exact: the sum of the two is the integer


def _validate(table: Array) -> None:
    if table.ndim != 1 or len(table) < 2:
        raise ValueError(f"alphas_cumprod has shape {table.shape}: give a one-dimensional table of at least 2 entries")
    bad = ~(np.isfinite(table) & (table < 1.0) & (table > 0.0))
    bad[-1] = not 0.0 <= table[-1] < 1.0
    if bad.any():
        i = int(bad.argmax())
        raise ValueError(
            f"alphas_cumprod[{i}] = {table[i]} is not in (0, 1): give products of (1 - beta), only the last may be 0"
        )
    rising = np.diff(table) >= 0.0
    if rising.any():
        i = int(rising.argmax())
        last = " (2**-24, which diffusers puts there for a last 0? Put the 0 back)" if table[i + 1] == 2.0**-24 else ""
        raise ValueError(
            f"alphas_cumprod[{i + 1}] = {table[i + 1]} is not below alphas_cumprod[{i}] = {table[i]}: "
            f"give a strictly decreasing table, least noise first{last}; of betas give numpy.cumprod(1 - betas)"
        )


def _require_betas(T: int, beta_start: float, beta_end: float) -> None:
    require_positive("beta_start", beta_start, "1e-4")
    require_increasing(beta_start=beta_start, beta_end=beta_end)
    if T < 2 or beta_end >= 1.0:
        raise ValueError(f"T={T}, beta_end={beta_end}: T must be at least 2 and beta_end below 1")


def _entries(schedule: VP, T: int, max_beta: float) -> Array:
    """Return the table of a continuous schedule, from betas 1 - alpha-bar(n/T) / alpha-bar((n-1)/T) cut at max_beta."""
    if T < 2 or not 0.0 < max_beta <= 1.0:
        raise ValueError(f"T={T}, max_beta={max_beta}: T must be at least 2 and max_beta in (0, 1]")
    alphas_cumprod = schedule.alpha(np.arange(T + 1) / T) ** 2
    kept = np.maximum(alphas_cumprod[1:] / alphas_cumprod[:-1], 1.0 - max_beta)
    return np.asarray(np.cumprod(kept), dtype=np.float64)
