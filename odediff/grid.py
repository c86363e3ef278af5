"""Time grids: the times at which a sampler stops on its way from the noise to the data.

Every function `grid(path, steps=N, end=None)` returns a float64 tensor of N + 1 times, noise first: N nodes from
`path.start` down to `end` (default: `path.end`), then exactly 0. The interval from `end` to 0 belongs to the closing
rule. One step is [start, 0]. Flipped and without the 0, the same grid encodes.

The grids over noise levels (`log_snr`, `karras`, `polyexponential`, `beta`) need a finite noisiest level. If a path
starts with alpha below 1e-3 (zero terminal SNR, rectified flow), they place their nodes as if it started at sigma/alpha
= 1e3, but put the first node at the path's own start: no part of the schedule is cut off. `angle` needs no such level.

`plateau` ends above `path.end` unless `end` is given, or the path is cut off above the last level of the plateau.

Difference from diffusers: the time after the last visited one is always 0, never a stride below it, and no node is
appended twice.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv

from odediff.grid_numbers import number, real_numbers, whole
from odediff.plateau import CLOSE, departing, first_level, law_of
from odediff.schedule import Schedule, VPTable
from solvers.arguments import as_number

Array = NDArray[np.float64]

_SINGULAR_ALPHA = 1e-3
"""The alpha below which a path's start counts as pure noise: its sigma/alpha is then taken to be 1e3."""
_FLOAT32_SLACK = 1e-6
"""How far, relative to the first time that a network knows, a time below it counts as that time, rounded in float32."""
_TABLE_MISMATCH = 0.01
"""The largest relative difference between the first level of a published table and the path's noisiest level."""

# sigma/alpha of NVIDIA's published 10-step schedules (Sabour, Fidler & Kreis 2024, "Align your steps").
AYS_STABLE_DIFFUSION = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
AYS_STABLE_DIFFUSION_XL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
AYS_STABLE_VIDEO_DIFFUSION = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)


def uniform_t(
    path: Schedule,
    steps: int,
    end: float | None = None,
    spacing: Literal["linspace", "leading", "trailing"] = "linspace",
) -> torch.Tensor:
    """Uniform in t, in one of the three ways that diffusers distinguishes (Lin et al. 2023, table 2).

    On a table of T entries the nodes are entries t = n/T, exactly the timesteps n - 1 of diffusers' DDIM and DDPM:

    - "linspace": from the last entry to the first, rounded;
    - "leading": every (T // steps)-th entry counted from the first, or every ((T + 1 - n) // steps)-th from entry n if
      that is the `end`. It starts below the noise end, at n = 1 + (steps - 1) (T // steps), and visits t = 1 only with
      T steps;
    - "trailing": every (T / steps)-th entry counted from the last, rounded. Its last node is T/steps, not `end`, so
      an inversion begins by doubling sigma/alpha, whereas "linspace" multiplies it many times over.

    On other paths the nodes divide [end, start] into steps - 1 parts ("linspace"), or are the lower ends of steps parts
    of it ("leading"), or the upper ends of steps parts of [0, start] ("trailing").

    One step is [start, 0] in all three (diffusers takes the least noisy entry in the first two). In the first two,
    diffusers' DPM-Solver, UniPC, DEIS and SA-Solver space steps + 1 timesteps and drop the last one, and
    ``steps_offset`` shifts all of them: `subsequence` reproduces whatever a scheduler visits.

    Raises:
        ValueError: on a table, more steps than entries or an `end` between entries; `end` with "trailing".
    """
    n_steps = _count(path, steps)
    if spacing not in ("linspace", "leading", "trailing"):
        raise ValueError(f"spacing = {spacing!r} is unknown: give 'linspace', 'leading' or 'trailing'")
    if spacing == "trailing" and end is not None:
        raise ValueError(f"end = {end} does not go with spacing='trailing', which ends at start/steps: leave end out")
    last = path.end if spacing == "trailing" else _end(path, n_steps, end)
    if isinstance(path, VPTable):
        first = _first_entry(path, last, n_steps)
        return _entries(path, _diffusers_timesteps(path.T, n_steps, first, spacing))
    times = np.zeros(n_steps + 1)
    if spacing == "trailing":
        times[:-1] = path.start * (np.arange(n_steps, 0, -1) / n_steps)
    elif spacing == "leading":
        times[:-1] = last + (path.start - last) * (np.arange(n_steps - 1, -1, -1) / n_steps)
    else:
        times[:-1] = np.linspace(path.start, last, n_steps)
    return _descending(path, times)


