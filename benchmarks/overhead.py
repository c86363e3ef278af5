"""What a step costs beside the network, against diffusers, in one process: ``python -m benchmarks.overhead``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import odediff
import solvers
from odediff.table import text_table

SHAPE = (1, 4, 64, 64)
STEPS = 200
REPEATS = 15


def main() -> None:
    """Print the table."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    torch.set_num_threads(1)
    state = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    output = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))

    def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return output

    model = odediff.Model(network, odediff.VPTable.linear())
    ode = odediff.probability_flow(model)
    times = odediff.grid.uniform_t(model.path, STEPS + 1)[:-1]
    pairs: list[tuple[solvers.Solver, Any]] = [
        (solvers.DDIM(), DDIMScheduler(clip_sample=False)),
        (solvers.DPMpp(3), DPMSolverMultistepScheduler(solver_order=3)),
        (solvers.UniPC(3), UniPCMultistepScheduler(solver_order=3)),
    ]

    def ours(solver: solvers.Solver) -> None:
        solvers.solve(ode, solver, state, times)

    def theirs(scheduler: Any) -> None:
        scheduler.set_timesteps(STEPS)
        x = state
        for t in scheduler.timesteps:
            x = scheduler.step(output, t, x).prev_sample

    def arithmetic() -> None:
        for _ in range(STEPS):
            (state * 0.5).add_(output, alpha=0.3)

    with torch.no_grad():
        costs = {"two fused torch operations": _microseconds(arithmetic)}
        for solver, scheduler in pairs:
            costs[f"odediff, {solver}"] = _microseconds(partial(ours, solver))
            costs[f"diffusers, {type(scheduler).__name__}"] = _microseconds(partial(theirs, scheduler))
        costs[f"odediff, {solvers.GPMultistep()}"] = _microseconds(partial(ours, solvers.GPMultistep()))
    floor = costs["two fused torch operations"][0]
    rows = [(name, median, best, median / floor) for name, (median, best) in costs.items()]
    print(f"state {SHAPE}, one thread, {STEPS} steps, {REPEATS} repeats, processor time beside the network")
    print(text_table(("step", "median [us/call]", "least [us/call]", "ratio to arithmetic"), rows))


def _microseconds(work: Callable[[], None]) -> tuple[float, float]:
    work()
    spent = []
    for _ in range(REPEATS):
        begun = time.process_time()
        work()
        spent.append((time.process_time() - begun) / STEPS * 1e6)
    return statistics.median(spent), min(spent)


if __name__ == "__main__":
    main()
