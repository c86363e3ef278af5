"""What a network receives beside state and time: one row of a condition for each sample, however nested."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from solvers.transfer import placed


def as_tensors(value: Any) -> Any:
    """Convert NumPy's arrays and numbers to tensors, and its truth values to True and False; leave everything else."""

    def converted(part: Any) -> Any:
        if isinstance(part, np.ndarray | np.number):
            return torch.as_tensor(part)
        return bool(part) if isinstance(part, np.bool_) else part

    return nested(converted, value)


def selected(value: Any, index: Tensor) -> Any:
    """The rows ``index``; a single row stands for all samples and is kept."""
    return nested(lambda part: _taken(part, index) if _has_rows(part) and len(part) > 1 else part, value)


def expanded(name: str, value: Any, batch: int, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """One row of ``value`` for each sample; whatever is neither number nor tensor reaches the network unchanged.

    A number becomes a tensor, a float one of ``dtype``, except inside a list or a dict, where only tensors have rows.

    Raises:
        ValueError: a tensor has neither one row nor one for each sample of a non-empty batch.
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
        if not batch:  # as in `require_rows_for`
            return placed(part[:0], device)
        _require_rows(name, part, batch)
        return placed(part, device).expand(batch, *part.shape[1:])

    return nested(rows, value)


def require_rows_for(name: str, value: Any, batch: int) -> None:
    """Raise `ValueError` if a tensor of ``value`` has neither one row nor one for each sample of a non-empty batch."""
    for part in tensors(value) if batch else ():
        if part.ndim:
            _require_rows(name, part, batch)


def _require_rows(name: str, part: Tensor, batch: int) -> None:
    if len(part) not in (1, batch):
        raise ValueError(
            f"{name} has {len(part)} rows but the batch {batch}; give one value for all, or one row each (the first "
            "axis of x counts samples)"
        )


def chunks(
    size: int, tensors: tuple[Tensor, ...], keywords: Mapping[str, Any]
) -> Iterator[tuple[tuple[Tensor, ...], dict[str, Any]]]:
    """Split a call into calls of ``size`` rows; the last one is padded with copies of its first row."""
    batch = len(tensors[0])
    for begin in range(0, batch, size):
        rows = torch.arange(begin, begin + size, device=tensors[0].device)
        rows = torch.where(rows < batch, rows, begin)
        yield tuple(tensor[rows] for tensor in tensors), _taken(dict(keywords), rows)


def _taken(value: Any, index: Tensor) -> Any:
    return nested(lambda part: part[index.to(part.device)] if _has_rows(part) else part, value)


def as_row_numbers(index: Any, count: int | None) -> Tensor:
    """The sample numbers that ``index`` lists, or marks as true, ``(n,)`` on its device.

    ``count`` is the number of samples, if it is known.

    Raises:
        ValueError: ``index`` is not a list of integers or truth values, or refers to samples that do not exist.
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
        raise ValueError(f"index={index!r} must be sample numbers{room}, such as [0, 2] or range(2)")
    return numbers.nonzero().ravel() if is_mask else numbers


def row_count(values: Any) -> int | None:
    """The number of samples that the tensors of ``values`` have rows for; None if each has a single row."""
    return max((len(part) for part in tensors(values) if part.ndim and len(part) > 1), default=None)


def nested(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply ``function`` to the value, or to every part of a dict, a list or a tuple, in a new one.

    A dict of a class derived from dict, and a named tuple, keep their class; a named tuple that nothing changes is
    returned itself. Objects of other classes count as one value, since they may be more than their parts; so do dicts
    of a class that cannot be copied or refuses its items.
    """
    if isinstance(value, dict):
        parts = {key: nested(function, part) for key, part in value.items()}
        if type(value) is dict:
            return parts
        try:
            like = copy.copy(value)
            for key, part in parts.items():  # some classes refuse `update`
                like[key] = part
        except Exception:  # others are frozen
            return function(value)
        return like
    if not _is_sequence(value):
        return function(value)
    members = [nested(function, part) for part in value]
    if type(value) in (list, tuple):
        return type(value)(members)
    return value if all(map(operator.is_, members, value)) else value._make(members)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors among the parts that `nested` goes through, in its order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict) or _is_sequence(value):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


def _is_sequence(value: Any) -> bool:
    """Whether a value is a list, a tuple or a named tuple."""
    return type(value) in (list, tuple) or (isinstance(value, tuple) and hasattr(value, "_make"))


def equal_conditions(one: Any, other: Any) -> bool:
    """Whether two conditions or guidances are equal; one row, or a number, equals any number of rows like it.

    A value that is no number, NaN, equals itself.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return set(one) == set(other) and all(equal_conditions(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal_conditions, one, other))
    try:
        if isinstance(one, Tensor) or isinstance(other, Tensor):
            numeric = all(isinstance(value, Tensor | np.ndarray | np.number | int | float) for value in (one, other))
            return numeric and _equal_rows(*(torch.as_tensor(value).detach().cpu() for value in (one, other)))
        return bool(one == other or (one != one and other != other))
    except Exception:  # objects of other classes may refuse to be compared
        return one is other


def _equal_rows(one: Tensor, other: Tensor) -> bool:
    rows = [value.reshape(1) if value.ndim == 0 else value for value in (one, other)]
    alike = rows[0].shape[1:] == rows[1].shape[1:] and (len(rows[0]) == len(rows[1]) or 1 in map(len, rows))
    return alike and bool(((rows[0] == rows[1]) | (rows[0].isnan() & rows[1].isnan())).all())


def _has_rows(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim > 0