def quadratic_t(path: Schedule, steps: int, end: float | None = None) -> torch.Tensor:
    """Uniform in sqrt(t): t_i = c i^2 up to the offset `end`, so many small steps near the data (DDIM, appendix D.2).

    On a table the nodes are entries: each is rounded, and one that meets its lower neighbour moves up to the next free
    entry.
    """
    n_steps = _count(path, steps)
    last = _end(path, n_steps, end)
    if isinstance(path, VPTable):
        first = _first_entry(path, last, n_steps)
        ascending = np.linspace(math.sqrt(path.T), math.sqrt(first), n_steps)[::-1] ** 2
        free = np.arange(n_steps)
        # max over j <= i of round(v_j) + (i - j), the first free entry for each node
        entries = np.maximum.accumulate(np.round(ascending).astype(np.int64) - free) + free
        return _entries(path, entries[::-1] - 1)
    times = np.zeros(n_steps + 1)
    times[:-1] = np.linspace(math.sqrt(path.start), math.sqrt(last), n_steps) ** 2
    times[0] = path.start
    if n_steps > 1:
        times[-2] = last
    return _descending(path, times)


def log_snr(path: Schedule, steps: int, end: float | None = None) -> torch.Tensor:
    """Uniform in lambda = log(alpha/sigma), that is, geometric in s = sigma/alpha (Lu et al. 2022, "DPM-Solver")."""
    return _by_log_snr(path, steps, end, lambda first, last, f: first + f * (last - first))


MOST_EXPONENT = 700.0
"""The largest exponent whose exponential is taken: exp overflows float64 just above 709."""


def polyexponential(path: Schedule, steps: int, end: float | None = None, rho: float = 1.0) -> torch.Tensor:
    """Polynomial in log s: lambda = last + (first - last) (1 - f)^rho, f from 0 to 1 (k-diffusion); rho = 1 is log_snr.

    rho above 1 puts more nodes near the data.
    """
    _require_positive("rho", rho, "1 is log_snr")
    return _by_log_snr(path, steps, end, lambda first, last, f: last + (first - last) * (1.0 - f) ** rho)


def karras(path: Schedule, steps: int, end: float | None = None, rho: float = 7.0) -> torch.Tensor:
    """Uniform in s^(1/rho), s = sigma/alpha (Karras et al. 2022, "EDM", eq. 5)."""
    _require_positive("rho", rho, "7 is usual")

    def place(first: float, last: float, f: Array) -> Array:
        if max(-first, last) > MOST_EXPONENT * rho:
            raise ValueError(f"rho = {rho!r} is too small: s^(1/rho) leaves float64; Karras et al. use 7")
        high, low = math.exp(-first / rho), math.exp(-last / rho)
        return -rho * np.log(high + f * (low - high))

    return _by_log_snr(path, steps, end, place)


def beta(path: Schedule, steps: int, end: float | None = None, a: float = 0.6, b: float = 0.6) -> torch.Tensor:
    """Quantiles of a Beta(a, b) law stretched over s = sigma/alpha between its two ends: dense at both.

    This is diffusers' `use_beta_sigmas` (after Lee et al. 2024, "Beta sampling is all you need", who take the quantiles
    in t).
    """
    _require_positive("a", a, "0.6 is usual")
    _require_positive("b", b, "0.6 is usual")

    def place(first: float, last: float, f: Array) -> Array:
        high, low = math.exp(-first), math.exp(-last)
        return -np.log(low + betaincinv(a, b, 1.0 - f) * (high - low))

    return _by_log_snr(path, steps, end, place)


