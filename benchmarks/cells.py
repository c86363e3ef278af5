"""A cell of the study: one method on one problem with one number of calls and one seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from benchmarks.methods import Method
from benchmarks.store import key_of
from benchmarks.versions import PACKAGES, installed
from odediff.problems import Problem
from odediff.version import __version__


@dataclass(frozen=True, eq=False)
class Cell:
    """One row of the table.

    ``kind`` is "flow", errors of a few samples against the exact flow, or "images", the quality of many images.
    """

    problem: Problem
    method: Method
    seed: int
    samples: int
    nfe: int | None = None
    tolerance: float | None = None
    kind: Literal["flow", "images"] = "flow"

    @property
    def rows(self) -> range:
        """The numbers of the samples."""
        return range(self.samples)

    @cached_property
    def key(self) -> str:
        """The hash of everything that the result depends on."""
        return key_of(
            {
                "problem": self.problem.name,
                "weights": self.problem.fingerprint,
                "version": __version__,
                "method": self.method.settings(),
                "seed": self.seed,
                "samples": self.samples,
                "nfe": self.nfe,
                "tolerance": self.tolerance,
                "kind": self.kind,
            }
        )

    def description(self) -> dict[str, Any]:
        """The columns that are known before anything is computed."""
        problem, method = self.problem, self.method
        model = problem.model(range(1))
        return {
            "kind": self.kind,
            "problem": problem.name,
            "purpose": problem.purpose,
            "family": problem.family,
            "dimension": math.prod(problem.shape),
            "network": problem.fingerprint,
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
