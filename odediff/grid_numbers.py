"""The numbers that a caller gives for a grid, in any of their kinds."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from solvers.arguments import as_number


def real_numbers(times: Iterable[float]) -> NDArray[np.float64] | None:
    """The times in float64; None if they are not real numbers."""
    if isinstance(times, torch.Tensor):
        return None if times.is_complex() else np.array(times.tolist(), dtype=np.float64)
    try:
        given = np.array(list(times))
        return None if np.iscomplexobj(given) else given.astype(np.float64)
    except (TypeError, ValueError):
        return None


def number(value: Any) -> float:
    """`as_number` that accepts tensors and arrays without axes, such as a time of another grid."""
    return as_number(value.item() if getattr(value, "ndim", None) == 0 else value)


def whole(value: Any) -> int:
    """The integer that a number is, such as a timestep 999.0 of a scheduler.

    Raises:
        TypeError: it is no integer.
    """
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    return int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
