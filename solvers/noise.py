"""Normal noise that depends on the seed, the sample and the number of the draw alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.arguments import require_whole
from solvers.philox import normal
from solvers.transfer import index_on, placed


@dataclass(frozen=True)
class NoiseStream:
    """A source of normal noise that no batch size, order, sharding or device can change, see `solvers.philox`.

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
            return np.arange(batch, dtype=np.int64)
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
        ids, size = self.ids(len(like)), math.prod(like.shape[1:])
        # Where it is needed, so that nothing is copied; of the devices other than CUDA's not all have float64.
        samples: Any = index_on(like.device, ids) if like.is_cuda else ids
        values = torch.as_tensor(normal(self.seed, samples, self.counter, size))
        noise = placed(values.reshape(like.shape), like.device, like.dtype)
        return noise, replace(self, counter=self.counter + 1)
