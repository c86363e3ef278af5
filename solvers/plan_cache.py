"""A cache of grid plans: solving again on the same grid recomputes no coefficients."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from solvers.ode import ODE, Coordinates, PathODE
from solvers.settings import is_settled

MOST = 64
"""How many plans are kept, the most recently used ones."""


def kept_plan(solver: Any, ode: ODE, *grid: Any) -> Any:
    """``solver.plan(ode, *grid)``, which may depend on the path of ``ode`` but on nothing else of it.

    Plans for samples that keep their own times are not cached: arrays cannot be keys. Nor are those of a method that
    holds what may change, such as a tensor of coefficients that are being learned.
    """
    path = ode.coordinates() if isinstance(ode, PathODE) else None
    key = (solver, path, *grid)
    if path is None or not is_settled(solver) or not _is_key(key):
        return solver.plan(ode, *grid)
    return _plan(*key)


@lru_cache(maxsize=MOST)
def _plan(solver: Any, path: Coordinates, *grid: Any) -> Any:
    return solver.plan(path, *grid)


def _is_key(values: tuple[Any, ...]) -> bool:
    try:
        hash(values)
    except TypeError:
        return False
    return True
