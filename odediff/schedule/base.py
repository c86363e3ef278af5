"""The contract of a noise schedule: alpha, sigma, their rates, and the log-SNR with its inverse."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from solvers.arguments import as_number
from solvers.ode import Node
from solvers.real import Real, anywhere

Array = NDArray[np.float64]
Times = TypeVar("Times", float, NDArray[np.float64], float | NDArray[np.float64])

# A stage time a + (b - a) can miss b by an ulp, and a time recovered from a log-SNR by an ulp of float32.
_TIME_SLACK = 1e-12
_INVERSE_SLACK = 1e-6


class Schedule(ABC):
    """A path x_t = alpha(t) x0 + sigma(t) eps from the data, t = 0, to the noise.

    At t = 0 alpha = 1 and sigma = 0 exactly. As t grows, the half log-SNR lambda = log(alpha / sigma) falls strictly
    from +inf. Every method takes a Python float and returns Python floats, or takes a float64 array of any shape (one
    time per sample) and returns arrays of that shape. Everything is float64 on the CPU.

    To write a schedule of your own:

    1. Subclass `Schedule`, or `VP` if alpha^2 + sigma^2 = 1 (it already has `_path_at`); a frozen dataclass makes two
       schedules with equal parameters equal.
    2. `_path(t)` returns (alpha, sigma). Both must be accurate *relative* to their size: a sigma written as
       sqrt(1 - alpha^2) has no digits left near the data, so use `expm1`.
    3. `_rates(t)` returns (alpha', sigma'); infinity is allowed at t = 0 and where alpha is 0.
    4. `_time(log_snr)` inverts the log-SNR; +inf gives 0. For a log-SNR beyond the noise end return a time above
       `latest`; the caller turns it into an error.
    5. `_path_at(log_snr)` returns the (alpha, sigma) with this ratio, without computing t.

    These four methods get float64 arrays or NumPy's float64 scalars, never Python floats, and need not validate them.
    Division by zero is silent in the last three.
    """

    @property
    def latest(self) -> float:
        """The largest time at which the path is defined."""
        return 1.0

    @property
    def start(self) -> float:
        """The time at which sampling starts, where x_t is taken to be noise."""
        return self.latest

    @property
    def end(self) -> float:
        """The smallest time above 0 that a sampler visits; the interval below it belongs to the closing rule."""
        return 1e-3

    @property
    def first_defined(self) -> float:
        """The smallest time for which the network is trained: 0, or 1/T for a table."""
        return 0.0

    def alpha(self, t: Times) -> Times:
        """Return the coefficient of the data at time t."""
        return self._evaluate(t)[0]

    def sigma(self, t: Times) -> Times:
        """Return the coefficient of the noise at time t."""
        return self._evaluate(t)[1]

    def node(self, t: Times) -> Node:
        """Return the node at time t."""
        alpha, sigma = self._evaluate(t)
        return Node(float(t) if isinstance(t, (int, float)) else t, alpha, sigma)

    def nodes(self, times: Sequence[float]) -> list[Node]:
        """Return the nodes at these times, in one evaluation of the path."""
        given = np.array(times, dtype=np.float64)
        alphas, sigmas = self._evaluate(given)
        return [Node(*values) for values in zip(given.tolist(), alphas.tolist(), sigmas.tolist(), strict=True)]

    def rates(self, t: Times) -> tuple[Times, Times]:
        """Return (d alpha / dt, d sigma / dt); sigma' is infinite at t = 0 where sigma starts like a square root."""
        with np.errstate(divide="ignore", over="ignore"):
            alpha_rate, sigma_rate = self._rates(self._inside(t))
        return like(t, alpha_rate), like(t, sigma_rate)

    def log_snr(self, t: Times) -> Times:
        """Return the half log-SNR, log(alpha / sigma): +inf at the data, -inf where alpha = 0."""
        with np.errstate(divide="ignore", over="ignore"):
            alpha, sigma = self._path(self._inside(t))
            return like(t, np.log(alpha) - np.log(sigma))

    def time(self, log_snr: Times) -> Times:
        """Return the time that has this half log-SNR, to round-off; +inf gives 0.

        Raises:
            ValueError: the log-SNR is NaN or lies beyond the noise end of the schedule.
        """
        levels = _float64("log_snr", log_snr)
        if anywhere(np.isnan(levels)):
            raise ValueError("log_snr = nan is not on this path: give numbers, +inf at the data")
        with np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore"):
            t = self._time(levels)
        beyond = ~(t <= self.latest * (1 + _INVERSE_SLACK))  # NaN too, which some inverses give for -inf
        if anywhere(beyond):
            raise ValueError(
                f"log_snr = {np.extract(beyond, levels)[0]!s} is not on this path: half log-SNRs run from "
                f"{self.log_snr(self.latest):.6g} at t = {self.latest:g} to +inf at t = 0; give a larger one"
            )
        return like(log_snr, np.minimum(t, self.latest))

    def node_at(self, log_snr: Times) -> Node:
        """Return the node at this half log-SNR, which gives alpha and sigma directly; the inverse only defines t."""
        t = self.time(log_snr)
        with np.errstate(divide="ignore", over="ignore", under="ignore"):
            alpha, sigma = self._path_at(_float64("log_snr", log_snr))
        return Node(t, like(log_snr, alpha), like(log_snr, sigma))

    def network_time(self, t: Times) -> Times:
        """Return what the network is told at time t; default: t itself."""
        return like(t, self._inside(t))

    @abstractmethod
    def _path(self, t: Array) -> tuple[Array, Array]:
        """Return (alpha, sigma), each accurate relative to its size."""

    @abstractmethod
    def _rates(self, t: Array) -> tuple[Array, Array]:
        """Return (alpha', sigma')."""

    @abstractmethod
    def _time(self, log_snr: Array) -> Array:
        """Return the time of a half log-SNR."""

    @abstractmethod
    def _path_at(self, log_snr: Array) -> tuple[Array, Array]:
        """Return (alpha, sigma) from a half log-SNR."""

    def _evaluate(self, t: Times) -> tuple[Times, Times]:
        alpha, sigma = self._path(self._inside(t))
        return like(t, alpha), like(t, sigma)

    def _inside(self, t: float | Array) -> Array:
        latest = self.latest
        if isinstance(t, float) and 0.0 <= t <= latest:  # the usual case, needed at every call of the network
            return cast(Array, np.float64(t))
        times = _float64("t", t)
        off_path = ~((times >= 0.0) & (times <= latest * (1 + _TIME_SLACK)))  # true for NaN
        if anywhere(off_path):
            outside = np.extract(off_path, times)[0]
            raise ValueError(f"t = {outside!s} is not on this path: times run from 0 (data) to {latest:g} (noise)")
        return np.minimum(times, latest)


def _float64(name: str, value: float | Array) -> Array:
    if isinstance(value, np.ndarray):
        if value.dtype != np.float64:
            raise TypeError(f"{name} has dtype {value.dtype}: give float64, as in {name}.astype('float64')")
        return value
    if not isinstance(value, (int, float)):
        raise TypeError(
            f"{name} is a {type(value).__name__}: give a float or a float64 numpy array (of a tensor, .numpy())"
        )
    # Not a 0-d array: arithmetic on NumPy's scalars is ten times faster, and every planned node comes through here.
    return cast(Array, np.float64(value))


def like(argument: Times, value: Real) -> Times:
    """Return value in the form of the argument: an array for an array, else a Python float."""
    return np.asarray(value) if isinstance(argument, np.ndarray) else float(value)


def is_finite(value: object) -> bool:
    """Whether value is a finite number, of Python or of NumPy."""
    return math.isfinite(as_number(value))


def require_increasing(**values: float) -> None:
    """Raise ValueError unless the two named values are finite and the first is below the second."""
    (low_name, low), (high_name, high) = values.items()
    if not (is_finite(low) and is_finite(high) and low < high):
        raise ValueError(f"{low_name}={low!r} must be below {high_name}={high!r}; give finite numbers")
