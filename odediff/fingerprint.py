"""The identity of a network in one line: the hash of its weights."""

from __future__ import annotations

import dis
import functools
import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from types import CellType, CodeType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from solvers.transfer import as_array

PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def fingerprint(network: Any) -> str:
    """SHA-256 of the weights of a network, or of those that a function reads; its name if it has none.

    Weights are tensors and arrays, not single numbers: a function that counts its calls keeps its fingerprint.

    Neither `torch.compile`, a wrapper that spreads a batch over devices, nor a function around it changes the result;
    nor do the first two around parts of a network.
    """
    held = list(_held(network))
    if not held:
        named = network if hasattr(network, "__qualname__") else type(network)
        return f"{named.__module__}.{named.__qualname__}"
    if len(held) == 1 and isinstance(held[0], nn.Module):
        return _module_hash(held[0])
    weights = list(held_weights(network))
    return tensors_hash(weights[0] if len(weights) == 1 else dict(enumerate(weights)))


_hashes: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()
"""The hashes of modules that were hashed before, with their `_sums` at that time."""
ROW = 1021
"""The length of the rows into which `_placed_sum` divides the numbers."""


def _module_hash(module: nn.Module) -> str:
    """`tensors_hash` of a module's state, computed again only if its sums show that the state has changed."""
    module = unwrapped(module)
    state = _state(module)
    sums = _sums(state)
    if sums is None:
        return tensors_hash(state)
    before = _hashes.get(module)
    if before is None or before[0] != sums:
        _hashes[module] = before = sums, tensors_hash(state)
    return before[1]


def _sums(state: Mapping[str, Any]) -> Any:
    """Two sums of each tensor, computed on its device; None if the state contains anything else.

    The sum of the bits changes with any single number; the weighted sum of the numbers also depends on their places.
    """
    totals, kinds = [], []
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_quantized or value.is_meta:
            return None
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
        if flat.storage_offset() % 8:
            flat = flat.clone()
        whole = len(flat) // 8 * 8
        totals.append(flat[:whole].view(torch.int64).sum() + flat[whole:].sum(dtype=torch.int64))
        totals.append(_placed_sum(value.detach()).view(torch.int32).long())
        kinds.append((name, value.dtype, value.shape))
    devices = dict.fromkeys(total.device for total in totals)
    return kinds, [torch.stack([one for one in totals if one.device == device]).tolist() for device in devices]


