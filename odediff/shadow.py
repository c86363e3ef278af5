"""Imported first: a file or folder of the user's named ``solvers`` would hide the package, and is named here."""

from importlib.util import find_spec
from pathlib import Path

_spec = find_spec("solvers")
_found = None if _spec is None or _spec.origin is None else Path(_spec.origin).resolve()
if _found is None or _found.parents[1] != Path(__file__).resolve().parents[1]:
    raise ImportError(
        f"solvers: {_found or 'nothing'} is found instead of the package that comes with odediff; rename or move it"
    )