def plateau(path: Schedule, steps: int, end: float | None = None) -> torch.Tensor:
    """Nodes evenly spaced in log-SNR where images take shape, and ever further apart on both sides.

    Their density in log s, s = sigma/alpha, is 1/[(1 + (low/s)^p) (1 + (s/high)^r)] between the first node below the
    path's start, which itself precedes them, and the last node. With more steps the first moves towards the path's
    start and the last towards its end. Up to 13 steps, nodes thin out above a lower level, since they are needed where
    images take shape. From 22 nodes on they suit the formulas for close nodes, and more and more of them lie at high
    levels, but from 34 on fewer if the path begins in pure noise (alpha = 0); on a path that begins below the first of
    them and ends above the last, as Stable Diffusion's table does, they are the nodes of `karras`. If ``end`` is given,
    as for an inversion, which starts there, more of them lie near it. The grid was made for `solvers.GPMultistep`,
    whose first step makes no call if it stays above s = 70; the constants of both were chosen together, see
    benchmarks/DEVELOPMENT.md.
    """
    n_steps = _count(path, steps)
    last_time = _end(path, n_steps, end)
    noisiest, least = (math.exp(-path.log_snr(t)) for t in (path.start, last_time))
    first = first_level(n_steps - 1, noisiest)
    above = [first] if least < first < noisiest else []
    first = first if above else noisiest
    count = n_steps - len(above)
    if count < 2:
        return _nodes(path, [last_time if end is not None else path.time(-math.log(s)) for s in above[:count]])
    if math.isinf(first):
        raise ValueError(
            f"end = {last_time} has sigma/alpha = {least:g}, above the first node of this grid, but the path starts at "
            "infinity: give a smaller end, or use grid.angle"
        )
    law = law_of(count, noisiest, least) if end is None else departing(count, least)
    if end is None and count >= CLOSE and not above and law.last < least:
        return karras(path, steps)
    if (last := min(law.last, first / 2)) > least:
        least, last_time = last, path.time(-math.log(last))
    inner = law.between(first, least, count)
    return _nodes(path, [*path.time(-np.log(above)), *path.time(-inner), last_time])


def angle(path: Schedule, steps: int, end: float | None = None) -> torch.Tensor:
    """Uniform in atan2(sigma, alpha): regular at both ends of every path, including alpha = 0."""
    n_steps = _count(path, steps)
    last = _end(path, n_steps, end)
    if n_steps == 1:
        return _nodes(path, [])
    highest, lowest = (math.atan2(path.sigma(t), path.alpha(t)) for t in (path.start, last))
    inner = np.linspace(highest, lowest, n_steps)[1:-1]
    return _nodes(path, [*path.time(-np.log(np.tan(inner))), last])


def align_your_steps(path: Schedule, steps: int, table: Sequence[float] = AYS_STABLE_DIFFUSION) -> torch.Tensor:
    """A grid optimised for one model: noise levels s interpolated log-linearly (Sabour, Fidler & Kreis 2024).

    The table lists its levels, noisiest first, and is stretched to steps + 1 levels; the first becomes `path.start`,
    the last becomes 0. With 10 steps, the published tables are reproduced exactly: `AYS_STABLE_DIFFUSION`,
    `AYS_STABLE_DIFFUSION_XL` and `AYS_STABLE_VIDEO_DIFFUSION`. Any other sequence may be given. The node before 0 is
    the table's, not `path.end`.

    Raises:
        ValueError: the table is not strictly decreasing and positive, or does not begin within 1 % of the path's
            noisiest level, which means that it was made for another schedule.
    """
    n_steps = _count(path, steps)
    levels = np.array(table, dtype=np.float64)
    if levels.ndim != 1 or len(levels) < 2 or not np.all(np.isfinite(levels) & (levels > 0)):
        raise ValueError(f"table = {table} is not a list of noise levels: give at least 2 positive finite sigma/alpha")
    if not np.all(np.diff(levels) < 0):
        raise ValueError(f"table = {table} is not strictly decreasing: give noise levels, noisiest first")
    noisiest = math.exp(-path.log_snr(path.start))
    if not abs(levels[0] / noisiest - 1.0) <= _TABLE_MISMATCH:
        raise ValueError(
            f"table begins at sigma/alpha = {levels[0]:g} but the path at {noisiest:g}: the table was made for another "
            "schedule; give one made for this path, or use grid.log_snr"
        )
    stretched = np.linspace(0.0, 1.0, n_steps + 1)[1:-1]
    logs = np.interp(stretched, np.linspace(0.0, 1.0, len(levels)), np.log(levels))
    return _nodes(path, path.time(-logs).tolist())


