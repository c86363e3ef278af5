"""What a network is told beside state and time: one row of a condition for each sample, however it is nested."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from solvers.transfer import placed


def as_tensors(value: Any) -> Any:
    """Arrays as tensors; the rest as it is."""
    return nested(lambda part: torch.as_tensor(part) if isinstance(part, np.ndarray | np.number) else part, value)


def selected(value: Any, index: Tensor) -> Any:
    """The rows ``index``; a single row stands for all samples."""
    return nested(lambda part: _taken(part, index) if _has_rows(part) and len(part) > 1 else part, value)


def expanded(name: str, value: Any, batch: int, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """One row of ``value`` for each sample; what is neither number nor tensor goes to the network as it is.

    A number becomes a tensor, a float of ``dtype``, but not where it stands in a list or a dict: there only tensors
    have rows.

    Raises:
        ValueError: a tensor has neither one row nor one for each sample.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.full((batch,), value, device=device, dtype=dtype if isinstance(value, float) else None)
    if isinstance(value, Tensor) and not value.ndim:
        return placed(value, device).expand(batch)

    def rows(part: Any) -> Any:
        if not isinstance(part, Tensor):
            return part
        if not part.ndim:
            return placed(part, device)
        _require_rows(name, part, batch)
        return placed(part, device).expand(batch, *part.shape[1:])

    return nested(rows, value)


def require_rows_for(name: str, value: Any, batch: int) -> None:
    """Raise `ValueError` where a tensor of ``value`` has neither one row nor one for each of the samples, if any."""
    nested(lambda part: _require_rows(name, part, batch) if batch and _has_rows(part) else None, value)


def _require_rows(name: str, part: Tensor, batch: int) -> None:
    if len(part) not in (1, batch):
        raise ValueError(
            f"{name} has {len(part)} rows and the batch {batch}; give one value for all, or one row each (the first "
            "axis of x counts samples)"
        )


def chunks(
    size: int, tensors: tuple[Tensor, ...], keywords: Mapping[str, Any]
) -> Iterator[tuple[tuple[Tensor, ...], dict[str, Any]]]:
    """Cut a call into calls of ``size`` rows; the last one is filled up with its first row."""
    batch = len(tensors[0])
    for begin in range(0, batch, size):
        rows = torch.arange(begin, begin + size, device=tensors[0].device)
        rows = torch.where(rows < batch, rows, begin)
        yield tuple(tensor[rows] for tensor in tensors), _taken(dict(keywords), rows)


def _taken(value: Any, index: Tensor) -> Any:
    return nested(lambda part: part[index.to(part.device)] if _has_rows(part) else part, value)


def as_row_numbers(index: Any, count: int | None) -> Tensor:
    """The numbers of samples that ``index`` holds, or at which it is true, ``(n,)`` on its device.

    ``count`` is how many samples there are, if that is known.

    Raises:
        ValueError: it is no list of whole numbers or truth values, or numbers samples that there are not.
    """
    try:
        given = torch.as_tensor(index, device=index.device if isinstance(index, Tensor) else "cpu")
    except (TypeError, ValueError, RuntimeError):
        given = torch.empty((), device="cpu")
    whole = given.ndim == 1 and not (len(given) and (given.is_floating_point() or given.is_complex()))
    is_mask = whole and given.dtype is torch.bool
    numbers = given.long() if whole and not is_mask else given
    if is_mask:
        known = count is None or len(given) == count
    else:
        known = whole and (count is None or bool(((numbers >= -count) & (numbers < count)).all()))
    if not known:
        room = "" if count is None else f", from 0 to {count - 1}"
        raise ValueError(f"index={index!r} must be numbers of samples{room}, such as [0, 2] or range(2)")
    return numbers.nonzero().ravel() if is_mask else numbers


def row_count(values: Any) -> int | None:
    """How many samples the tensors of ``values`` have rows for; None if each has one for all."""
    found: list[int] = []
    nested(lambda part: found.append(len(part)) if _has_rows(part) and len(part) > 1 else None, values)
    return max(found, default=None)


def nested(function: Callable[[Any], Any], value: Any) -> Any:
    """``function`` of the value, or of every part of a dict, a list or a tuple, in a new one.

    Objects of other classes, which may be more than their parts, stay whole.
    """
    if type(value) is dict:
        return {key: nested(function, part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(nested(function, part) for part in value)
    return function(value)


def _has_rows(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim > 0
