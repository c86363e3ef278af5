"""``task=demo``: the thesis in three pictures and two tables."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from odediff import grid as grids
from odediff.images import embedded_images, embedded_shape
from odediff.inversion import decode, encode, encoding_times
from odediff.pictures import curves, is_picture, labelled_grid, montage
from odediff.reference import reference_end
from odediff.run import Run, build, refuse_unused, rms
from odediff.sampling import initial_noise, sample
from odediff.table import text_table
from solvers import DDIM, DDPM, RK4, GPMultistep, Heun, Node, Noise, NoiseStream, Rotation, Solver

SAMPLERS: dict[str, Solver] = {
    "GP multistep": GPMultistep(),
    "DDIM": DDIM(),
    "Heun": Heun(line=Noise()),
    "RK4, rotation line": RK4(line=Rotation()),
    "DDPM": DDPM(),
}
INVERTERS: dict[str, Solver] = {"DDIM": DDIM(), "Heun": Heun(line=Noise())}
REFERENCE_STEPS = 40
SHOWN = (1.0, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1, 0.0)
"""The fractions of the path's start at which paths.png shows the states."""


def run(config: DictConfig, images: int, nfe: list[int], inversion_nfe: list[int]) -> None:
    """Draw samples by several solvers, one noise by the ODE and by DDPM, and real images there and back.

    Only models of the embedded images' shape make the round trip; others are just sampled.
    """
    refuse_unused(
        ("solver", "grid", "closing", "steps", "nfe", "rtol", "samples"),
        "the demonstration shows solvers of its own, at task.nfe=[5,10,...] calls, on task.images=N images; "
        "task=sample takes yours",
    )
    run = build(config)
    for name, counts in (("images", [images]), ("nfe", nfe), ("inversion_nfe", inversion_nfe)):
        if not counts or min(counts) < 1:
            raise ValueError(f"task.{name}={images if name == 'images' else counts} must be of at least 1")
    if not is_picture(run.shape):
        raise ValueError(
            f"model.shape={list(run.shape)} is not that of a picture, which the demonstration draws; use task=sample"
        )
    if run.model.integer_time:
        raise ValueError(
            "model.integer_time=true: the demonstration draws RK4, which asks the network between the entries of its "
            "table; use task=sample"
        )
    real = embedded_images(images, run.shape) if run.shape == embedded_shape() else None
    for ceiling, solver in itertools.product(inversion_nfe if real else (), INVERTERS.values()):
        encoding_times(run.model, solver, None, None, ceiling)
    results: dict[str, Any] = {"solver": list(SAMPLERS), "samples": _samples(run, images, nfe), "paths": _paths(run)}
    if real is None:
        print("\nNo round trip: no embedded images have this shape; task=invert task.images=FOLDER takes yours")
    else:
        results["inversion"] = _inversion(run, *real, inversion_nfe)
    run.record(results)
    print(f"\npictures and run.json in {run.folder}")