def _placed_sum(value: Tensor) -> Tensor:
    """``sum of w_i v_i`` in float32; w is the weight of a place in its row of `ROW` numbers, times that of the row."""
    numbers = torch.view_as_real(value) if value.is_complex() else value
    numbers = numbers.contiguous().reshape(-1).float()
    places = torch.arange(ROW, device=value.device, dtype=torch.float32).mul_(1.3).cos_()
    whole = len(numbers) // ROW * ROW
    rows = numbers[:whole].reshape(-1, ROW) @ places
    weights = torch.arange(len(rows), device=value.device, dtype=torch.float32).mul_(0.7).add_(1).cos_()
    return (rows * weights).sum() + (numbers[whole:] * places[: len(numbers) - whole]).sum()


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside wrappers that change how it runs, not what it computes."""
    while True:
        inner = module.module if isinstance(module, PARALLEL) else getattr(module, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _state(module: nn.Module) -> dict[str, Any]:
    """The state of a module, named as if no part of it were wrapped."""
    inside = {
        f"{name}.module" if isinstance(part, PARALLEL) else f"{name}._orig_mod"
        for name, part in module.named_modules(remove_duplicate=False)
        if unwrapped(part) is not part
    }
    return {_outside(name, inside): value for name, value in module.state_dict().items()}


def _outside(name: str, inside: Collection[str]) -> str:
    """A dotted name without the last part of those of its beginnings that are ``inside`` a wrapper."""
    parts = name.split(".")
    return ".".join(part for i, part in enumerate(parts, 1) if ".".join(parts[:i]) not in inside)


def held_weights(network: Any) -> Iterator[Mapping[Any, Any]]:
    """The weights of modules, and the tensors and arrays, that a callable holds, in the order of its code."""
    for held in _held(network):
        yield _state(unwrapped(held)) if isinstance(held, nn.Module) else {"": held}


def held_modules(network: Any) -> list[nn.Module]:
    """The modules that a callable is or holds, in the order of its code."""
    return [held for held in _held(network) if isinstance(held, nn.Module)]


def _held(network: Any) -> Iterator[nn.Module | Tensor | np.ndarray]:
    """The modules, tensors and arrays that a callable is or holds.

    A function holds its defaults, its closure and the globals that it names; a partial its arguments; another object
    that can be called its attributes. An object that cannot be called, such as the owner of a method, holds those of
    its attributes that are modules.
    """
    seen: set[int] = set()

    def search(value: Any) -> Iterator[nn.Module | Tensor | np.ndarray]:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, nn.Module | Tensor | np.ndarray):
            yield value
        else:
            for part in _parts(value):
                yield from search(part)

    return search(network)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, type | ModuleType):
        return []
    if not callable(value):
        return [part for part in _attributes(value) if isinstance(part, nn.Module)]
    if hasattr(value, "_torchdynamo_orig_callable"):
        return [value._torchdynamo_orig_callable]
    if isinstance(value, FunctionType):
        return [*_given(value), *_globals(value)]
    if hasattr(value, "__self__"):
        return [value.__self__, getattr(value, "__func__", None)]
    return _attributes(value)


def _attributes(value: Any) -> list[Any]:
    """The attributes that an object has of its own, also those in slots; no property of the object is computed."""
    found: list[Any] = []
    with suppress(AttributeError):
        found += object.__getattribute__(value, "__dict__").values()
    for kind in type(value).__mro__:
        for slot in vars(kind).values():
            if isinstance(slot, MemberDescriptorType):
                with suppress(AttributeError):  # an empty slot
                    found.append(slot.__get__(value))
    return found


def _given(function: FunctionType) -> list[Any]:
    """The defaults and the closure of a function."""
    closed = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
    return [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *closed]


def _globals(function: FunctionType) -> list[Any]:
    """The globals that a function names, also in functions inside it, except functions of other packages."""
    instructions = (i for code in _codes(function.__code__) for i in dis.get_instructions(code))
    names = dict.fromkeys(i.argval for i in instructions if i.opname == "LOAD_GLOBAL")
    found = [function.__globals__[name] for name in names if name in function.__globals__]
    return [one for one in found if not isinstance(one, FunctionType) or _package(one) == _package(function)]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function, and of the functions inside it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _codes(inner)


def _package(function: FunctionType) -> str:
    return function.__module__.partition(".")[0]


def tensors_hash(tensors: Mapping[Any, Any]) -> str:
    """SHA-256 of tensors: their names and bits, in the order of the names.

    Whatever else a module keeps in its state counts too: nested tensors, numbers and text. Tensors without memory, such
    as those of networks whose weights are loaded for each call, count by their shapes.
    """
    digest = hashlib.sha256()
    for part in _bits(tensors):
        digest.update(part)
    return digest.hexdigest()


def _bits(value: Any) -> Iterator[bytes | memoryview]:
    if isinstance(value, Tensor) and value.is_meta:
        yield f"{value.dtype}{tuple(value.shape)}".encode()
    elif isinstance(value, Tensor):
        dense = value.detach().dequantize() if value.is_quantized else value.detach().to_dense()
        yield as_array(dense.cpu().contiguous().reshape(-1).view(torch.uint8)).data
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield value.tobytes() if value.dtype != object else repr(value.tolist()).encode()
    elif isinstance(value, Mapping):
        for name, one in sorted(value.items(), key=lambda item: str(item[0])):
            yield str(name).encode()
            yield from _bits(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _bits(one)
    elif isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | None):
        yield repr(value).encode()
    else:
        yield type(value).__qualname__.encode()
