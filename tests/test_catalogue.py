from pathlib import Path

import pytest

import solvers
from odediff.catalogue import configured, reference, solver_classes, solver_table

README = Path(__file__).parents[1] / "README.md"


def cells(name: str) -> list[str]:
    (row,) = (line for line in solver_table().splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_readme_has_the_table_that_the_task_prints():
    assert solver_table() in README.read_text(), "replace the table in README.md by the output of: odediff task=solvers"


def test_the_table_has_a_row_for_every_exported_solver():
    exported = [getattr(solvers, name) for name in solvers.__all__]
    exported = {one.__name__ for one in exported if isinstance(one, type) and issubclass(one, solvers.Solver)}
    rows = [line.split("|")[1].strip() for line in solver_table().splitlines()[2:]]
    assert sorted(rows) == sorted(exported - {"Solver", "RungeKutta", "ReversibleSolver"})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("RK4", ["rk4", "4", "4", "4", "yes", "by flipping", "Kutta 1901"]),
        ("Heun", ["heun", "2", "2", "2", "yes", "by flipping", "Karras et al. 2022"]),
        ("DDPM", ["ddpm, ddpm_large", "weak 1", "weak 1", "1", "no", "no", "Ho, Jain & Abbeel 2020"]),
        ("Scipy", ["scipy", "3 to 12", "3 to 12", "adaptive", "yes", "by flipping", "Virtanen et al. 2020"]),
    ],
)
def test_a_row_says_what_the_class_declares(name, expected):
    assert cells(name)[1:] == expected


@pytest.mark.parametrize("one", solver_classes(), ids=lambda one: one.__name__)
def test_every_solver_cites_its_source_and_has_a_name_on_the_command_line(one):
    assert reference(one)
    assert configured()[one.__name__]


def test_citations_are_found_as_docstrings_write_them():
    for text, expected in {
        "A rule (Dormand & Prince (1980)).": "Dormand & Prince 1980",
        "Lu et al. 2022, after Euler 1768.": "Lu et al. 2022",
        "By Song, Meng &\n    Ermon 2021, eq. 12.": "Song, Meng & Ermon 2021",
        "After all of 2020 steps.": "",
    }.items():
        assert reference(type("Some", (solvers.DDIM,), {"__doc__": text})) == expected
