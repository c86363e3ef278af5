"""Imported first: a file or folder of the user's named ``solvers`` would hide the package, and is named here."""

from importlib.util import find_spec
from pathlib import Path

_spec = find_spec("solvers")
if _spec is None or not any(Path(folder, "ode.py").exists() for folder in _spec.submodule_search_locations or ()):
    _found = "nothing" if _spec is None else _spec.origin or "an empty folder"
    raise ImportError(f"solvers: {_found} is found instead of the package that comes with odediff; rename or move it")
