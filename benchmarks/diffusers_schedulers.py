"""Diffusers' schedulers in all their grids, on the same network, from the same noise."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, Literal

import torch

from benchmarks.methods import Method, Outcome
from benchmarks.versions import installed
from odediff.problem import probability_flow
from odediff.problems import Problem
from solvers.counting import counted

ENTRIES = 1000
"""Entries of the table, which is the same for our solvers and the schedulers: beta linear from 1e-4 to 0.02."""
TABLE = {"num_train_timesteps": ENTRIES, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}

GRIDS: dict[str, dict[str, Any]] = {
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
}
"""Name -> the options that choose it; a scheduler has the grids whose options its constructor accepts."""
GRID_OPTIONS = {name for options in GRIDS.values() for name in options}

SCHEDULERS: dict[str, dict[str, dict[str, Any]]] = {
    "DDIM": {"": {}},
    "DDPM": {"small": {"variance_type": "fixed_small"}, "large": {"variance_type": "fixed_large"}},
    "EulerDiscrete": {"": {}},
    "EulerAncestralDiscrete": {"": {}},
    "HeunDiscrete": {"": {}},
    "KDPM2Discrete": {"": {}},
    "KDPM2AncestralDiscrete": {"": {}},
    "LMSDiscrete": {"": {}},
    "PNDM": {"prk": {"set_alpha_to_one": True}, "plms": {"skip_prk_steps": True, "set_alpha_to_one": True}},
    "DPMSolverMultistep": {
        "++2M midpoint": {},
        "++2M heun": {"solver_type": "heun"},
        "++2M euler at final": {"euler_at_final": True},
        "++3M": {"solver_order": 3},
        "2M": {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        "3M": {"algorithm_type": "dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"},
        "sde ++2M": {"algorithm_type": "sde-dpmsolver++"},
    },
    "DPMSolverSinglestep": {
        "++2S": {"lower_order_final": True},
        "++3S": {"lower_order_final": True, "solver_order": 3},
        "2S": {"lower_order_final": True, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        "3S": {
            "lower_order_final": True,
            "algorithm_type": "dpmsolver",
            "solver_order": 3,
            "final_sigmas_type": "sigma_min",
        },
    },
    "UniPCMultistep": {
        "2 bh2": {},
        "2 bh1": {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        "3 bh2": {"solver_order": 3},
        "2 bh2 eps": {"predict_x0": False, "final_sigmas_type": "sigma_min"},
        "3 bh2 eps": {"solver_order": 3, "predict_x0": False, "final_sigmas_type": "sigma_min"},
    },
    "DEISMultistep": {"2": {}, "3": {"solver_order": 3}},
    "SASolver": {"": {}},
}
"""Class without its ending -> name of a setting -> its options.

IPNDM is missing because it accepts no schedule but its own. The settings that end at sigma_min would be infinite at
sigma = 0.
"""

STOCHASTIC = {"DDPM", "EulerAncestralDiscrete", "KDPM2AncestralDiscrete", "SASolver"}
NO_CLIPPING = {"clip_sample": False}
"""Thresholding is a setting of the model, and is off for every method."""


@dataclass(frozen=True, eq=False)
class Scheduler(Method):
    """One scheduler of diffusers with its options.

    The network is given what diffusers gives it: the scheduler's timestep n - 1, fractions included, and the scaled
    state. ``nfe`` calls are never exceeded: the number of steps is the largest with at most ``nfe`` timesteps, and the
    wrapper refuses any further call.
    """

    scheduler: str
    setting: str
    grid: str
    options: Mapping[str, Any] = field(default_factory=dict)
    source: Literal["diffusers"] = "diffusers"
    closing: str = "its own"

    @property
    def name(self) -> str:  # type: ignore[override]
        """The scheduler and its setting."""
        return f"{self.scheduler} {self.setting}".strip()

    @property
    def algorithm(self) -> str:  # type: ignore[override]
        """The scheduler's class."""
        return self.scheduler

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        """Whether the method draws no noise."""
        return self.scheduler not in STOCHASTIC and not self.options.get("algorithm_type", "").startswith("sde")

    def settings(self) -> Mapping[str, Any]:
        return {"scheduler": self.scheduler, "options": dict(self.options), "diffusers": installed("diffusers")}

    def affordable(self, problem: Problem, nfe: int) -> bool:
        return self._steps(nfe) is not None

    def run(self, problem: Problem, rows: range, seed: int, nfe: int | None, tolerance: float | None) -> Outcome:
        steps = None if nfe is None else self._steps(nfe)
        if steps is None:
            raise ValueError(f"nfe={nfe} is too small for one step of diffusers' {self.name}")
        model = problem.model(rows)
        ode: Any = counted(probability_flow(model), len(rows), nfe)
        generator = torch.Generator().manual_seed(2**32 * seed + rows.start)
        with torch.no_grad(), _quiet():
            # Some rebuild their tables, twice, which takes tenths of a second; a copy takes hardly any time.
            scheduler = deepcopy(_prepared(self.scheduler, tuple(self.options.items()), steps))
            noises = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
            x = problem.noise(seed, rows) * float(scheduler.init_noise_sigma)
            for t in scheduler.timesteps:
                seen = scheduler.scale_model_input(x, t)
                eps = ode.predict(ode.node((float(t) + 1) / ENTRIES), seen).eps
                x = scheduler.step(eps, t, x, **noises).prev_sample
        calls = ode.ledger.nfe
        return Outcome(x, float(calls), calls, calls * model.passes, steps)

    def _steps(self, nfe: int) -> int | None:
        """The most steps whose calls do not exceed ``nfe``."""
        options = tuple((name, value) for name, value in self.options.items() if name not in GRID_OPTIONS)
        steps = nfe
        while steps > 0 and (calls := _calls(self.scheduler, options, steps)) > nfe:
            # Another step costs at most two calls, so half of the excess, in steps, never goes too far.
            steps -= max(1, int(calls - nfe) // 2) if calls < math.inf else 1
        return steps or None


def schedulers(chosen: Sequence[str], grids: Sequence[str]) -> list[Scheduler]:
    """Every setting of the chosen schedulers on every chosen grid that they support."""
    return [
        Scheduler(scheduler, setting, grid, {**_known(scheduler, NO_CLIPPING), **options, **GRIDS[grid]})
        for scheduler in chosen
        for setting, options in SCHEDULERS[scheduler].items()
        for grid in grids
        if _known(scheduler, GRIDS[grid])
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the deprecation warnings that diffusers issues with every object."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _known(scheduler: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a scheduler's constructor accepts."""
    return {name: value for name, value in options.items() if name in _parameters(scheduler)}


@cache
def _parameters(scheduler: str) -> frozenset[str]:
    return frozenset(inspect.signature(_class(scheduler).__init__).parameters)


@cache
def _calls(scheduler: str, options: tuple[tuple[str, Any], ...], steps: int) -> float:
    """The calls that so many steps take, which are the same on every grid."""
    try:
        return len(_prepared(scheduler, options, steps).timesteps)
    except (ValueError, IndexError):
        return math.inf


@lru_cache(maxsize=2048)
def _prepared(scheduler: str, options: tuple[tuple[str, Any], ...], steps: int) -> Any:
    """The scheduler before its first step."""
    with _quiet():
        made = _class(scheduler)(**TABLE, **dict(options))
        made.set_timesteps(steps)
    return made


def _class(scheduler: str) -> Any:
    import diffusers

    return getattr(diffusers, f"{scheduler}Scheduler")
