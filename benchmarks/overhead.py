"""The cost of a step beside the network, compared with diffusers in one process: ``python -m benchmarks.overhead``."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

import torch

import odediff
import solvers
from benchmarks.live_memory import LiveMemory
from benchmarks.peers import DIFFUSERS, present
from odediff.app import plain_failures
from odediff.table import text_table

SHAPE = (1, 4, 64, 64)
HISTORIES: list[tuple[solvers.Solver, int]] = [
    (solvers.DDIM(), 1),
    (solvers.DPMpp(2), 2),
    (solvers.DPMpp(3), 3),
    (solvers.DPMSolver(3), 3),
    (solvers.DEIS(3), 3),
    (solvers.LMS(), 4),
    (solvers.IPNDM(), 4),
    (solvers.GPMultistep(), 4),
    (solvers.UniPC(3), 4),
]
"""Solvers, and how many predictions a step reads, including the newest."""
LARGE = (64, 3, 64, 64)
READ: list[tuple[solvers.Solver, int]] = [
    (solvers.DDIM(), 2),
    (solvers.DPMpp(3), 4),
    (solvers.DPMSolver(3), 4),
    (solvers.LMS(), 5),
    (solvers.UniPC(3), 5),
    (solvers.GPMultistep(), 6),
]
"""Solvers, and how many tensors their formulas read: the state and the predictions."""
ALLOWED, ALLOWED_COMPILED = 2.5, 1.5
"""The asked cost of a call in units of reading k tensors and writing one, which takes (k + 1)/3 of one addition."""
STEPS, LARGE_STEPS = 200, 50
REPEATS = 15


def main() -> None:
    """Print the tables, or one clear line."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with plain_failures():
        show()


def show() -> None:
    """Print the cost of a call, and the memory."""
    torch.set_num_threads(1)
    state = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    output = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))

    def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return output

    model = odediff.Model(network, odediff.VPTable.linear())
    ode = odediff.probability_flow(model)
    times = odediff.grid.uniform_t(model.path, STEPS + 1)[:-1]
    schedulers: list[Any] = [None, None, None, None]
    if present(DIFFUSERS):
        from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

        schedulers = [
            DDPMScheduler(clip_sample=False),
            DDIMScheduler(clip_sample=False),
            DPMSolverMultistepScheduler(solver_order=3),
            UniPCMultistepScheduler(solver_order=3),
        ]
    pairs = zip((solvers.DDPM(), solvers.DDIM(), solvers.DPMpp(3), solvers.UniPC(3)), schedulers, strict=True)

    def ours(solver: solvers.Solver) -> None:
        stream = None if solver.deterministic else solvers.NoiseStream(0)
        solvers.solve(ode, solver, state, times, stream=stream)

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
            if scheduler is not None:
                costs[f"diffusers, {type(scheduler).__name__}"] = _microseconds(partial(theirs, scheduler))
        costs[f"odediff, {solvers.GPMultistep()}"] = _microseconds(partial(ours, solvers.GPMultistep()))
    floor = costs["two fused torch operations"][0]
    rows = [(name, median, best, median / floor) for name, (median, best) in costs.items()]
    print(f"state {SHAPE}, one thread, {STEPS} steps, {REPEATS} repeats, processor time beside the network")
    print(text_table(("step", "median [us/call]", "least [us/call]", "ratio to arithmetic"), rows))
    print(f"\nstate {LARGE}, {LARGE_STEPS} steps: a call in units of torch.add(a, b, out=c)")
    print(
        text_table(("solver", "tensors read", "eager", "asked", "compiled", "asked compiled"), list(map(_large, READ)))
    )
    print("\nmemory alive at once beside what the solve was given, in states")
    print(text_table(("solver", "history", "peak [states]"), [(str(s), kept, peak_states(s)) for s, kept in HISTORIES]))


def _large(case: tuple[solvers.Solver, int]) -> tuple[Any, ...]:
    """A row of the table: the cost of a call for large states, beside a network whose outputs are ready."""
    solver, read = case
    # As many outputs as are read at once: a single tensor in all places would stay in the cache.
    outputs = [torch.randn(LARGE, generator=torch.Generator().manual_seed(i)) for i in range(read)]
    state, given = outputs[0].clone(), cycle(outputs)
    ode = odediff.probability_flow(odediff.Model(lambda x, time: next(given), odediff.VPTable.linear()))
    times = odediff.grid.uniform_t(odediff.VPTable.linear(), LARGE_STEPS + 1)[:-1]
    total = torch.empty(LARGE)

    def addition() -> None:
        for _ in range(LARGE_STEPS):
            torch.add(outputs[0], outputs[1], out=total)

    ratios = []
    for compiled in (False, True):
        found = []
        with torch.no_grad():
            work = partial(solvers.solve, ode, solver, state, times, compile=compiled)
            work()
            for _ in range(REPEATS):
                unit, spent = _spent(addition), _spent(work)
                found.append(spent / unit)
        ratios.append(statistics.median(found))
    units = (read + 1) / 3
    return str(solver), read, ratios[0], ALLOWED * units, ratios[1], ALLOWED_COMPILED * units


def peak_states(solver: solvers.Solver) -> float:
    """The peak memory of a solve beside its arguments, in units of the state."""
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = odediff.Model(lambda x, time: 0.1 * x, odediff.VPTable.linear())
    times = odediff.grid.log_snr(model.path, 12)[:-1]
    with torch.no_grad(), LiveMemory() as memory:
        solvers.solve(odediff.probability_flow(model), solver, x, times)
    return memory.peak / x.untyped_storage().nbytes()


def _microseconds(work: Callable[[], None]) -> tuple[float, float]:
    work()
    spent = [_spent(work) / STEPS * 1e6 for _ in range(REPEATS)]
    return statistics.median(spent), min(spent)


def _spent(work: Callable[[], Any]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
