"""Solvers and conditions as JSON and tensors, the only contents of a code's file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

import solvers
from solvers.settings import undeclared


def written(value: Any) -> Any:
    """A solver as JSON: the names of its classes, their fields, and plain values unchanged.

    A class of the user's own that has the name of one that `solvers` exports is written with its module.

    A field that older files lack names in its metadata the value, ``absent``, that gives the method of these files; at
    that value it is left out, so that their codes keep their digest.

    Raises:
        TypeError: a part is neither a dataclass nor a plain value, or has attributes that are none of its fields.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [written(one) for one in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise TypeError(
            f"code.solver contains {value!r}, which has no written form; use numbers, strings and dataclasses"
        )
    if hidden := undeclared(value):
        raise TypeError(
            f"code.solver contains {value!r}, whose {', '.join(hidden)} would be lost: no field of a dataclass; "
            f"decorate {type(value).__name__} with @dataclass(frozen=True), and declare its settings as fields"
        )
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    absent = _absent(type(value))
    told = {name: written(one) for name, one in fields.items() if name not in absent or one != absent[name]}
    return {"class": _name(type(value)), **told}


def _name(kind: type[Any]) -> str:
    name = kind.__name__
    foreign = name in solvers.__all__ and getattr(solvers, name) is not kind
    return f"{kind.__module__}.{kind.__qualname__}" if foreign else name


def read_back(description: Any) -> Any:
    """What `written` wrote, limited to the classes that `solvers` exports: a file must not name code to run."""
    if isinstance(description, list):
        return tuple(read_back(one) for one in description)
    if not isinstance(description, dict):
        return description
    fields = dict(description)
    name = fields.pop("class")
    if name not in solvers.__all__:
        raise ValueError(
            f"the code was made by {name}, which solvers does not export; pass Code.load(path, solver=...)"
        )
    made = getattr(solvers, name)
    known = {field.name for field in dataclasses.fields(made) if field.init}
    return made(**_absent(made) | {key: read_back(value) for key, value in fields.items() if key in known})


def _absent(kind: type[Any]) -> dict[str, Any]:
    """The values that stand for the fields that a file lacks."""
    return {one.name: one.metadata["absent"] for one in dataclasses.fields(kind) if "absent" in one.metadata}


def taken_apart(name: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Conditions as JSON, and their tensors by name; `put_together` undoes it.

    A tensor is named after its condition, as ``name.condition``; tensors inside dicts and lists are numbered, and
    replaced there by ``{"tensor": its name}``.

    Raises:
        TypeError: a part is not a number, text, a tensor, or a dict, list or tuple of these.
    """
    tensors = {f"{name}.{key}": value for key, value in values.items() if isinstance(value, Tensor)}

    def plain(value: Any, place: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            number = f"{name}#{len(tensors)}"
            tensors[number] = value
            return {"tensor": number}
        if isinstance(value, Mapping):
            if odd := [key for key in value if not isinstance(key, str)]:
                raise TypeError(f"{place}: the key {odd[0]!r} has no written form; use strings as keys")
            return {"dict": {key: plain(part, f"{place}[{key!r}]") for key, part in value.items()}}
        if isinstance(value, list | tuple):
            return {type(value).__name__: [plain(part, f"{place}[{number}]") for number, part in enumerate(value)]}
        raise TypeError(f"{place}: a {type(value).__name__} has no written form; use numbers, text and tensors")

    others = {key: value for key, value in values.items() if not isinstance(value, Tensor)}
    return {key: plain(value, f"{name}[{key!r}]") for key, value in others.items()}, tensors


def put_together(name: str, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The conditions that `taken_apart` described."""

    def whole(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        ((kind, parts),) = value.items()
        if kind == "tensor":
            return tensors[parts]
        if kind == "dict":
            return {key: whole(part) for key, part in parts.items()}
        return [whole(part) for part in parts] if kind == "list" else tuple(whole(part) for part in parts)

    known = {key: whole(value) for key, value in described.items()}
    mine = (key for key in tensors if key.startswith(f"{name}."))
    return known | {key.removeprefix(f"{name}."): tensors[key] for key in mine}
