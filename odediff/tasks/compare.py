"""``task=compare``: rank a solver against all others, on problems with known answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from odediff.accuracy import sample_errors
from odediff.config import configured_solvers
from odediff.pictures import curves
from odediff.problems import STANDARD, ExactProblem, standard
from odediff.ranking import lower_median, rank
from odediff.run import Run, build, refuse_unused
from odediff.table import text_table
from solvers import Solver

TOLERANCES = (3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3)
"""The tolerances for methods that choose their own steps; the tightest one within a ceiling on calls counts."""
DRAWN = 8
"""The number of solvers in the picture."""


class Result(NamedTuple):
    """The errors of one solver's samples, and its mean calls per sample."""

    errors: np.ndarray
    calls: float


def run(config: DictConfig, problems: Sequence[str] | None, nfe: Sequence[int], samples: int) -> None:
    """Rank the configured solver; write compare.png and run.json, and print the table."""
    refuse_unused(
        ("steps", "nfe", "rtol", "samples"),
        "solvers are compared at task.nfe=[6,10,...] calls, on task.samples=N samples",
    )
    refuse_unused(("model", "schedule", "remap"), "the problems bring a field and a schedule")
    refuse_unused(("dtype", "device"), "the problems are solved in float64 on the CPU")
    run = build(config)
    if not run.solver.deterministic:
        raise ValueError(
            f"solver={run.solver} is stochastic and does not follow the flow that the others are measured against; "
            "in a clone of the repository, python -m benchmarks.nfe_quality measures its distance to the data"
        )
    if samples < 2 or not nfe or min(nfe) < 1:
        raise ValueError(f"task.samples={samples} task.nfe={list(nfe)}: give at least 2 samples and a number of calls")
    chosen = [standard(name) for name in problems or [n for n in STANDARD if standard(n).purpose == "choosing"]]
    mine, field = _field(run)
    results: dict[tuple[str, int], dict[str, Result]] = {}
    jobs = [(problem, name) for problem in chosen for name in field]
    with one_thread():
        noise = {problem.name: problem.noise(config.seed, range(samples)) for problem in chosen}
        references = {problem.name: problem.reference(noise[problem.name]).x for problem in chosen}
        for problem, name in tqdm(jobs, desc="compare", unit="solver", disable=not run.progress):
            exact = references[problem.name]
            try:
                ladder = _ladder(run, problem, field[name], nfe, exact)
            except ValueError:
                # Not every other solver can close in the way that was asked for.
                if name == mine or run.closing == "auto":
                    raise
                continue
            for ceiling, result in ladder.items():
                results.setdefault((problem.name, ceiling), {})[name] = result
    if not any(mine in found for found in results.values()):
        raise ValueError(f"task.nfe={list(nfe)} is too small for one step of {run.solver}; give more calls")
    _report(run, mine, nfe, results)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread: with tensors this small, more threads gain nothing and wait while the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _field(run: Run) -> tuple[str, dict[str, Solver]]:
    """The name of the user's solver, and all solvers that take part, equal ones once, under their first name."""
    others: dict[str, Solver] = {}
    for name, solver in configured_solvers().items():
        # Some solvers are configured under two names, such as dpm_solver_2 and kdpm2.
        if solver.deterministic and solver not in others.values():
            others[name] = solver
    for name, solver in others.items():
        if solver == run.solver:
            return name, others
    name = type(run.solver).__name__
    return (name if name not in others else f"{name} (yours)"), {**others, name: run.solver}


def _ladder(run: Run, problem: ExactProblem, solver: Solver, nfe: Sequence[int], exact: Any) -> dict[int, Result]:
    """The result at each ceiling that is large enough for a solve."""
    rows = range(len(exact))
    adaptive = solver.law == "tolerance"

    def result(**how: Any) -> Result:
        solution = problem.solve(solver, run.config.seed, rows, grid=run.grid, closing=run.closing, **how)
        errors = sample_errors(solution.x, exact, problem.deviation).numpy()
        return Result(errors, float(solution.stats.evaluations.double().mean()))

    if adaptive:
        # By default a library's method solves sample by sample, which takes minutes instead of seconds.
        solver = replace(solver, batched=True) if hasattr(solver, "batched") else solver  # type: ignore[call-arg]
        tried: list[Result] = []
        for rtol in TOLERANCES:
            tried.append(result(rtol=rtol))
            # A tighter tolerance takes even more calls.
            if tried[-1].calls > max(nfe):
                break
        within = {n: [r for r in tried if r.calls <= n] for n in nfe}
        return {n: found[-1] for n, found in within.items() if found}
    ladder = {}
    for n in nfe:
        try:
            problem.times(solver, run.grid, n, run.closing)
        except ValueError:
            continue
        ladder[n] = result(nfe=n)
    return ladder


def _report(run: Run, mine: str, nfe: Sequence[int], results: dict[tuple[str, int], dict[str, Result]]) -> None:
    """Average the ranks, with ties, over problems and ceilings, and the errors geometrically over problems."""
    places: dict[str, list[int]] = {}
    for found in results.values():
        for place in rank({name: result.errors for name, result in found.items()}):
            places.setdefault(place.name, []).append(place.rank)
    rows: list[tuple[str | float | None, ...]] = []
    series: dict[str, list[tuple[float, float]]] = {}
    for name in sorted(places, key=lambda name: (len(places[name]) < len(results), fmean(places[name]))):
        errors: list[float | None] = []
        series[name] = []
        for ceiling in nfe:
            here = [at[name] for (_, n), at in results.items() if n == ceiling and name in at]
            if not here:
                errors.append(None)
                continue
            error = math.exp(fmean(math.log(_median(result.errors)) for result in here))
            errors.append(error)
            series[name].append((fmean(result.calls for result in here), error))
        rows.append((name, fmean(places[name]), *errors))
    best = [name for name in series if name != mine][: DRAWN - 1]
    curves(
        run.folder / "compare.png",
        {name: series[name] for name in (mine, *best)},
        "calls (NFE)",
        "median error / data deviation",
        f"{mine} and the best others on exact problems",
    )
    header = ("solver", "mean rank", *(f"error at {n}" for n in nfe))
    run.record({"yours": mine, "table": [dict(zip(header, row, strict=True)) for row in rows]})
    print(text_table(header, [(f"* {name}" if name == mine else f"  {name}", *cells) for name, *cells in rows]))
    print("* yours; ranks are means over problems and numbers of calls; equal solvers share the first of their names")
    print(f"picture in {run.folder}")


def _median(errors: np.ndarray) -> float:
    """The lower median, kept above zero for its logarithm."""
    return max(float(lower_median(errors.copy())), 1e-300)
