"""A cell of the study: one method on one problem with one number of calls and one seed; and what is measured in it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.methods import Method, Ours, Outcome
from benchmarks.problems import NetworkProblem
from benchmarks.store import Entry, Store, key_of
from odediff.accuracy import accuracy, sample_errors
from odediff.inversion import decode, encode
from odediff.metrics import energy_distance, round_trip_error
from odediff.problems import Problem
from odediff.quality import sliced_wasserstein
from odediff.version import __version__
from solvers import SolveError

DATA = 1024
"""Samples of the data that distances are taken to."""
PICTURES = 10
"""Images that a cell keeps for the report."""
ROUND_TRIPS = 16
PACKAGES = ("torch", "numpy", "scipy", "torchdiffeq", "diffusers")


@dataclass(frozen=True, eq=False)
class Cell:
    """One row of the table."""

    problem: Problem
    method: Method
    seed: int
    samples: int
    nfe: int | None = None
    tolerance: float | None = None

    @cached_property
    def key(self) -> str:
        """The hash of everything that the result depends on."""
        return key_of(
            {
                "problem": self.problem.name,
                "weights": self.problem.fingerprint(),
                "version": __version__,
                "method": self.method.settings(),
                "seed": self.seed,
                "samples": self.samples,
                "nfe": self.nfe,
                "tolerance": self.tolerance,
                "kind": "flow",
            }
        )

    def description(self) -> dict[str, Any]:
        """The columns that are known before anything is computed."""
        problem, method = self.problem, self.method
        model = problem.model(1)
        return {
            "problem": problem.name,
            "purpose": problem.purpose,
            "family": problem.family,
            "dimension": math.prod(problem.shape),
            "network": problem.fingerprint(),
            "schedule": str(model.path),
            "threshold": None if model.threshold is None else str(model.threshold),
            "guidance": float(model.guidance),
            "dtype": str(problem.dtype).removeprefix("torch."),
            "source": method.source,
            "method": method.name,
            "settings": str(dict(method.settings())),
            "grid": method.grid,
            "closing": method.closing,
            "deterministic": method.deterministic,
            "nfe": self.nfe,
            "tolerance": self.tolerance,
            "seed": self.seed,
            "samples": self.samples,
            "version_odediff": __version__,
            **{f"version_{name}": installed(name) for name in PACKAGES},
        }


def measure(cell: Cell, references: References) -> Entry:
    """Run the method and compare its end with the exact flow and with data."""
    problem = cell.problem
    noise = problem.noise(cell.seed, cell.samples)
    began = time.perf_counter()
    try:
        outcome = cell.method.run(problem, noise, cell.seed, cell.nfe, cell.tolerance)
    except (ValueError, TypeError, AssertionError, IndexError, RuntimeError) as error:
        # A method that refuses or breaks has a row that says so, and the study goes on.
        refused = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Entry({**cell.description(), "status": refused}, {})
    seconds = time.perf_counter() - began
    record = {
        **cell.description(),
        "status": "ok",
        "seconds": seconds,
        "calls": outcome.calls,
        "calls_max": outcome.calls_max,
        "network_evaluations": outcome.network_evaluations,
        "steps": outcome.steps,
    }
    arrays: dict[str, np.ndarray] = {}
    if cell.method.deterministic:
        reference = references.get(problem, cell.seed, cell.samples)
        errors = sample_errors(outcome.x, reference.x, problem.deviation)
        summary = accuracy(errors, problem.modes(_finite(outcome.x)), reference.modes)
        record |= {f"error_{name}": value for name, value in summary._asdict().items() if name != "switched"}
        record |= {"switched": summary.switched, "reference_error": reference.error / problem.deviation}
        arrays["errors"] = errors.numpy()
    record |= distances(problem, outcome)
    record["round_trip"] = round_trip(cell)
    if len(problem.shape) == 3:
        pixels = (_finite(outcome.x[:PICTURES]).float().clamp(-1, 1) + 1) * 127.5
        arrays["images"] = pixels.round().to(torch.uint8).flatten(1).numpy()
    return Entry(record, arrays)


def distances(problem: Problem, outcome: Outcome) -> dict[str, float | None]:
    """Sliced Wasserstein and energy distance to samples of the data; None where a sample failed."""
    if isinstance(problem, NetworkProblem) or not bool(torch.isfinite(outcome.x).all()):
        return {"sliced_wasserstein": None, "energy_distance": None}
    x, data = outcome.x.flatten(1), problem.data(min(DATA, problem.most_data)).flatten(1)
    return {"sliced_wasserstein": sliced_wasserstein(x, data), "energy_distance": energy_distance(x, data)}


def round_trip(cell: Cell) -> float | None:
    """The rms error of data that the method encoded and decoded, in the data's deviation; first seed only."""
    method = cell.method
    if not isinstance(method, Ours) or not method.deterministic or cell.nfe is None or cell.seed != 0:
        return None
    data = cell.problem.data(ROUND_TRIPS).to(cell.problem.dtype)
    model = cell.problem.model(ROUND_TRIPS)
    try:
        code = encode(model, data, solver=method.solver, grid=method.place, nfe=cell.nfe)
        again = decode(model, code)
        return float(round_trip_error(data, again).square().mean().sqrt()) / cell.problem.deviation
    except (ValueError, SolveError):
        return None


class Flow:
    """The exact end of a problem's noise: states, their modes, and the rms error of the states."""

    def __init__(self, x: Tensor, modes: Tensor, error: float) -> None:
        self.x, self.modes, self.error = x, modes, error


class References:
    """The exact flows, computed once and kept beside the cells."""

    def __init__(self, folder: Store) -> None:
        self.store = folder
        self._known: dict[str, Flow] = {}

    def get(self, problem: Problem, seed: int, samples: int) -> Flow:
        """The exact end of a seed's noise."""
        key = key_of(
            {
                "problem": problem.name,
                "weights": problem.fingerprint(),
                "version": __version__,
                "flow": f"{problem.flow.solver} {problem.flow.grid.__name__} {problem.flow.steps}",
                "seed": seed,
                "samples": samples,
            }
        )
        if key not in self._known:
            entry = self.store.load(key)
            if entry is None:
                x, error = problem.reference(problem.noise(seed, samples))
                arrays = {"x": x.numpy(), "modes": problem.modes(x).numpy()}
                entry = Entry({"problem": problem.name, "error": error}, arrays)
                self.store.save(key, entry)
            x, modes = (torch.from_numpy(entry.arrays[name]) for name in ("x", "modes"))
            self._known = {key: Flow(x, modes, entry.record["error"])}
        return self._known[key]


def _finite(x: Tensor) -> Tensor:
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)


def installed(package: str) -> str | None:
    """A package's version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
