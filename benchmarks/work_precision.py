"""Calls against error for methods that follow a tolerance: ``python -m benchmarks.work_precision``."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

import odediff
from benchmarks.problems import gaussian, kernel_density, mixture
from benchmarks.store import require_folder, writable
from odediff.app import App, plain_failures
from odediff.defaults import AutoClosing
from odediff.files import replacing
from odediff.problems import Distribution, exact_model
from odediff.table import text_table
from solvers import (
    DOP853,
    DPM23,
    Adaptive,
    AdaptiveAdams,
    Bosh3,
    Dopri5,
    Rotation,
    Scipy,
    Solver,
    Torchdiffeq,
    Tsit5,
    solve,
)
from solvers.testing import ExactODE

PICTURES = Path(__file__).parent / "pictures"
SAMPLES = {"ours": 768, "libraries": 12}
"""The numbers of samples; libraries solve sample by sample and are given fewer."""
TOLERANCES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6, 1e-7)
TARGETS = (1e-2, 1e-3, 1e-4, 1e-6)
LINE = Rotation(0.4)
"""The line of pairs and libraries; on x(t), which is singular at the data, they would have to stop before it."""
PAIRS: Mapping[str, Solver] = {
    "Bosh3": Adaptive(Bosh3(), line=LINE),
    "Dopri5": Adaptive(Dopri5(), line=LINE),
    "Tsit5": Adaptive(Tsit5(), line=LINE),
    "DOP853": Adaptive(DOP853(), line=LINE),
}
LIBRARIES: Mapping[str, Solver] = {
    "scipy RK45": Scipy("RK45", line=LINE),
    "scipy DOP853": Scipy("DOP853", line=LINE),
    "scipy LSODA": Scipy("LSODA", line=LINE),
    "torchdiffeq bosh3": Torchdiffeq("bosh3", line=LINE),
    "torchdiffeq dopri5": Torchdiffeq("dopri5", line=LINE),
    "torchdiffeq dopri8": Torchdiffeq("dopri8", line=LINE),
}


@dataclass(frozen=True)
class Curve:
    """The results of one method on one problem, with a point for every tolerance."""

    calls: list[float]
    errors: list[float]

    def at(self, error: float) -> float:
        """Mean calls for an rms error relative to the data's deviation, interpolated in the logarithms."""
        logs = np.log(self.errors[::-1])
        inside = logs[0] <= np.log(error) <= logs[-1]
        return float(np.exp(np.interp(np.log(error), logs, np.log(self.calls[::-1])))) if inside else float("nan")


