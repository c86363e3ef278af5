"""The table of all solvers, from what their classes declare."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence

from omegaconf import OmegaConf

import solvers
from odediff.config import conf_folder
from solvers import Solver

HEADER = ("class", "solver=", "order", "own start", "calls per step", "deterministic", "invertible", "reference")
NAME = r"[A-Z][\w'-]+"
CITATION = re.compile(rf"({NAME}(?:, {NAME})*(?:,? & {NAME}| et al\.)?),? \(?((?:1[6-9]|20)\d\d)\b")
"""Matches authors and a year, as docstrings cite a paper: "Song, Meng & Ermon 2021" or "Dormand & Prince (1980)"."""
MANY = 3
"""The largest count of numbers that a cell lists one by one."""
LONG = 1000
"""The number of steps of a long grid."""


def solver_classes() -> list[type[Solver]]:
    """The solvers of ``solvers.__all__`` by name, without base classes."""
    exported = (getattr(solvers, name) for name in solvers.__all__)
    classes = (one for one in exported if inspect.isclass(one) and issubclass(one, Solver))
    usable = (one for one in classes if not inspect.isabstract(one) and hasattr(one, "order"))
    return sorted(usable, key=lambda one: one.__name__.lower())


def solver_table() -> str:
    """A Markdown table with a row for each class; a cell lists what its `Solver.variants` declare.

    "weak" marks an order at which moments converge, "adaptive" a method that chooses its own steps, "bounded" one whose
    error has no order. ``calls per step`` is a bound. "exactly" invertible means an inverse of its own, algebraic or
    solved for; "by flipping" means the solve on the flipped grid, up to the solver's error. ``solver=`` are the names
    on the command line: the configurations of that class.
    """
    names = configured()
    rows = [HEADER, *(_row(one, names.get(one.__name__, ())) for one in solver_classes())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join((lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]))


def configured() -> dict[str, list[str]]:
    """For each class, by its name, the names of its configurations in ``conf/solver``."""
    names: dict[str, list[str]] = {}
    for file in sorted((conf_folder() / "solver").glob("*.yaml")):
        names.setdefault(OmegaConf.load(file)._target_.rpartition(".")[2], []).append(file.stem)
    return names


def reference(one: type[Solver]) -> str:
    """The first paper that the docstring of ``one`` cites, as authors and year; empty if it cites none."""
    found = CITATION.search(" ".join((one.__doc__ or "").split()))
    return " ".join(found.groups()) if found else ""


def _row(one: type[Solver], names: Sequence[str]) -> tuple[str, ...]:
    variants = one.variants()
    return (
        one.__name__,
        ", ".join(names),
        _cell(_order(v, v.order) for v in variants),
        _cell(_order(v, v.own_start_order) for v in variants),
        _cell(_calls(v) for v in variants),
        _cell("yes" if v.deterministic else "no" for v in variants),
        _cell(_inverse(v) for v in variants),
        reference(one),
    )


def _order(solver: Solver, order: int) -> str:
    if solver.law == "bounded":
        return "bounded"
    return f"weak {order}" if solver.law == "weak" else str(order)


def _calls(solver: Solver) -> str:
    try:
        # Steps at the ends of the grid may cost less or more; those in the middle of a long one do not.
        return str(solver.calls(LONG + 1) - solver.calls(LONG))
    except ValueError:
        return "adaptive"


def _inverse(solver: Solver) -> str:
    if hasattr(solver, "unstep"):
        return "exactly"
    return "by flipping" if solver.deterministic else "no"


def _cell(values: Iterable[str]) -> str:
    """The distinct values in their order; more than `MANY` numbers are given as a range."""
    distinct = list(dict.fromkeys(values))
    numbers = sorted(int(value) for value in distinct if value.isdigit())
    words = [value for value in distinct if not value.isdigit()]
    return ", ".join((*_numbers(numbers), *words))


def _numbers(numbers: Sequence[int]) -> list[str]:
    return [f"{numbers[0]} to {numbers[-1]}"] if len(numbers) > MANY else [str(n) for n in numbers]
