"""Why the default hands over to Adams' formulas between close nodes: ``python -m benchmarks.close_nodes``.

On the problems that it was chosen on, the default is compared with other orders, other variables, and Adams' formulas
on all levels; towards the data, and towards the noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

import odediff
from benchmarks.problems import problem
from odediff.accuracy import sample_errors
from odediff.app import plain_failures
from odediff.defaults import Grid
from odediff.problems import Problem
from odediff.table import text_table
from solvers import RK4, ExponentialAdams, GPMultistep, Rotation, Solver, UniPC

PROBLEMS: Mapping[str, int] = {"mixture_2": 256, "mixture_16": 256, "mixture_64": 256, "network_1": 30}
"""The problems and their numbers of samples."""
INVERTED = 10
"""The most samples that are carried to the noise."""
SAMPLING, INVERSION = (20, 22, 25, 30, 50), (10, 15, 20, 30, 50)
EXACT_CALLS = 480
"""Calls of the reference from the data to the noise, a fourth-order Runge-Kutta method on nodes uniform in log-SNR."""
LINE = Rotation(0.4)
METHODS: Mapping[str, tuple[Solver, Grid]] = {
    "the default": (GPMultistep(), odediff.grid.plateau),
    **{
        f"Adams of order {adams.order} in {adams.variable}": (adams, odediff.grid.plateau)
        for adams in (
            ExponentialAdams(3, LINE, "asinh", corrector=True),
            ExponentialAdams(4, LINE, "asinh", corrector=True),
            ExponentialAdams(5, LINE, "asinh", corrector=True),
            ExponentialAdams(5, LINE, "q", corrector=True),
            ExponentialAdams(4, LINE, "log_snr", corrector=True),
        )
    },
    "UniPC(3), Karras": (UniPC(3), odediff.grid.karras),
}


def main() -> None:
    """Print the tables, or one clear line."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with plain_failures():
        torch.set_num_threads(2)
        print("from noise to data: median (90 % quantile) of the error over the data's deviation")
        print(_table(SAMPLING, _sampling))
        print("\nfrom data to noise: the same, over the noise's deviation")
        print(_table(INVERSION, _inversion))


Errors = Callable[[Solver, Grid, int], Tensor]


def _table(calls: tuple[int, ...], start: Callable[[Problem, int], Errors]) -> str:
    rows = []
    for name, count in PROBLEMS.items():
        errors = start(problem(name, "data"), count)
        for method, (solver, grid) in METHODS.items():
            found = (errors(solver, grid, nfe) for nfe in calls)
            rows.append((name, method, *(f"{e.median():.1e} ({e.quantile(0.9):.1e})" for e in found)))
    return text_table(("problem", "method", *map(str, calls)), rows)


def _sampling(case: Problem, count: int) -> Errors:
    noise = case.noise(0, range(count))
    exact = case.reference(noise).x

    def errors(solver: Solver, grid: Grid, nfe: int) -> Tensor:
        return sample_errors(case.solve(solver, 0, range(count), grid=grid, nfe=nfe).x, exact, case.deviation)

    return errors


def _inversion(case: Problem, count: int) -> Errors:
    rows = range(min(count, INVERTED))
    model = case.model(rows)
    data = case.reference(case.noise(0, rows)).x.to(case.dtype)

    def code(solver: Solver, grid: Grid, nfe: int) -> Tensor:
        # All start from the path's end, as an inversion does.
        with torch.no_grad():
            return odediff.encode(model, data, solver=solver, grid=partial(grid, end=case.path.end), nfe=nfe).x

    exact = code(RK4(Rotation()), odediff.grid.log_snr, EXACT_CALLS)

    def errors(solver: Solver, grid: Grid, nfe: int) -> Tensor:
        return sample_errors(code(solver, grid, nfe), exact, float(exact.double().std()))

    return errors


if __name__ == "__main__":
    main()
