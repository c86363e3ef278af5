"""k-diffusion's samplers on the same network, from the same noise, where the package is installed.

It depends on torchvision, which brings its own torch, so no extra of this package requires it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.methods import ADAPTIVE_GRID, Method, Outcome
from benchmarks.versions import installed
from odediff.problem import probability_flow
from odediff.problems import Problem
from odediff.schedule import Schedule
from solvers import combine
from solvers.counting import counted

GRIDS = ("linspace", "karras", "exponential")
"""The grids; ``linspace``, uniform in the table's index, is what its ``get_sigmas`` gives."""

CALLS: Mapping[str, int] = {
    "euler": 1,
    "heun": 2,
    "dpm_2": 2,
    "lms": 1,
    "dpmpp_2m": 1,
    "euler_ancestral": 1,
    "dpm_2_ancestral": 2,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_sde": 2,
    "dpmpp_2m_sde": 1,
    "dpmpp_3m_sde": 1,
}
"""Sampler without its ``sample_`` -> calls per step; the last step, to sigma = 0, takes one."""
OWN_GRID: Mapping[str, str] = {"dpm_fast": "exponential", "dpm_adaptive": ADAPTIVE_GRID}
"""Samplers that place their own steps, end at the table's first entry and do not denoise -> their grids' names."""
SAMPLERS = (*CALLS, *OWN_GRID)


@dataclass(frozen=True, eq=False)
class Sampler(Method):
    """One sampler of k-diffusion, whose state is y = x/alpha and whose sigma is s = sigma/alpha.

    It is given the network as a denoiser ``D(y, s) = x0``, and never makes more than ``nfe`` calls.
    """

    name: str
    grid: str
    source: Literal["k-diffusion"] = "k-diffusion"
    closing: str = "its own"

    @property
    def algorithm(self) -> str:  # type: ignore[override]
        """The name of the function."""
        return self.name

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        """Whether the method draws no noise."""
        return not self.name.endswith(("ancestral", "sde"))

    @property
    def adaptive(self) -> bool:
        return self.name == "dpm_adaptive"

    def settings(self) -> Mapping[str, Any]:
        return {"sampler": self.name, "grid": self.grid, "k-diffusion": installed("k-diffusion")}

    def affordable(self, problem: Problem, nfe: int) -> bool:
        # Some of its samplers fail on a single step.
        return nfe >= 2

    def run(self, problem: Problem, rows: range, seed: int, nfe: int | None, tolerance: float | None) -> Outcome:
        from k_diffusion import sampling

        model = problem.model(rows)
        path = model.path
        ode: Any = counted(probability_flow(model), len(rows), nfe)
        start = path.node(path.start)
        ends = float(path.node(path.end).s), float(start.s)

        def denoise(y: Tensor, sigma: Tensor) -> Tensor:
            # Its grids are float32, so their ends may be rounded to outside the table.
            node = ode.node_at(-math.log(np.clip(sigma[0].item(), *ends)))
            return ode.predict(node, combine((node.alpha, y))).x0

        y = combine((1 / start.alpha, problem.noise(seed, rows)))
        sample = partial(getattr(sampling, f"sample_{self.name}"), denoise, y, disable=True)
        if not self.deterministic:
            number = 2**32 * seed + rows.start
            if self.name.endswith("sde"):
                sample.keywords["noise_sampler"] = sampling.BrownianTreeNoiseSampler(y, *ends, seed=number)
            else:
                generator = torch.Generator().manual_seed(number)
                sample.keywords["noise_sampler"] = lambda *_: torch.randn(y.shape, generator=generator, dtype=y.dtype)
        steps = 0
        with torch.no_grad():
            if nfe is None:
                found = sample(*ends, rtol=tolerance, atol=tolerance)
            elif self.name == "dpm_fast":
                found = sample(*ends, nfe)
            else:
                steps = nfe if CALLS[self.name] == 1 else (nfe + 1) // 2
                found = sample(self._sigmas(sampling, path, ends, steps).to(y))
        calls = ode.ledger.nfe
        return Outcome(found, float(calls), calls, calls * model.passes, steps or calls)

    def _sigmas(self, sampling: Any, path: Schedule, ends: tuple[float, float], steps: int) -> Tensor:
        if self.grid == "linspace":
            times = torch.linspace(path.start, path.end, steps, dtype=torch.float64)
            return torch.tensor([*(path.node(float(t)).s for t in times), 0.0], dtype=torch.float64)
        place: Callable[..., Tensor] = getattr(sampling, f"get_sigmas_{self.grid}")
        return place(steps, *ends)


def samplers(chosen: Sequence[str], grids: Sequence[str]) -> list[Sampler]:
    """The chosen samplers on every chosen grid that they support."""
    placed = [Sampler(name, grid) for name in chosen if name in CALLS for grid in grids if grid in GRIDS]
    return [*placed, *(Sampler(name, OWN_GRID[name]) for name in chosen if name in OWN_GRID)]
