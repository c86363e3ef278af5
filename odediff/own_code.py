"""The code of a solver of the user's own, which no version describes."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from solvers.settings import parts

DESCRIBED = sys.stdlib_module_names | {"odediff", "solvers"}
"""Packages that a version describes."""


def code_hash(solver: Any) -> str | None:
    """SHA-256 of the files that define the user's own classes of a solver and its parts; None if there are none.

    Several solvers, or classes of them, may be given as a tuple. What these files import counts only as far as classes
    are derived from it.
    """
    kinds = [part if isinstance(part, type) else type(part) for part in parts(solver)]
    files = sorted({file for kind in kinds for one in kind.__mro__ if (file := _file(one))})
    contents = [file.read_bytes() for file in files if file.is_file()]
    return hashlib.sha256(b"\0".join(contents)).hexdigest() if contents else None


def _file(kind: type) -> Path | None:
    """The file of a class that belongs to no package that a version describes."""
    if kind.__module__.partition(".")[0] in DESCRIBED:
        return None
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return None if file is None else Path(file)
