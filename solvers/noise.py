"""Normal noise as a pure function of (seed, sample, counter)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from solvers.arguments import require_whole
from solvers.transfer import placed

WORD, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
AT_ONCE = 2**14
"""How many counters are processed at once: their words stay in the cache, two to three times as fast as all at once."""


def philox(counters: tuple[np.ndarray, ...], key: tuple[int, int], rounds: int = 10) -> tuple[np.ndarray, ...]:
    """Philox-4x32: four 32-bit random words for every counter of four 32-bit words, held in uint64 arrays.

    Salmon, Moraes, Dror & Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
    """
    c0, c1, c2, c3 = counters
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (p1 >> HALF) ^ c1 ^ np.uint64(k0),
            p1 & WORD,
            (p0 >> HALF) ^ c3 ^ np.uint64(k1),
            p0 & WORD,
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + KEY_STEPS[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def normal(seed: int, samples: np.ndarray, counter: int, size: int) -> np.ndarray:
    """Standard normals ``(len(samples), size)`` in float64: row i depends on (seed, samples[i], counter) alone.

    Box-Muller on Philox words; a longer row begins with the shorter one.
    """
    blocks, ids = -(-size // 4), samples.astype(np.uint64)
    read = 2 if size <= 2 else 4
    values = np.empty((len(samples) * blocks, read))
    for begin in range(0, len(values), AT_ONCE):
        part = values[begin : begin + AT_ONCE]
        row, block = np.divmod(np.arange(begin, begin + len(part)), blocks)
        counters = (block.astype(np.uint64), np.full(len(part), counter, np.uint64), ids[row] & WORD, ids[row] >> HALF)
        words = philox(counters, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
        # The half keeps the uniforms inside (0, 1), so that the logarithm below is finite.
        uniform = [(word + 0.5) * 2.0**-32 for word in words[:read]]
        for i in range(0, read, 2):
            radius, angle = np.sqrt(-2 * np.log(uniform[i])), 2 * math.pi * uniform[i + 1]
            np.multiply(radius, np.cos(angle), out=part[:, i])
            np.multiply(radius, np.sin(angle), out=part[:, i + 1])
    return values.reshape(len(samples), read * blocks)[:, :size]


@dataclass(frozen=True)
class NoiseStream:
    """A source of normal noise that no batch size, order or sharding can change.

    ``seed`` is a whole number in [0, 2^64); ``samples`` are the ids of the batch's samples (default: 0..B-1);
    ``counter`` is the next draw's number: if draw 0 is the starting noise, solve with the stream that `draw` returns.
    """

    seed: int
    samples: Sequence[int] | None = None
    counter: int = 0

    def __post_init__(self) -> None:
        require_whole("NoiseStream: seed", self.seed, 0, 2**64 - 1, bound="2**64 - 1")
        object.__setattr__(self, "seed", int(self.seed))  # NumPy's whole numbers overflow
        require_whole("NoiseStream: counter", self.counter, 0, 2**32 - 1, bound="2**32 - 1")
        if self.samples is not None and len(self.samples):
            ids = np.asarray(self.samples)
            if ids.dtype.kind not in "iu" or ids.ndim != 1 or ids.min() < 0 or ids.max() >= 2**63:
                raise ValueError("NoiseStream: samples must be whole numbers from 0 to 2**63 - 1, one for each sample")

    def ids(self, batch: int) -> np.ndarray:
        """The sample ids of a batch of ``batch`` rows, int64."""
        if self.samples is None:
            return np.arange(batch)
        if len(self.samples) != batch:
            raise ValueError(
                f"NoiseStream: samples has {len(self.samples)} ids and the batch {batch} rows; pass one id for each row"
            )
        return np.asarray(self.samples, dtype=np.int64)

    def draw(self, like: Tensor) -> tuple[Tensor, "NoiseStream"]:
        """Return noise in the shape, dtype and device of ``like``, and the stream that draws next.

        Raises:
            TypeError: ``like`` is not a tensor, or its dtype is not a floating-point one.
        """
        if not isinstance(like, Tensor):
            raise TypeError(f"x must be a torch.Tensor of shape (B, ...), not {type(like).__name__}")
        if not like.is_floating_point():
            raise TypeError(f"x has dtype {like.dtype}; convert it to a floating-point dtype, such as torch.float32")
        values = normal(self.seed, self.ids(len(like)), self.counter, math.prod(like.shape[1:]))
        noise = placed(torch.from_numpy(values).reshape(like.shape), like.device, like.dtype)
        return noise, replace(self, counter=self.counter + 1)
