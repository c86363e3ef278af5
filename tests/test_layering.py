"""Law 1: solvers is a numerical library; it knows neither odediff nor the application's Hydra."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOLVERS = Path(__file__).parents[1] / "solvers"
FORBIDDEN = {"odediff", "hydra", "omegaconf"}


def imported_packages(source: str) -> set[str]:
    names = []
    for statement in ast.walk(ast.parse(source)):
        if isinstance(statement, ast.Import):
            names += [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            names.append("." * statement.level + (statement.module or ""))
    return {name.split(".")[0] or name for name in names}


@pytest.mark.parametrize("path", sorted(SOLVERS.rglob("*.py")), ids=lambda path: path.relative_to(SOLVERS).as_posix())
def test_solvers_imports_neither_odediff_nor_hydra(path):
    assert not imported_packages(path.read_text(encoding="utf-8")) & FORBIDDEN


def test_the_solver_package_is_where_the_law_looks():
    assert (SOLVERS / "ode.py").is_file()


@pytest.mark.parametrize(
    "source",
    ["import numpy, odediff.grid as grid", "from odediff import grid", "def late():\n    from hydra.utils import call"],
)
def test_the_law_sees_every_form_of_import(source):
    assert imported_packages(source) & FORBIDDEN


@pytest.mark.parametrize("name", ["solvers.py", "solvers/__init__.py"])
def test_a_file_that_hides_the_solvers_is_named(tmp_path, name):
    hiding = tmp_path / name
    hiding.parent.mkdir(exist_ok=True)
    hiding.write_text("")
    ended = subprocess.run(
        [sys.executable, "-c", "import odediff"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOLVERS.parent)},
        capture_output=True,
        text=True,
    )
    assert ended.stderr.splitlines()[-1] == (
        f"ImportError: solvers: {hiding} is found instead of the package that comes with odediff; rename or move it"
    )
