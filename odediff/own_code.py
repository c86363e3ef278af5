"""The user's own code: that of a solver, a grid, a network, which no version describes."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import FunctionType
from typing import Any

from odediff.fingerprint import held_modules
from odediff.model import Model
from solvers.settings import parts

DESCRIBED = sys.stdlib_module_names | {"odediff", "solvers", "torch", "numpy", "scipy", "torchdiffeq"}
"""Packages that a version describes."""


def code_hash(solver: Any) -> str | None:
    """SHA-256 of the files that define the user's own classes and functions in a solver; None if there are none.

    Several solvers, or classes and functions, may be given as a tuple. What these files import counts only as far as
    classes are derived from it.
    """
    kinds = [part if isinstance(part, type | FunctionType) else type(part) for part in parts(solver)]
    files = sorted({file for kind in kinds for one in getattr(kind, "__mro__", (kind,)) if (file := _file(one))})
    contents = [file.read_bytes() for file in files if file.is_file()]
    return hashlib.sha256(b"\0".join(contents)).hexdigest() if contents else None


def code_parts(model: Model) -> tuple[Any, ...]:
    """What `code_hash` looks at in a model: its declaration, and the modules in its network."""
    return (model, *(module for held in held_modules(model.network) for module in held.modules()))


def _file(kind: type | FunctionType) -> Path | None:
    """The file of a class or function that belongs to no package that a version describes."""
    if str(kind.__module__).partition(".")[0] in DESCRIBED:
        return None
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return None if file is None else Path(file)
