"""The default sampler on networks not used in its development: ``python -m benchmarks.small_networks``.

Perceptrons are trained for a minute or two each, on two moons, a spiral and a held-out mixture in 16 dimensions, to
predict epsilon on DDPM's table. Then the default solver and all settings of three of diffusers' schedulers in all their
grids start from the same noise, and are compared with the network's own exact flow. Trained weights are kept in
``--folder``, so that a run that was killed does not train any network twice.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import peers
from benchmarks.store import require_folder
from odediff import grid
from odediff.accuracy import sample_errors
from odediff.app import App, plain_failures
from odediff.defaults import default_solver
from odediff.files import replacing
from odediff.fingerprint import fingerprint
from odediff.model import Model
from odediff.problems import Problem, standard
from odediff.problems.base import Flow, Purpose
from odediff.schedule import VPTable
from odediff.table import text_table
from odediff.zoo.unet import TimeFeatures
from solvers import DPMpp
from solvers.testing import Mixture

SCHEDULERS = ("DPMSolverMultistep", "UniPCMultistep", "DEISMultistep")
CALLS = (5, 6, 8, 10, 12, 15, 20, 30, 50)
SAMPLES, SEED = 256, 3
STEPS, BATCH, RATE, DECAY, DATA = 12_000, 512, 1e-3, 0.999, 200_000


class Perceptron(nn.Module):
    """A perceptron of four residual layers; the time is added before each."""

    def __init__(self, dimension: int, width: int = 128, features: int = 64) -> None:
        super().__init__()
        self.time = nn.Sequential(
            TimeFeatures(features), nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.first, self.last = nn.Linear(dimension, width), nn.Linear(width, dimension)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        told, hidden = self.time(time), self.first(x)
        for layer in self.layers:
            hidden = hidden + layer(F.silu(hidden + told))
        return self.last(F.silu(hidden))


def moons(count: int, seed: int) -> Tensor:
    """Two interlocking half circles, blurred; the deviation is nearly 1."""
    random = np.random.default_rng(seed)
    angle, lower = np.pi * random.random(count), random.integers(0, 2, count) == 1
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = np.where(lower[:, None], [1.0, 0.5] - upper, upper) + 0.06 * random.normal(size=(count, 2))
    return torch.from_numpy((points - [0.5, 0.25]) / 0.68)


def spiral(count: int, seed: int) -> Tensor:
    """A spiral of one and a half turns, blurred; the deviation is nearly 1."""
    random = np.random.default_rng(seed)
    angle = 1.5 * np.pi * (1 + 2 * random.random(count))
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * angle[:, None] / 7
    return torch.from_numpy(points + 0.04 * random.normal(size=(count, 2)))


def mixture(count: int, seed: int) -> Tensor:
    """Samples of the mixture in 16 dimensions that is left for reporting."""
    law = standard("mixture_16_held_out").distribution
    assert isinstance(law, Mixture)
    return law.sample(count, seed)


LAWS: dict[str, Callable[[int, int], Tensor]] = {"moons": moons, "spiral": spiral, "mixture": mixture}


@dataclass(frozen=True, eq=False)
class TrainedProblem(Problem):
    """A trained perceptron; its exact flow is the reference, whatever it learnt."""

    name: str
    folder: Path
    purpose: Purpose = "reporting"
    family: str = "small network"
    dtype: torch.dtype = torch.float32
    # Trained networks are rough in time, so that short steps gain more than a high order.
    flow: Flow = Flow(DPMpp(2), grid.karras, 800)

    # A read-only property in an attribute's place: mypy calls it an incompatible override.
    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The shape of a state, which has one axis."""
        return (self.data(2).shape[1],)

    @cached_property
    def deviation(self) -> float:
        """The deviation of 10,000 samples of the data."""
        return float(self.data(10_000).var(0).mean().sqrt())

    def data(self, count: int) -> Tensor:
        return LAWS[self.name](count, SEED)

    def model(self, rows: range) -> Model:
        return self._model

    @cached_property
    def _model(self) -> Model:
        return Model(trained(self.name, self.folder), VPTable.linear())

    def modes(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.int64)

    def digest(self) -> str:
        return fingerprint(self._model.network)


def trained(name: str, folder: Path) -> Perceptron:
    """The network of that law, from its file if there is one."""
    torch.manual_seed(SEED)
    data = LAWS[name](DATA, SEED + 1).float()
    network, average = (Perceptron(data.shape[1]) for _ in range(2))
    file = folder / f"{name}.safetensors"
    if not file.exists():
        _train(network, average, data, name)
        with replacing(file) as partial:
            save_file(average.state_dict(), partial)
    try:
        average.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{file} does not hold the weights of {name}; delete it to train anew") from error
    return average.requires_grad_(False)


def _train(network: Perceptron, average: Perceptron, data: Tensor, name: str) -> None:
    """Minimise eq. 14 of Ho, Jain & Abbeel 2020 by Adam with a cosine schedule; ``average`` follows the weights."""
    table = torch.tensor(VPTable.linear().alphas_cumprod)
    alpha, sigma = table.sqrt().float()[:, None], (1 - table).sqrt().float()[:, None]
    average.load_state_dict(network.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in tqdm(range(STEPS), desc=f"train {name}", unit="step"):
        rows = data[torch.randint(len(data), (BATCH,))]
        time, noise = torch.randint(len(alpha), (BATCH,)), torch.randn_like(rows)
        loss = (network(alpha[time] * rows + sigma[time] * noise, time.float()) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
                slow.lerp_(fast, 1 - DECAY)


def rows_of(problem: TrainedProblem, samples: int) -> list[tuple[str | float | None, ...]]:
    """By number of calls, the default's median and 90 % quantile, and their ratios to the best scheduler's."""
    rows = range(samples)
    reference = problem.reference(problem.noise(SEED, rows))
    methods = [m for m in peers.peers(SCHEDULERS, list(peers.GRIDS)) if m.deterministic]
    solver = default_solver(problem.path)

    def quantiles(x: Tensor) -> np.ndarray:
        errors = sample_errors(x, reference.x, problem.deviation).numpy()
        return np.quantile(errors, [0.5, 0.9]) if np.isfinite(errors).all() else np.full(2, np.inf)

    found: list[tuple[str | float | None, ...]] = []
    for nfe in CALLS:
        theirs = {
            f"{m.name} {m.grid}": quantiles(m.run(problem, rows, SEED, nfe, None).x)
            for m in methods
            if m.affordable(problem, nfe)
        }
        best = np.min(list(theirs.values()), axis=0)
        mine = quantiles(problem.solve(solver, SEED, rows, grid=None, nfe=nfe).x)
        name = min(theirs, key=lambda name: theirs[name][0])
        found.append((problem.name, nfe, *mine.tolist(), *(mine / best).round(2).tolist(), name))
    print(f"{problem.name}: the flow's own error is {reference.error / problem.deviation:.1e}")
    return found


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/small_networks"), help="where weights are kept")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"samples of each network (default: {SAMPLES})")
    arguments = parser.parse_args()
    with plain_failures(App("small_networks", "--folder")):
        if arguments.samples < 2:
            raise ValueError(f"--samples {arguments.samples} is too few for quantiles; ask for at least 2")
        require_folder(arguments.folder, "--folder ")
        torch.set_num_threads(1)
        table = [row for name in LAWS for row in rows_of(TrainedProblem(name, arguments.folder), arguments.samples)]
        print(text_table(("network", "calls", "median", "90 %", "of best", "of best", "best by median"), table))


if __name__ == "__main__":
    main()
