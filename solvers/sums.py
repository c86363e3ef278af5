"""Linear combinations of states: the one place where coefficients meet tensors."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from solvers.fusion import fused, fusing
from solvers.large import is_bare, spare
from solvers.real import Real
from solvers.transfer import placed

Term = tuple[Real, Tensor]
"""A coefficient and a tensor."""
Terms = Sequence[Term]
LARGE_SAMPLE = 2**14
"""The sample size beyond which a matrix product takes as long as summing its terms one by one."""
LARGEST = float(np.finfo(np.float32).max)
"""NumPy warns of larger numbers where it converts them to float32."""


def combine(*terms: Term) -> Tensor:
    """``sum of c * x`` over the pairs ``(c, x)``: the one place where coefficients meet tensors.

    Coefficients are floats or ``(B,)`` float64 arrays; an array scales the rows of its tensor. The result keeps the
    dtype, device and shape of the first tensor, whatever the precision of the coefficients.
    """
    if fusing.get() and (shared := _shared(terms)) is not None:
        return fused([shared], [tensor for _, tensor in terms])[0]
    term = _up_to_a_factor(terms)
    if term is not None:
        factor, found = term
        if len(terms) == 1:
            return torch.mul(found, multiplier(factor, found), out=spare([found]))
        return found if factor == 1 else found.mul_(multiplier(factor, found))
    (first, x), *rest = terms
    found = x * (multiplier(first, x) if isinstance(first, float) else per_row(first, x))
    for coefficient, x in rest:
        if isinstance(coefficient, float):
            found.add_(x, alpha=coefficient)
        else:
            found.addcmul_(x, per_row(coefficient, x))
    return found


def total(terms: Terms) -> Tensor:
    """`combine`, or the tensor itself if it is the whole sum."""
    coefficient, tensor = terms[0]
    alone = len(terms) == 1 and isinstance(coefficient, float) and coefficient == 1
    return tensor if alone else combine(*terms)


def single(terms: Terms) -> Term:
    """The sum as one term, a factor to be applied by the reader and a tensor; this saves a pass over memory."""
    return _up_to_a_factor(terms) or (1.0, combine(*terms))


def pending(terms: Terms) -> Terms:
    """The input from which `advance` makes the newest slope: one term, or all terms if sums are fused."""
    return terms if fusing.get() else [single(terms)]


def _up_to_a_factor(terms: Terms) -> tuple[float, Tensor] | None:
    """A factor and the sum divided by it; a single term stays as it is. None if samples have their own coefficients.

    Also None if the two tensors that are added first differ in dtype or shape: torch would promote or broadcast the
    sum. The others are added in place.

    The factor is 1 if possible, so that adding zeros leaves a state unchanged, and otherwise the largest coefficient,
    relative to which no other one overflows.
    """
    if len(terms) == 1:
        ((alone, x),) = terms
        return (alone, x) if isinstance(alone, float) else None
    coefficients, tensors = zip(*terms, strict=False)
    for coefficient in coefficients:
        if not isinstance(coefficient, float):
            return None
    factor = 1.0 if 1.0 in coefficients else max(coefficients, key=abs)
    first = coefficients.index(factor)
    second = 0 if first else 1
    one, other = tensors[first], tensors[second]
    if one.dtype is not other.dtype or one.shape != other.shape:
        return None
    found = torch.add(one, other, alpha=coefficients[second] / factor if factor else 0.0, out=spare(tensors))
    for i in range(1, len(tensors)):
        if i != first and i != second:
            found.add_(tensors[i], alpha=coefficients[i] / factor if factor else 0.0)
    return factor, found


def _shared(terms: Terms) -> list[float] | None:
    """The coefficients, if they are the same for all samples and the tensors agree in dtype and shape, else None."""
    first = terms[0][1]
    coefficients = []
    for coefficient, tensor in terms:
        alike = tensor is first or (tensor.dtype is first.dtype and tensor.shape == first.shape)
        if not isinstance(coefficient, float) or not alike:
            return None
        coefficients.append(coefficient)
    return coefficients


def advance(start: Term, weights: Sequence[Real], newest: Terms, earlier: Terms) -> tuple[Term, Tensor]:
    """A multistep formula: ``start`` plus the weighted sum of the newest slope, `pending`, and earlier ones.

    Returns the newest slope as one term too, for the following steps. If sums are fused, both take one pass.
    """
    read = [(weight * factor, tensor) for weight, (factor, tensor) in zip(weights[1:], earlier, strict=False)]
    if fusing.get() and len(newest) > 1:
        terms, weight = [*newest, start, *read], weights[0]
        coefficients = _shared(terms)
        if coefficients is not None and isinstance(weight, float):
            # The slope's own terms replace the slope.
            own, direct = coefficients[: len(newest)], coefficients[len(newest) :]
            rows = [own, [*(weight * coefficient for coefficient in own), *direct]]
            made, end = fused(rows, [tensor for _, tensor in terms])
            return (1.0, made), end
    slope = single(newest)
    factor, tensor = slope
    return slope, combine(start, (weights[0] * factor, tensor), *read)


def weighted_sums(weights: np.ndarray, tensors: Tensor) -> Tensor:
    """``sum over j of weights[s, b, j] tensors[b, j]``: weights ``(S, B, M)`` and tensors ``(B, M, ...)``, S sums.

    On the CPU this is a product of two matrices for each sample, all of one shape, so that a sample's bits do not
    depend on the batch. On other devices, for large samples, where zero weights would cost more than this saves, and
    for autograd, it is computed term by term, with other last bits.
    """
    several, batch, count = weights.shape
    small = math.prod(tensors.shape[2:]) <= LARGE_SAMPLE
    if small and is_bare(tensors) and not (tensors.requires_grad and torch.is_grad_enabled()):
        rows = tensors.detach().reshape(batch, count, -1).numpy()
        sums = np.empty((several, batch, rows.shape[2]), dtype=rows.dtype)
        matrices = weights.astype(rows.dtype).swapaxes(0, 1)
        if rows.shape[2] > 1:
            np.matmul(matrices, rows, out=sums.swapaxes(0, 1))
        else:  # a matrix times a vector is rounded according to the strides of both, here those of the batch
            sums[:] = np.matmul(np.ascontiguousarray(matrices), rows).swapaxes(0, 1)
        return torch.from_numpy(sums).reshape(several, batch, *tensors.shape[2:])
    found = tensors.new_zeros(several, batch, *tensors.shape[2:])
    read = np.flatnonzero(weights.any(axis=(0, 1))).tolist()
    columns = placed(torch.from_numpy(weights[..., read]), tensors.device, tensors.dtype)
    columns = columns.reshape(several, batch, len(read), *(1,) * (tensors.ndim - 2))
    for j, column in zip(read, columns.unbind(2), strict=True):
        found.addcmul_(tensors[:, j], column)
    return found


def multiplier(factor: float, x: Tensor) -> float | Tensor:
    """``factor`` as it multiplies ``x``, with the same bits: torch converts a number for as long as two sums take."""
    if type(x) is not Tensor or not x.is_cpu or not -LARGEST <= factor <= LARGEST:
        return factor
    if not x.ndim or not x.is_floating_point():  # there a tensor would take part in the promotion of dtypes
        return factor
    return torch.from_numpy(np.array(factor, dtype=np.float64 if x.dtype is torch.float64 else np.float32))


def per_row(values: Real, like: Tensor) -> Tensor:
    """``values``, ``(..., B)`` or one for all, as a tensor that multiplies the rows of ``like``, ``(B, ...)``."""
    column = np.asarray(values, dtype=np.float64)
    column = column.reshape(column.shape + (1,) * (like.ndim - 1) if column.ndim else ())
    return placed(torch.from_numpy(column), like.device, like.dtype)