def main() -> None:
    """Print the tables and draw the diagram, or print one clear line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=PICTURES, help="where work_precision.png is written")
    folder = parser.parse_args().folder
    with plain_failures(App("work_precision", "--folder")):
        require_folder(folder, "--folder ")
        show(folder)


def show(folder: Path) -> None:
    """Print the tables and draw the diagram."""
    torch.set_num_threads(1)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    for axis, dimension in zip(axes, (16, 64), strict=True):
        curves = measured(dimension)
        rows = [(name, *(curve.at(target) for target in TARGETS)) for name, curve in curves.items()]
        print(f"\nmixture in {dimension} dimensions: mean calls per sample for an rms error over the data's deviation")
        print(text_table(("method", *(f"{target:.0e}" for target in TARGETS)), rows))
        axis.set_prop_cycle(color=plt.get_cmap("tab20")(range(20)).tolist())
        for name, curve in curves.items():
            bold = name == "AdaptiveAdams"
            style = "o-" if bold else ".--"
            axis.loglog(curve.calls, curve.errors, style, lw=2 if bold else 1, zorder=3 if bold else 2, label=name)
        axis.set(title=f"mixture, {dimension} dimensions", xlabel="calls per sample, mean")
    axes[0].set_ylabel("rms error / deviation of the data")
    axes[1].legend(fontsize=7)
    figure.tight_layout()
    print("\nerror over tolerance, by sample: median (p95)")
    print(text_table(("problem", *(f"{t:.0e}" for t in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6))), proportionality()))
    times = ", ".join(f"{host_time(size) * 1e3:.2f} for {size}" for size in (16, 64, 784))
    print(f"\nprocessor time beside the network for each step of a batch of 64, by the size of a state: {times} ms")
    with writable(folder, "--folder "), replacing(folder / "work_precision.png") as partial:
        figure.savefig(partial, dpi=110, format="png")
    print(f"picture: {folder / 'work_precision.png'}")


def measured(dimension: int) -> dict[str, Curve]:
    """The curves of all methods on a mixture left for reporting, on the continuous path and through the table."""
    distribution = mixture(dimension, held_out=True)
    deviation = float(distribution.sample(20_000, 1).std(0).square().mean().sqrt())
    x = noise(SAMPLES["ours"], dimension)
    exact = exact_model(distribution, odediff.VPLinear(), "flow")
    table = exact_model(distribution, odediff.VPTable.linear(), "flow")
    truth = {model: odediff.sample(model, noise=x, rtol=1e-11) for model in (exact, table)}

    def curve(solver: Solver, count: int, model: odediff.Model = exact, continuous: bool = True) -> Curve:
        def run(rtol: float) -> Any:
            asked = replace(model, continuous=continuous)
            closing: AutoClosing = None if continuous else "auto"
            return odediff.sample(
                asked, noise=x[:count], solver=solver, rtol=rtol, closing=closing, return_solution=True
            )

        return follow(run, truth[model][:count], deviation)

    curves = {
        "AdaptiveAdams": curve(AdaptiveAdams(), len(x)),
        "AdaptiveAdams, table": curve(AdaptiveAdams(), len(x), table, continuous=False),
    }
    curves |= {f"ours {name}": curve(solver, len(x)) for name, solver in PAIRS.items()}
    # The variable of this pair, the log-SNR, is infinite at the data: it denoises, as published.
    curves["ours DPM23, table"] = curve(Adaptive(DPM23()), len(x), table, continuous=False)
    curves |= {name: curve(solver, SAMPLES["libraries"]) for name, solver in LIBRARIES.items()}
    return curves


def follow(run: Callable[[float], Any], truth: Tensor, deviation: float) -> Curve:
    """Solve at every tolerance; the error of a method that closes by denoising stays above that of the closing."""
    curve = Curve([], [])
    for rtol in TOLERANCES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = run(rtol)
        error = found.x - truth
        curve.calls.append(float(found.stats.evaluations.double().mean()))
        curve.errors.append(float(error.square().mean().sqrt()) / deviation)
    return Curve(curve.calls, np.maximum.accumulate(curve.errors[::-1])[::-1].tolist())


def proportionality() -> list[tuple[str, ...]]:
    """Median and p95 over samples of the rms error over rtol, in float64."""
    problems: dict[str, tuple[Distribution, int]] = {
        "Gaussian": (gaussian(), 16),
        **{f"mixture, {d}": (mixture(d, held_out=True), d) for d in (2, 16, 64)},
        "kernel density": (kernel_density(), 784),
    }
    rows = []
    for name, (distribution, dimension) in problems.items():
        count = 4 if dimension == 784 else 256
        shape = (count, 1, 28, 28) if dimension == 784 else (count, dimension)
        x = noise(count, dimension).reshape(shape)
        model = exact_model(distribution, odediff.VPLinear(), "flow")
        truth = odediff.sample(model, noise=x, rtol=1e-10 if dimension < 784 else 1e-8)
        cells = []
        for rtol in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
            error = (odediff.sample(model, noise=x, rtol=rtol) - truth).flatten(1).square().mean(1).sqrt() / rtol
            cells.append(f"{float(error.median()):.2g} ({float(error.quantile(0.95)):.2g})")
        rows.append((name, *cells))
    return rows


def noise(count: int, dimension: int) -> Tensor:
    """The starting states."""
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def host_time(dimension: int) -> float:
    """Processor time of a solve minus that of its field, per step of a batch of 64 states of ``dimension`` numbers."""
    problem, x = Timed(gaussian()), noise(64, dimension).float()
    spent = []
    for _ in range(9):
        problem.seconds, begun = 0.0, time.process_time()
        found = solve(problem, AdaptiveAdams(rtol=1e-6), x, (1.56, 0.0), closing=None)
        spent.append((time.process_time() - begun - problem.seconds) / found.stats.nfe)
    return float(np.median(spent))


class Timed(ExactODE):
    """An exact problem that measures the processor time of its calls."""

    seconds = 0.0

    def predict(self, node: Any, x: Tensor) -> Any:
        """The prediction, computed immediately."""
        begun = time.process_time()
        prediction = super().predict(node, x)
        _ = prediction.x0, prediction.eps
        self.seconds += time.process_time() - begun
        return prediction


if __name__ == "__main__":
    main()
