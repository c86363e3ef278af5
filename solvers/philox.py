"""Normal numbers as a function of a counter, with the same bits on every device.

Integers are exact everywhere, and sums, products, quotients and square roots of floats correctly rounded; NumPy's and
CUDA's logarithms and sines are not. Here they come from tables and short polynomials, and take less time than NumPy's.
Numbers are int64 arrays of NumPy or int64 tensors on any device that has float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from solvers.transfer import placed

Values = TypeVar("Values", np.ndarray, Tensor)

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
SECTOR_BITS = 8
"""The circle is parted into ``2^SECTOR_BITS`` sectors: from the middle of one its ends are 0.0123 radians away."""
OCTAVE_BITS = 7
"""Every octave has ``2^OCTAVE_BITS`` numbers whose logarithms are known: the nearest is within 1/256, relatively."""
FRACTION_BITS, BIAS = 52, 1023
"""The bits of a float64's fraction, and what is added to its exponent."""
AT_ONCE = 2**13
"""How many blocks of four numbers are computed at once on the CPU: their words stay in the cache."""
AT_ONCE_ON_DEVICE = 2**20
"""The same elsewhere: some fifteen temporaries of 8 MiB are alive at once."""


def philox(counters: tuple[Any, ...], key: tuple[int, int], rounds: int = 10) -> tuple[Any, ...]:
    """Philox-4x32: four 32-bit random words for every counter of four 32-bit words.

    The second and the fourth word of the counters may be one number for all. Salmon, Moraes, Dror & Shaw (2011),
    "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
    """
    c0, c1, c2, c3 = counters
    k0, k1 = key
    for _ in range(rounds):
        products = c2 * MULTIPLIERS[1], c0 * MULTIPLIERS[0]
        low = [product & WORD for product in products]
        for product, word, k in zip(products, (c1, c3), (k0, k1), strict=True):
            product >>= 32
            product &= WORD  # the shift has copied the sign bit
            product ^= word
            product ^= k
        c0, c1, c2, c3 = products[0], low[0], products[1], low[1]
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def normal(seed: int, samples: Values, counter: int, size: int) -> Values:
    """Standard normals ``(len(samples), size)`` in float64: row i depends on (seed, samples[i], counter) alone.

    They are computed where ``samples`` are, by `box_muller` on `philox`. A longer row begins with the shorter one.
    """
    blocks, read = -(-size // 4), 2 if size <= 2 else 4
    values = _empty((len(samples) * blocks, read), samples)
    at_once = AT_ONCE_ON_DEVICE if isinstance(samples, Tensor) else AT_ONCE
    for begin in range(0, len(values), at_once):
        part = values[begin : begin + at_once]
        number = _range(begin, begin + len(part), samples)
        row = number // blocks
        number -= row * blocks
        ids = samples[row]
        words = philox((number, counter, ids & WORD, ids >> 32), (seed & WORD, seed >> 32 & WORD))
        for i in range(0, read, 2):
            part[:, i], part[:, i + 1] = box_muller(words[i], words[i + 1])
    return values.reshape(len(samples), read * blocks)[:, :size]


def box_muller(first: Values, second: Values) -> tuple[Values, Values]:
    """Two independent standard normals from two random words: ``sqrt(-2 log u) (cos 2 pi v, sin 2 pi v)``.

    The uniforms are ``u = (first + 1/2) / 2^32`` and likewise v: u is never 0.
    """
    radius = minus_two_logs(first) ** 0.5
    cosine, sine = circle(second)
    cosine *= radius
    sine *= radius
    return cosine, sine


def minus_two_logs(word: Values) -> Values:
    """``-2 log u`` for ``u = (word + 1/2) / 2^32``, with a relative error of a few roundings.

    For the nearest c whose logarithm is known, ``log u = log c + log(1 + r)`` with ``|r| <= 1/256``, where six terms of
    the series are exact to 2e-18. Near u = 1 the nearest c is 1, and nothing cancels.
    """
    number = _float64(word)
    number += 0.5
    bits = _view(number, "int64") + (1 << (FRACTION_BITS - OCTAVE_BITS - 1))
    place = bits >> (FRACTION_BITS - OCTAVE_BITS)
    known = _view(place << (FRACTION_BITS - OCTAVE_BITS), "float64")
    number -= known
    number /= known
    place -= (BIAS - 1) << OCTAVE_BITS  # the smallest number is 1/2
    series = _polynomial(number, (1 / 3, -2 / 5, 1 / 2, -2 / 3, 1.0, -2.0))
    series *= number
    series += _tables(_device(word)).minus_two_logs[place]
    return series


def circle(word: Values) -> tuple[Values, Values]:
    """Cosine and sine of ``2 pi (word + 1/2) / 2^32``, to a few roundings.

    They follow by the addition theorems from those at the middle of the sector. The angle d from there is at most
    0.0123: terms up to d^6 are exact to 1e-18.
    """
    width = 1 << (32 - SECTOR_BITS)
    d = _float64(word & (width - 1))
    d -= (width - 1) / 2
    d *= 2 * math.pi / 2**32
    square = d * d
    d *= _polynomial(square, (1 / 120, -1 / 6, 1.0))
    square *= _polynomial(square, (-1 / 720, 1 / 24, -1 / 2))
    tables, sector = _tables(_device(word)), word >> (32 - SECTOR_BITS)
    cosine, sine = tables.cosines[sector], tables.sines[sector]
    return cosine + (cosine * square - sine * d), sine + (sine * square + cosine * d)


def _polynomial(x: Values, coefficients: Sequence[float]) -> Values:
    """The polynomial with these coefficients, highest first, by Horner's rule."""
    total = x * coefficients[0]
    for coefficient in coefficients[1:-1]:
        total += coefficient
        total *= x
    total += coefficients[-1]
    return total


class _Tables(NamedTuple):
    """Cosines and sines at the middles of the sectors, and ``-2 log(c / 2^32)`` for c from 1/2 to 2^32."""

    cosines: Any
    sines: Any
    minus_two_logs: Any


@cache
def _tables(device: torch.device | None) -> _Tables:
    """The tables as tensors on ``device``, or as arrays."""
    quarter = np.exp(1j * (np.arange(2**SECTOR_BITS // 4) + 0.5) * (2 * math.pi / 2**SECTOR_BITS))
    points = np.concatenate([quarter * turn for turn in (1, 1j, -1, -1j)])
    octaves = 2.0 ** np.arange(-33, 1)[:, None]
    known = (octaves * (1 + np.arange(2**OCTAVE_BITS) / 2**OCTAVE_BITS)).ravel()
    tables = points.real.copy(), points.imag.copy(), -2 * np.log(known)
    return _Tables(*tables) if device is None else _Tables(*(placed(torch.from_numpy(v), device) for v in tables))


def _device(values: np.ndarray | Tensor) -> torch.device | None:
    return values.device if isinstance(values, Tensor) else None


def _range(begin: int, end: int, like: Values) -> Values:
    if isinstance(like, Tensor):
        return torch.arange(begin, end, device=like.device)
    return np.arange(begin, end, dtype=np.int64)


def _empty(shape: tuple[int, int], like: Values) -> Values:
    if isinstance(like, Tensor):
        return torch.empty(shape, dtype=torch.float64, device=like.device)
    return np.empty(shape)


def _float64(values: Values) -> Values:
    return values.double() if isinstance(values, Tensor) else values.astype(np.float64)


def _view(values: Values, dtype: str) -> Values:
    return values.view(getattr(torch, dtype)) if isinstance(values, Tensor) else values.view(dtype)
