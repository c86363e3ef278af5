"""Compiled linear combinations: one pass over memory instead of one for each term."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import FunctionType

import torch
from torch import Tensor

from solvers.large import spare
from solvers.transfer import placed

fusing: ContextVar[bool] = ContextVar("fusing", default=False)
"""Whether linear combinations go through `fused`."""


@contextmanager
def fusion(compile: bool) -> Iterator[None]:
    """Within this context, compute linear combinations by `torch.compile` if ``compile``."""
    token = fusing.set(compile)
    try:
        yield
    finally:
        fusing.reset(token)


def fused(coefficients: Sequence[Sequence[float]], tensors: Sequence[Tensor]) -> list[Tensor]:
    """A ``sum of c * x`` for each row of coefficients, which may be shorter than the tensors, in one pass over these.

    The sums have the dtype of the tensors; their last bits may differ from those of separate operations.
    """
    first = tensors[0]
    unique, rows = _merged(coefficients, tensors)
    flat = [tensor.reshape(-1) for tensor in unique]
    results = [result for _ in rows if (result := spare(flat)) is not None]
    # Python numbers would be compiled in, as would shapes, and every step would wait for the compiler.
    wide = torch.promote_types(first.dtype, torch.float32)
    weights = [placed(torch.tensor(row, dtype=wide, device="cpu"), first.device) for row in rows]
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), bool(results)
    found = _kernel(tuple(map(len, rows)), first.dtype, first.device, modes)(weights, flat, results)
    return [one.reshape(first.shape) for one in found]


def _merged(
    coefficients: Sequence[Sequence[float]], tensors: Sequence[Tensor]
) -> tuple[list[Tensor], list[list[float]]]:
    """The sums with each tensor listed once, so that one in several terms is read once."""
    places: dict[int, int] = {}
    unique: list[Tensor] = []
    rows: list[list[float]] = [[] for _ in coefficients]
    for i, tensor in enumerate(tensors):
        place = places.setdefault(id(tensor), len(unique))
        if place == len(unique):
            unique.append(tensor)
        for row, given in zip(rows, coefficients, strict=True):
            if i < len(given) and place < len(row):
                row[place] += given[i]
            elif i < len(given):
                row.append(given[i])
    return unique, rows


@cache
def _kernel(
    counts: tuple[int, ...], dtype: torch.dtype, device: torch.device, modes: tuple[bool, ...]
) -> Callable[..., list[Tensor]]:
    """The sums of so many terms, with a separate code object for each case.

    The compiler recompiles for each case, counts the versions of one code object, and gives up after eight.
    """

    def sums(weights: list[Tensor], tensors: list[Tensor], results: list[Tensor]) -> list[Tensor]:
        wide = [tensor.to(weights[0].dtype) for tensor in tensors]
        found = []
        for row, count in zip(weights, counts, strict=True):
            total = row[0] * wide[0]
            for i in range(1, count):
                total = total + row[i] * wide[i]
            found.append(total.to(tensors[0].dtype))
        if not results:
            return found
        for result, total in zip(results, found, strict=True):
            result.copy_(total)
        return results

    name = "_".join(map(str, ("sums_of", *counts, dtype, device, *modes)))
    own = FunctionType(sums.__code__.replace(co_name=name), sums.__globals__, name, closure=sums.__closure__)
    return torch.compile(own, dynamic=True)


@cache
def require_compiler() -> None:
    """Raise `ValueError` if `torch.compile` finds no working compiler."""
    try:
        fused([(1.0, 1.0)], (torch.zeros(2, device="cpu"), torch.zeros(2, device="cpu")))
    except Exception as error:  # the type of torch's error depends on what is missing
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"compile=True needs a C++ compiler that torch.compile can use ({reason}); install one, or leave it out"
        ) from error