def _samples(run: Run, count: int, nfe: list[int]) -> list[dict[str, Any]]:
    """solvers.png: the same noise by every solver at every number of calls, and its distance to the exact flow."""
    model = run.conditioned(count)
    noise = _noise(run, count)
    exact = reference_end(model, noise, REFERENCE_STEPS, run.progress)
    rows: list[dict[str, Any]] = []
    cells: list[list[np.ndarray]] = []
    notes: list[list[str]] = []
    for name, solver in SAMPLERS.items():
        cells.append([])
        notes.append([])
        for ceiling in nfe:
            begun = time.perf_counter()
            solution = sample(
                model,
                noise=noise,
                solver=solver,
                nfe=ceiling,
                seed=run.config.seed,
                progress=run.progress,
                return_solution=True,
            )
            error = rms(solution.x - exact) if solver.deterministic else None
            cells[-1].append(montage(solution.x, columns=max(count // 2, 1)))
            notes[-1].append(f"{solution.stats.nfe} calls" + ("" if error is None else f", rms error {error:.2g}"))
            rows.append(
                {
                    "solver": name,
                    "nfe": solution.stats.nfe,
                    "network_evaluations": solution.stats.network_evaluations,
                    "error": error,
                    "seconds": round(time.perf_counter() - begun, 2),
                }
            )
    title = f"One noise, one ODE, {len(SAMPLERS)} solvers (guidance {run.model.guidance:g})"
    columns = [f"at most {n} calls" for n in nfe]
    labelled_grid(run.folder / "solvers.png", cells, list(SAMPLERS), columns, title, notes, inches=0.8)
    print("\nDistance to the exact flow from the same noise (DDPM is stochastic: it ends elsewhere by design)")
    print(text_table(("solver", "calls", "passes", "rms error", "seconds"), [tuple(row.values()) for row in rows]))
    return rows


def _paths(run: Run) -> dict[str, Any]:
    """paths.png: the same noise followed by the ODE and by DDPM."""
    model = run.conditioned(2)
    noise = _noise(run, 2)
    shown: list[float] = []
    cells, labels = [], []
    for name, solver in (("ODE (DDIM)", DDIM()), ("DDPM", DDPM())):
        states: dict[float, Tensor] = {float(run.model.path.start): noise}

        def keep(node: Node, x: Tensor, states: dict[float, Tensor] = states) -> None:
            states[float(node.t)] = x

        sample(
            model,
            noise=noise,
            solver=solver,
            grid=grids.uniform_t,
            steps=100,
            seed=run.config.seed,
            callback=keep,
            progress=run.progress,
        )
        visited = torch.tensor(sorted(states), dtype=torch.float64)
        start = float(run.model.path.start)
        shown = [float(visited[(visited - part * start).abs().argmin()]) for part in SHOWN]
        for i in range(2):
            row = [states[t][i : i + 1] for t in shown]
            cells.append([montage(x / max(1.0, float(x.abs().max())), 1) for x in row])
            labels.append(f"noise {i + 1}, {name}")
    order = [0, 2, 1, 3]
    labelled_grid(
        run.folder / "paths.png",
        [cells[i] for i in order],
        [labels[i] for i in order],
        [f"t = {t:.2g}" for t in shown],
        "Two paths, one marginal: the same noise followed by the ODE and by DDPM",
        inches=0.7,
    )
    return {"steps": 100, "nfe": 100}


def _inversion(run: Run, pictures: Tensor, labels: Tensor | None, nfe: list[int]) -> list[dict[str, Any]]:
    """inversion.png and inversion_error.png: real images to noise and back, without guidance."""
    count = len(pictures)
    model = run.conditioned(count, guidance=1.0, **run.labelled(labels))
    given = pictures.to(device=run.config.device, dtype=run.dtype)
    rows: list[dict[str, Any]] = []
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in INVERTERS}
    cells, names, notes = [[montage(given, count)]], ["image"], [[""]]
    for name, solver in INVERTERS.items():
        for ceiling in nfe:
            code = encode(model, given, solver=solver, nfe=ceiling, progress=run.progress)
            again = decode(model, code, progress=run.progress)
            error = rms(again - given)
            rows.append({"solver": name, "calls": code.stats.nfe, "error": error})
            points[name].append((code.stats.nfe, error))
        cells += [[montage(code.x / 3, count)], [montage(again, count)], [montage((again - given) * 4, count)]]
        names += [f"{name}: noise", "reconstruction", "difference x 4"]
        notes += [[""], [f"{code.stats.nfe} calls each way, rms error {error:.1e}"], [""]]
    labelled_grid(run.folder / "inversion.png", cells, names, [""], "Inversion: the grid flipped", notes, inches=0.6)
    curves(
        run.folder / "inversion_error.png", points, "network calls each way", "rms round-trip error", "There and back"
    )
    print("\nRound trip of real images")
    print(text_table(("solver", "calls each way", "rms error"), [tuple(row.values()) for row in rows]))
    return rows


def _noise(run: Run, count: int) -> Tensor:
    """The states from which ``count`` samples start, on the device of the run."""
    like = torch.empty(count, *run.shape, dtype=run.dtype, device=run.config.device)
    start = run.model.path.node(run.model.path.start)
    return initial_noise(start, like, NoiseStream(run.config.seed))[0]