def custom(path: Schedule, times: Iterable[float]) -> torch.Tensor:
    """Return your own times after checking them.

    They must decrease strictly, start on the path, and end at 0 or above, but not inside (0, `path.first_defined`). A
    time that misses `path.first_defined` or `path.latest` by the rounding of float32, such as those of a scheduler's
    levels, is it.

    Raises:
        TypeError: the times are not real numbers.
        ValueError: a time breaks a rule; the message names the first one.
    """
    _require_schedule(path)
    values = real_numbers(times)
    if values is None:
        raise TypeError(f"times={times!r} are not real numbers: give a tensor, an array or a list of floats")
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"times has shape {values.shape}: give a one-dimensional sequence of at least 2 times")
    return _descending(path, values)


def subsequence(path: VPTable, indices: Iterable[int]) -> torch.Tensor:
    """Return the grid over the given entries of a table, then 0: any increasing sub-sequence tau (DDIM, section 4.2).

    Args:
        path: the table.
        indices: strictly increasing entries in [0, T), numbered as the network sees them: entry i is t = (i + 1)/T.
            Floats may stand for them if they are whole, as a scheduler's timesteps are.
    """
    if not isinstance(path, VPTable):
        raise TypeError(
            f"path must be a VPTable, not a {type(path).__name__}, which has no entries: use grid.custom instead"
        )
    try:
        chosen = np.array([whole(i) for i in indices], dtype=np.int64)
    except TypeError as error:
        raise TypeError(f"indices must be integers in [0, {path.T}): {error}") from None
    if len(chosen) == 0 or chosen.min() < 0 or chosen.max() >= path.T or np.any(np.diff(chosen) <= 0):
        raise ValueError(f"indices = {chosen} is not a strictly increasing sequence of entries in [0, {path.T})")
    return _entries(path, chosen[::-1])


def _by_log_snr(
    path: Schedule, steps: int, end: float | None, place: Callable[[float, float, Array], Array]
) -> torch.Tensor:
    """Return the grid whose inner nodes have half log-SNRs place(first, last, f), f uniform inside (0, 1)."""
    n_steps = _count(path, steps)
    end_time = _end(path, n_steps, end)
    if n_steps == 1:
        return _nodes(path, [])
    first, last = path.log_snr(path.start), path.log_snr(end_time)
    if path.alpha(path.start) < _SINGULAR_ALPHA:
        first = max(first, math.log(_SINGULAR_ALPHA))
    if not first < last:
        raise ValueError(
            f"end = {end_time} has sigma/alpha = {math.exp(-last):g}, above the 1e3 that stands for pure noise: give a "
            "smaller end, or use grid.angle"
        )
    inner = np.linspace(0.0, 1.0, n_steps)[1:-1]
    return _nodes(path, [*path.time(place(first, last, inner)), end_time])


def _nodes(path: Schedule, between: Sequence[float]) -> torch.Tensor:
    """Return [start, *between, 0], whose ends are assigned, never computed."""
    return _descending(path, np.array([path.start, *between, 0.0]))


