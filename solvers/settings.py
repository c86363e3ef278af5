"""What a method is made of: whether methods that are equal now are one method, and stay so."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types whose values never change."""


def parts(value: Any) -> Iterator[Any]:
    """An object made of dataclasses, tuples and lists, and all that it is made of."""
    yield value
    if is_dataclass(value) and not isinstance(value, type):
        inner: Sequence[Any] = [getattr(value, field.name, None) for field in fields(value)]
    else:
        inner = value if isinstance(value, tuple | list) else ()
    for one in inner:
        yield from parts(one)


def undeclared(value: Any) -> list[str]:
    """The attributes of a dataclass's instance that are none of its fields; equality, `repr` and files leave them out.

    Values that a `cached_property` or ``__post_init__`` computed follow from the fields: an instance that these make
    has them too. Other values than dataclasses have none; `parts` finds dataclasses.
    """
    if not is_dataclass(value):
        return []
    names = {field.name for field in fields(value)}
    held = getattr(value, "__dict__", {})
    more = [name for name in held if name not in names and not _computed(value, name)]
    again = getattr(_made_again(value), "__dict__", {}) if more else {}
    return [name for name in more if name not in again or not _same(held[name], again[name])]


def is_settled(value: Any) -> bool:
    """Whether ``value`` is made of plain values, tuples and frozen dataclasses, all of whose attributes are compared.

    What equals such a value is the same for good. A tensor, a list or a module may change, and equal itself afterwards.
    """
    kind: Any = type(value)
    if kind in PLAIN:
        return True
    if kind is tuple:
        return all(map(is_settled, value))
    names = _compared(kind)
    if names is None:
        return isinstance(value, np.generic | Enum)
    held = getattr(value, "__dict__", {})
    return all([is_settled(getattr(value, name)) for name in names]) and (held.keys() <= names or not undeclared(value))


@lru_cache(maxsize=256)
def _compared(kind: Any) -> frozenset[str] | None:
    """The names of the fields of a frozen dataclass; None for any other type, or if it does not compare all of them."""
    declared = getattr(kind, "__dataclass_params__", None)
    if declared is None or not declared.frozen:
        return None
    every = fields(kind)
    return frozenset(field.name for field in every) if all(field.compare for field in every) else None


def _made_again(value: Any) -> Any:
    """The instance that the fields of a dataclass's instance make; None if they are not all that ``__init__`` takes."""
    maker = next(kind for kind in type(value).__mro__ if "__init__" in vars(kind))
    if "__dataclass_params__" not in vars(maker):
        return None
    try:
        return type(value)(**{field.name: getattr(value, field.name) for field in fields(value) if field.init})
    except (TypeError, ValueError, AttributeError):
        return None


def _same(one: Any, other: Any) -> bool:
    """Whether both are equal for certain, down to the items of containers and the numbers of tensors and arrays."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    return (one == other) is True


def _computed(value: Any, name: str) -> bool:
    return isinstance(getattr(type(value), name, None), cached_property)
