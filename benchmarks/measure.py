"""The measurement of a cell."""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import torch
from torch import Tensor

from benchmarks import images
from benchmarks.cells import Cell
from benchmarks.methods import Method, Ours, Outcome
from benchmarks.problems import NetworkProblem
from benchmarks.references import References
from benchmarks.store import Entry
from odediff import grid
from odediff.accuracy import accuracy, sample_errors
from odediff.inversion import decode, encode
from odediff.metrics import energy_distance, mean_distance, round_trip_error
from odediff.problems import Problem
from odediff.quality import SlicedWasserstein
from solvers import DDIM, SolveError

DATA = 1024
"""Samples of the data to which distances are measured; as many further ones give the floor."""
PICTURES = 10
"""Images that a cell keeps for the report."""
ROUND_TRIPS = 16
BATCH, NETWORK_BATCH = 1024, 32
"""Samples that are solved together; a network's activations for more than a few dozen exceed a core's cache."""


def measure(cell: Cell, references: References, root: str) -> Entry:
    """Run the method and compare its end states with the exact flow and with data."""
    _warm_up(cell.problem)
    began = time.perf_counter()
    try:
        outcome = _run(cell)
    except Exception as error:  # whatever a method raises is recorded in its row, and the study continues
        refused = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Entry({**cell.description(), "status": refused}, {})
    record = {
        **cell.description(),
        "status": "ok",
        "seconds": time.perf_counter() - began,
        **{name: value for name, value in outcome._asdict().items() if name != "x"},
    }
    arrays: dict[str, np.ndarray] = {}
    whole = bool(torch.isfinite(outcome.x).all())
    if cell.kind == "images":
        assert isinstance(cell.problem, NetworkProblem)
        if whole:
            found, arrays["frechet_resampled"] = images.many(cell.problem, outcome.x, cell.rows, root)
            record |= found
    else:
        if cell.method.deterministic:
            found, arrays["errors"] = _errors(cell, outcome.x, references)
            record |= found
        if isinstance(cell.problem, NetworkProblem):
            record |= images.few(cell.problem, outcome.x, cell.rows) if whole else {}
        else:
            record |= distances(cell.problem, outcome.x) if whole else {}
        record["round_trip"] = round_trip(cell.problem, cell.method, cell.nfe) if cell.seed == 0 else None
    if len(cell.problem.shape) == 3:
        pixels = (_finite(outcome.x[:PICTURES]).float().clamp(-1, 1) + 1) * 127.5
        arrays["images"] = pixels.round().to(torch.uint8).flatten().numpy()
    return Entry(record, arrays)


@cache
def _warm_up(problem: Problem) -> None:
    """Spend the time that a process spends once on a problem, so that it counts for no method."""
    problem.solve(DDIM(), 0, range(2), grid=grid.karras, nfe=1)


def _run(cell: Cell) -> Outcome:
    """Run in batches, which change no sample: `solvers.NoiseStream` draws by the number of the sample."""
    size = NETWORK_BATCH if isinstance(cell.problem, NetworkProblem) else BATCH
    parts = [
        cell.method.run(cell.problem, rows, cell.seed, cell.nfe, cell.tolerance)
        for rows in (cell.rows[i : i + size] for i in range(0, cell.samples, size))
    ]
    calls = sum(part.calls * len(part.x) for part in parts) / cell.samples
    most = max(parts, key=lambda part: part.calls_max)
    return most._replace(x=torch.cat([part.x for part in parts]), calls=calls)


def _errors(cell: Cell, x: Tensor, references: References) -> tuple[dict[str, float], np.ndarray]:
    problem = cell.problem
    reference = references.get(problem, cell.seed, cell.rows)
    errors = sample_errors(x, reference.x, problem.deviation)
    summary = accuracy(errors, problem.modes(_finite(x)), reference.modes)
    return {
        "error_rms": summary.rms,
        "error_median": summary.median,
        "error_p90": summary.p90,
        "switched": summary.switched,
        "reference_error": reference.error / problem.deviation,
    }, errors.numpy()


def distances(problem: Problem, x: Tensor) -> dict[str, float]:
    """Sliced Wasserstein and energy distance to samples of the data, and their floors: those of other data."""
    data, sliced_wasserstein, within, floors = _data(problem, len(x))
    return {
        "sliced_wasserstein": sliced_wasserstein(x.flatten(1)),
        "energy_distance": energy_distance(x.flatten(1), data, within),
        **floors,
    }


@cache
def _data(problem: Problem, count: int) -> tuple[Tensor, SlicedWasserstein, float, dict[str, float]]:
    """Samples of the data, the distance to them, the mean distance between them, and the distances of other data."""
    known = min(DATA + count, problem.most_data)
    points = problem.data(known).flatten(1)
    data, others = points[: min(DATA, known // 2)], points[min(DATA, known // 2) :][:count]
    sliced_wasserstein, within = SlicedWasserstein(data), mean_distance(data, data)
    return (
        data,
        sliced_wasserstein,
        within,
        {
            "sliced_wasserstein_floor": sliced_wasserstein(others),
            "energy_distance_floor": energy_distance(others, data, within),
        },
    )


def round_trip(problem: Problem, method: Method, nfe: int | None) -> float | None:
    """The rms round-trip error of data in ``nfe`` calls each way, over its deviation; None without an inverse."""
    if not isinstance(method, Ours) or not method.deterministic or nfe is None:
        return None
    data = problem.data(ROUND_TRIPS).to(problem.dtype)
    model = problem.model(range(ROUND_TRIPS))
    try:
        again = decode(model, encode(model, data, solver=method.solver, grid=method.place, nfe=nfe))
    except (ValueError, SolveError):
        return None
    return float(round_trip_error(data, again).square().mean().sqrt()) / problem.deviation


def _finite(x: Tensor) -> Tensor:
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