def _diffusers_timesteps(T: int, steps: int, first: int, spacing: str) -> NDArray[np.int64]:
    """Return descending timesteps n - 1, n in [first, T], in diffusers' arithmetic, so that ties round the same way."""
    if spacing == "trailing":
        return np.round(np.arange(T, 0, -T / steps)[:steps]).astype(np.int64) - 1
    if spacing == "leading":
        return first - 1 + np.arange(steps - 1, -1, -1) * ((T + 1 - first) // steps)
    return np.linspace(first - 1, T - 1, steps).round().astype(np.int64)[::-1]


def _entries(path: VPTable, timesteps: NDArray[np.int64]) -> torch.Tensor:
    return _descending(path, np.append((timesteps + 1) / path.T, 0.0))


def _descending(path: Schedule, times: Array) -> torch.Tensor:
    """Return the times as a new tensor, after the checks that every grid must pass."""
    if not np.all(np.isfinite(times)):
        raise ValueError(f"times[{int(np.argmin(np.isfinite(times)))}] is not finite: every time must be a number")
    rising = np.diff(times) >= 0
    if rising.any():
        i = int(rising.argmax())
        raise ValueError(
            f"times[{i + 1}] = {times[i + 1]} is not below times[{i}] = {times[i]}: give strictly decreasing times, "
            "noise first (times.flip(0) of an ascending grid), and fewer steps if they collide"
        )
    if path.latest < times[0] <= path.latest * (1 + _FLOAT32_SLACK):
        times = np.append(path.latest, times[1:])
    if times[0] > path.latest or times[-1] < 0:
        remedy = "; of timesteps, grid.subsequence makes times" if isinstance(path, VPTable) and times[-1] >= 0 else ""
        raise ValueError(
            f"times run from {times[0]} to {times[-1]}: stay between {path.latest:.12g} (noise) and 0 (data){remedy}"
        )
    positive = times[times > 0]
    if len(positive) and positive[-1] < (first := path.first_defined):
        if positive[-1] >= first * (1 - _FLOAT32_SLACK):
            return _descending(path, np.where(times == positive[-1], first, times))
        raise ValueError(
            f"times contains {positive[-1]}, below the first time that the network knows, {path.first_defined:g}: go "
            "directly from that time to 0"
        )
    return torch.tensor(times, dtype=torch.float64, device="cpu")


def _count(path: Schedule, steps: int) -> int:
    _require_schedule(path)
    if isinstance(steps, bool):
        raise TypeError(f"steps = {steps} is not an integer: give the number of steps, at least 1")
    try:
        count = operator.index(steps)
    except TypeError:
        raise TypeError(f"steps = {steps!r} is not an integer: give the number of steps, at least 1") from None
    if count < 1:
        raise ValueError(f"steps = {count} is too few: give at least 1")
    return count


def _end(path: Schedule, steps: int, end: float | None) -> float:
    """Return the last time above 0, which for one step is the start."""
    if steps == 1:
        if end is not None:
            raise ValueError(f"end = {end} needs at least 2 steps: a single step goes directly from the start to 0")
        return path.start
    last = path.end if end is None else number(end)
    if not max(path.first_defined, 0.0) <= last < path.start or last == 0.0:
        name, value = ("path.end", last) if end is None else ("end", end if math.isnan(last) else last)
        raise ValueError(
            f"{name} = {value!r} is not a time of this path above 0: give end from {path.first_defined:g} up to below "
            f"its start, {path.start:g}"
        )
    return last


def _first_entry(path: VPTable, end: float, steps: int) -> int:
    """Return the n of the time n/T at which the grid ends, if enough of the table's entries remain."""
    first = round(end * path.T)
    if abs(end * path.T - first) > 1e-6:
        raise ValueError(f"end = {end} lies between entries of the table: give n/{path.T}, or use grid.custom")
    if steps > path.T + 1 - first:
        raise ValueError(f"steps = {steps} exceeds the {path.T + 1 - first} entries from t = {end:g} on: give fewer")
    return first


def _require_positive(name: str, value: float, usual: str) -> None:
    if not 0 < as_number(value) < math.inf:
        raise ValueError(f"{name} = {value!r} is not a positive finite number: give {name} > 0 ({usual})")


def _require_schedule(path: Schedule) -> None:
    if not isinstance(path, Schedule):
        raise TypeError(f"path must be a schedule, not a {type(path).__name__}: give one such as odediff.VPLinear()")
