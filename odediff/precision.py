"""The precision in which a network computes, where its parameters differ in theirs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from odediff.conditions import tensors
from odediff.one_line import one_line

Place = tuple[nn.Module, str]
"""The part of a module that holds a parameter, and its name there."""


def precision_place(modules: Iterable[nn.Module]) -> Place | None:
    """The place of a floating-point parameter in the precision in which the modules take a state; None without any.

    The tensor there may be another one later: `torch.nn.Module.half` changes it in place, `load_state_dict` with
    ``assign=True`` replaces it.

    It is the first one in the precision that a part reports by a property ``dtype``, as those of diffusers do: they may
    keep the parameters that come first in float32. Otherwise it is the first one of all. Parameters of eight bits are
    left out: they are stored in another precision than they are computed in.
    """
    held = list(modules)
    parts = (part for module in held for part in module.modules())
    reporting = (part for part in parts if isinstance(getattr(type(part), "dtype", None), property))
    reports = (getattr(part, "dtype", None) for part in reporting)
    reported = next((dtype for dtype in reports if isinstance(dtype, torch.dtype)), None)
    matching = (place for place in _places(held) if reported in (None, precision_at(place)))
    return next(matching, None) or next(_places(held), None)


def _places(modules: Iterable[nn.Module]) -> Iterator[Place]:
    """The places of the floating-point parameters of more than eight bits, one by one: a large network has many."""
    for module in modules:
        for part in module.modules():
            for name, parameter in part._parameters.items():  # named_parameters may give other names
                if parameter is not None and parameter.is_floating_point() and parameter.dtype.itemsize > 1:
                    yield part, name


def precision_at(place: Place) -> torch.dtype:
    """The precision of the parameter at a place.

    Raises:
        KeyError, AttributeError: the parameter was removed, as by a parametrization.
    """
    part, name = place
    return part._parameters[name].dtype  # type: ignore[union-attr]


def require_one_precision(dtype: torch.dtype, conditions: Mapping[str, Any], error: RuntimeError) -> None:
    """Raise `TypeError` for a condition in another precision than the state, after the network's own ``error``."""
    for name, value in conditions.items():
        for part in tensors(value):
            if part.is_floating_point() and part.dtype is not dtype:
                raise TypeError(
                    f"condition {name!r} has dtype {part.dtype}, but the network received a state of {dtype} and "
                    f"failed ({one_line(error)}); a tensor keeps its precision: give it in that of the network, by "
                    f".to({dtype})"
                ) from error
