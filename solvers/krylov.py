"""Iterations for systems with one equation per sample: no sample's bits depend on its batch mates."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor, Tensor], Tensor]
"""Called with values for some of the samples, ``(n, ...)``, and with their rows, ``(n,)``."""


def largest(x: Tensor) -> Tensor:
    """The max-norm of each sample, ``(B,)`` in float64 on the CPU."""
    return x.detach().reshape(len(x), math.prod(x.shape[1:])).abs().amax(dim=1).cpu().double()


def dot(x: Tensor, y: Tensor) -> Tensor:
    """The inner product of each sample, ``(B,)`` in float64."""
    return (x.double() * y.double()).reshape(len(x), math.prod(x.shape[1:])).sum(dim=1)


def anderson(
    defect: Function, x: Tensor, relative: Tensor, bound: float, most: int, damping: float, history: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find z with ``defect(z) = 0`` by ``z <- z + damping defect(z)``, from z = x, each sample on its own.

    With ``history = m > 0`` the next value is the affine combination of the last m + 1 whose defects, so combined, are
    smallest (Anderson 1965; Walker & Ni 2011, in difference form). A sample whose defect's max-norm times its
    ``relative`` is at most ``bound`` stops, after ``most`` iterations at the latest.

    Returns:
        The values, their residuals, the iterations, and whether the bound was met, by sample.
    """
    z = x.clone()
    residual = torch.full((len(x),), float("inf"), dtype=torch.float64, device="cpu")
    iterations = torch.zeros(len(x), dtype=torch.int64, device="cpu")
    active = torch.arange(len(x), device="cpu")
    values: list[Tensor] = []
    defects: list[Tensor] = []
    for k in range(most + 1):
        rows = active.to(x.device)
        value = z[rows]
        found = defect(value, rows)
        residual[active] = largest(found) * relative[active]
        # Without a finite residual there is nothing to continue from.
        go_on = (residual[active] > bound) & torch.isfinite(residual[active])
        active = active[go_on]
        if not len(active) or k == most:
            break
        keep = go_on.to(x.device)
        value, found = value[keep], found[keep]
        values = [*(v[keep] for v in values), value][-history - 1 :]
        defects = [*(f[keep] for f in defects), found][-history - 1 :]
        z[active.to(x.device)] = _mixed(values, defects, damping) if history else value + damping * found
        iterations[active] += 1
    return z, residual, iterations, residual <= bound


def _mixed(values: list[Tensor], defects: list[Tensor], damping: float) -> Tensor:
    """Anderson's next value, from the last ones."""
    value, found = values[-1], defects[-1]
    step = damping * found
    if len(values) == 1:
        return value + step
    changes = [later - earlier for earlier, later in zip(defects, defects[1:], strict=False)]
    moves = [later - earlier for earlier, later in zip(values, values[1:], strict=False)]
    gram = torch.stack([torch.stack([dot(u, v) for v in changes], dim=1) for u in changes], dim=1)
    right = torch.stack([dot(u, found) for u in changes], dim=1)
    # Differences of defects become parallel near convergence: the pseudo-inverse drops directions without information.
    weights = (torch.linalg.pinv(gram, rtol=1e-12, hermitian=True) @ right[:, :, None])[:, :, 0]
    for i, (change, move) in enumerate(zip(changes, moves, strict=True)):
        weight = weights[:, i].to(value.dtype).reshape(-1, *(1,) * (value.ndim - 1))
        step = step - weight * (move + damping * change)
    return value + step


def gmres(product: Function, right: Tensor, most: int, reduction: float = 0.01) -> Tensor:
    """Solve ``A d = right`` for each sample, from products with A alone (Saad & Schultz 1986), from d = 0.

    Each sample stops when its residual has fallen by ``reduction``, after ``most`` products at the latest.
    """
    norm = dot(right, right).sqrt()
    basis = [right / _column(norm, right)]
    hessenberg = right.new_zeros((len(right), most + 1, most), dtype=torch.float64)
    weights = right.new_zeros((len(right), most), dtype=torch.float64)
    active = torch.nonzero((norm > 0) & torch.isfinite(norm)).ravel().cpu()
    for k in range(most):
        if not len(active):
            break
        rows = active.to(right.device)
        w = product(basis[k][rows], active)
        for i in range(k + 1):
            h = dot(w, basis[i][rows])
            hessenberg[rows, i, k] = h
            w = w - _column(h, w, divide=False) * basis[i][rows]
        length = dot(w, w).sqrt()
        hessenberg[rows, k + 1, k] = length
        following = torch.zeros_like(right)
        following[rows] = w / _column(length, w)
        basis.append(following)
        small = hessenberg[rows, : k + 2, : k + 1]
        # A sample whose products are not finite has failed, and must not affect the others.
        finite = torch.isfinite(small).flatten(1).all(dim=1)
        small = torch.where(finite[:, None, None], small, 0.0)
        target = right.new_zeros((len(rows), k + 2, 1), dtype=torch.float64)
        target[:, 0, 0] = norm[rows]
        solution = torch.linalg.pinv(small, rtol=1e-14) @ target
        weights[rows, : k + 1] = solution[:, :, 0]
        left = (small @ solution - target).reshape(len(rows), -1).square().sum(dim=1).sqrt()
        active = active[(finite & (left > reduction * norm[rows])).cpu()]
    step = torch.zeros_like(right)
    for i, vector in enumerate(basis[:most]):
        step = step + _column(weights[:, i], right, divide=False) * vector
    return step


def _column(values: Tensor, like: Tensor, divide: bool = True) -> Tensor:
    """One number per sample, shaped to broadcast over its components; a divisor of 0 becomes 1."""
    safe = torch.where(values > 0, values, 1.0) if divide else values
    return safe.to(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))
