"""Published shapes on the embedded network: ``python -m benchmarks.published``.

Song, Meng & Ermon 2021, table 1 (samples by eta and number of steps) and table 2 (reconstructions), Heun's method at
few calls, and multistep methods against each other. The order of the rows, the places where they cross and the slopes
can be compared with the published ones; absolute figures, which depend on the network and the features, cannot.

Every finished part of 256 images is kept as one small file in ``--folder``, so that a run that was killed continues
where it stopped and repeats nothing.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

import odediff
from benchmarks.frechet import Distance
from benchmarks.store import require_folder
from odediff.app import App, plain_failures
from odediff.defaults import Grid
from odediff.files import replacing
from odediff.fingerprint import fingerprint
from odediff.metrics import convergence_slope
from odediff.table import text_table
from solvers import DDIM, DDPM, DEIS, IPNDM, DPMpp, Heun, Noise, Solver, UniPC

SEED = 0
PART = 256
IMAGES = 2048
TEST_IMAGES = 32
ETAS: dict[str, Solver] = {
    "eta = 0": DDIM(),
    "eta = 0.2": DDIM(eta=0.2),
    "eta = 0.5": DDIM(eta=0.5),
    "eta = 1": DDIM(eta=1.0),
    "sigma-hat": DDPM("large"),
}
PUBLISHED = {
    "eta = 0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "eta = 0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
    "eta = 0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "eta = 1": (41.07, 18.36, 8.01, 5.78, 4.73),
    "sigma-hat": (367.43, 133.37, 32.72, 9.99, 3.17),
}
STEPS = (10, 20, 50, 100, 1000)
LONG, LONG_ROWS = 1000, ("eta = 0", "eta = 1", "sigma-hat")
RECONSTRUCTION = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}
PUBLISHED_CALLS = (4, 6, 8, 10, 12, 15, 20)
PUBLISHED_HEUN = (319.87, 99.74, 38.06, 15.93, 7.59, 4.76, 2.51)
"""FIDs of Zhou, Chen, Wang & Chen 2024 up to ten calls and of Zheng et al. 2023 from twelve on, both on EDM's CIFAR-10
network."""
PUBLISHED_EULER = (66.76, 35.62, 22.32, 15.69, None, None, None)
GRIDS: tuple[Grid, ...] = (odediff.grid.uniform_t, odediff.grid.quadratic_t)
CALLS = (3, 5, 7, 9, 11, 15, 19)
MULTISTEP_CALLS = (3, 4, 5, 6, 7, 8, 9, 10)
PUBLISHED_MULTISTEP = {
    "DPM++3M": (110.03, 46.52, 24.97, 11.99, 6.74, 4.54, 3.42, 3.00),
    "UniPC-3": (109.61, 45.20, 23.98, 11.14, 5.83, 3.99, 3.21, 2.89),
    "DEIS-tAB3": (56.01, 25.66, 14.39, 9.40, 6.94, 5.55, 4.68, 4.09),
    "iPNDM-4": (47.98, 24.82, 13.59, 7.05, 5.08, 3.69, 3.17, 2.77),
}
"""FIDs of Zhou, Chen, Wang & Chen 2024 on EDM's CIFAR-10 network, the first two on nodes uniform in log-SNR, as here.

DEIS and iPNDM use nodes of that path there, where t is s; on VP paths their own nodes are quadratic and uniform in t.
"""


@dataclass(frozen=True)
class Row:
    """One sampler: its name, its method and its grid."""

    name: str
    solver: Solver
    grid: Grid


ROWS = {name: Row(name, solver, odediff.grid.quadratic_t) for name, solver in ETAS.items()}


MULTISTEP = {
    row.name: row
    for row in (
        Row("DPM++3M", DPMpp(3), odediff.grid.log_snr),
        Row("UniPC-3", UniPC(3), odediff.grid.log_snr),
        Row("DEIS-tAB3", DEIS(4), odediff.grid.quadratic_t),
        Row("iPNDM-4", IPNDM(4), odediff.grid.uniform_t),
    )
}


@dataclass(frozen=True)
class Study:
    """The network, the classifier, and the folder of finished parts."""

    folder: Path

    @cached_property
    def model(self) -> odediff.Model:
        """The embedded network without guidance, in calls of 32 rows, the fastest size on one core."""
        model = odediff.zoo.fashion_mnist()
        return odediff.Model(model.network, model.path, conditions=model.conditions, null=model.null, chunk=32)

    @cached_property
    def classifier(self) -> Any:
        """The embedded classifier, whose features take the place of Inception's."""
        return odediff.zoo.classifier()

    @cached_property
    def weights(self) -> tuple[str, str]:
        """The fingerprints of both networks, a part of every file name."""
        return fingerprint(self.model.network), fingerprint(self.classifier)

    def distance(self, row: Row, steps: int, images: int) -> Distance:
        """Frechet distance of the first ``images`` samples to the test split."""
        return Distance.of(self.features(row, steps, images))

    def features(self, row: Row, steps: int, images: int) -> Tensor:
        """Features of the first ``images`` samples, ``(images, 96)``, the ten classes in turn, clipped to [-1, 1]."""
        return torch.cat([self.part(row, steps, first) for first in range(0, images, PART)])[:images]

    def part(self, row: Row, steps: int, first: int) -> Tensor:
        """Features of samples ``first`` to ``first + 255``."""
        ids = torch.arange(first, first + PART)

        def compute() -> Tensor:
            drawn = odediff.sample(
                self.model.condition(label=ids % 10),
                (PART, 1, 28, 28),
                solver=row.solver,
                grid=row.grid,
                steps=steps,
                seed=SEED,
                samples=ids.tolist(),
            )
            with torch.no_grad():
                return self.classifier.features(drawn.clamp(-1, 1))

        return self._kept(f"{row.name}-{steps}-{first}", (row.solver, row.grid.__name__, PART, SEED), compute)

    def reconstruction(self, steps: int, grid: Grid) -> float:
        """Mean square error per dimension of real images in [0, 1] after ``steps`` DDIM steps up and as many down."""
        images, labels = (v[:TEST_IMAGES] for v in odediff.zoo.test_images())
        model = self.model.condition(label=labels)

        def compute() -> Tensor:
            # One interval more, since the one next to the data belongs to no encoding; the table has 1,000 entries.
            intervals = min(steps + 1, self.model.path.T)  # type: ignore[attr-defined]
            code = odediff.encode(model, images, solver=DDIM(), grid=grid, steps=intervals)
            return (odediff.decode(model, code) - images).square().flatten(1).mean(1) / 4

        return float(self._kept(f"reconstruction-{grid.__name__}-{steps}", (TEST_IMAGES,), compute).double().mean())

    def _kept(self, name: str, settings: Sequence[object], compute: Callable[[], Tensor]) -> Tensor:
        """The result of ``compute``, from its file if there is one."""
        belongs_to = (name, *settings, odediff.__version__, *self.weights)
        key = hashlib.sha256(repr(belongs_to).encode()).hexdigest()[:12]
        file = self.folder / f"{name.replace(' = ', '')}-{key}.safetensors"
        if file.exists():
            try:
                return load_file(file)["values"]
            except (SafetensorError, KeyError) as error:
                raise ValueError(
                    f"{file} is corrupt ({error}); delete it, and the same command makes it again"
                ) from None
        values = compute()
        with replacing(file) as partial:
            save_file({"values": values}, partial)
        return values


def main() -> None:
    """Print the tables, and whether they agree with the published ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/published"), help="where finished parts are kept")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"images in every cell (default: {IMAGES})")
    parser.add_argument(
        "--steps", type=int, nargs="+", choices=STEPS, default=STEPS[:-1], help="columns of table 1; 1000 takes hours"
    )
    arguments = parser.parse_args()
    with plain_failures(App("published", "--folder")):
        if arguments.images < 2:
            raise ValueError(f"--images {arguments.images} is too few for a covariance; ask for at least 2")
        require_folder(arguments.folder, "--folder ")
        study = Study(arguments.folder)
        compute(study, arguments.steps, arguments.images)
        etas(study, arguments.steps, arguments.images)
        reconstructions(study)
        heun(study, arguments.images)
        multistep(study, arguments.images)


def compute(study: Study, columns: Sequence[int], images: int) -> None:
    """Compute every part that has no file, the cheap ones first."""
    for steps, grid in tqdm(list(product(RECONSTRUCTION, GRIDS)), desc="reconstructions"):
        study.reconstruction(steps, grid)
    work = [item for calls in CALLS for item in below_ten(calls)]
    work += list(product(MULTISTEP.values(), MULTISTEP_CALLS))
    work += [(ROWS[name], steps) for steps in columns for name in names_at(steps)]
    work.sort(key=lambda item: item[1])
    parts = range(0, images, PART)
    with tqdm(total=len(parts) * PART * sum(steps for _, steps in work), unit="image step", unit_scale=True) as bar:
        for row, steps in work:
            bar.set_description(f"{row.name}, {steps} steps")
            for first in parts:
                study.part(row, steps, first)
                bar.update(PART * steps)


def names_at(steps: int) -> Sequence[str]:
    """The rows of table 1 that are sampled in so many steps."""
    return list(ROWS) if steps < LONG else LONG_ROWS


def etas(study: Study, columns: Sequence[int], images: int) -> None:
    """Table 1: eta = 0 is best and sigma-hat worst up to 100 steps; at 1,000 sigma-hat is best and eta = 1 worst."""
    print(f"Frechet distance of {images} images (after it the published FID); quadratic grid, without guidance")
    found = {steps: {name: study.distance(ROWS[name], steps, images) for name in names_at(steps)} for steps in columns}
    cells = [
        [name, *(f"{found[n][name]} ({row[STEPS.index(n)]:g})" if name in found[n] else None for n in columns)]
        for name, row in PUBLISHED.items()
    ]
    print(text_table(("", *(f"{steps} steps" for steps in columns)), cells))
    for steps, column in found.items():
        best, worst = ("eta = 0", "sigma-hat") if steps < LONG else ("sigma-hat", "eta = 1")
        verdict(f"{steps} steps: {best} is best", best, column, sign=1)
        verdict(f"{steps} steps: {worst} is worst", worst, column, sign=-1)


def verdict(claim: str, name: str, column: Mapping[str, Distance], sign: int) -> None:
    """Print whether ``name`` has the least distance of a column (sign 1) or the largest (sign -1)."""
    rivals = [
        (sign * gap, spread, other)
        for other in column
        if other != name
        for gap, spread in [column[other].against(column[name])]
    ]
    gap, spread, other = min(rivals)
    answer = "yes" if gap > 2 * spread else "no" if gap < -2 * spread else "undecided"
    print(f"  {claim}: {answer} ({other} is {abs(gap):.2f} +- {spread:.2f} {'above' if gap * sign > 0 else 'below'})")


def reconstructions(study: Study) -> None:
    """Table 2, where the error of encoding and decoding in S steps each falls like 1/S."""
    print(f"\nMean square error of {TEST_IMAGES} test images in [0, 1] after S steps of DDIM up and S down")
    columns = {grid.__name__: [study.reconstruction(steps, grid) for steps in RECONSTRUCTION] for grid in GRIDS}
    columns["published"] = list(RECONSTRUCTION.values())
    print(text_table(("S", *columns), list(zip(RECONSTRUCTION, *columns.values(), strict=True))))
    for name, errors in columns.items():
        # The published errors have one digit from 200 steps on.
        slope = convergence_slope(list(RECONSTRUCTION)[:5], [error**0.5 for error in errors[:5]], floor=0.0)
        print(f"  {name}: its root falls like S to the power {slope:.2f} from 10 to 200 steps")


def below_ten(calls: int) -> list[tuple[Row, int]]:
    """Heun and DDIM on Karras's grid, and the steps that cost ``calls`` calls, an odd number."""
    return [
        (Row("Heun", Heun(line=Noise()), odediff.grid.karras), (calls + 1) // 2),
        (Row("DDIM", DDIM(), odediff.grid.karras), calls),
    ]


def heun(study: Study, images: int) -> None:
    """Heun at few calls, published as worse than DDIM, which is Euler, until about ten calls."""
    print(f"\nFrechet distance of {images} images by Heun and by DDIM on Karras's grid, beside the published FIDs")
    cells = []
    for calls, *published in zip(CALLS, PUBLISHED_CALLS, PUBLISHED_HEUN, PUBLISHED_EULER, strict=True):
        second, first = (study.distance(row, steps, images) for row, steps in below_ten(calls))
        cells.append((calls, second, first, *published))
    print(text_table(("calls", "Heun", "DDIM", "published calls", "Heun", "Euler"), cells))


def multistep(study: Study, images: int) -> None:
    """Published: polynomials of the data lose to those of the noise at few calls, and win at more."""
    print(f"\nFrechet distance of {images} images by multistep methods, each on its grid (after it the published FID)")
    found = {
        calls: {name: study.distance(row, calls, images) for name, row in MULTISTEP.items()}
        for calls in MULTISTEP_CALLS
    }
    cells = [
        [name, *(f"{found[calls][name]} ({fid:g})" for calls, fid in zip(MULTISTEP_CALLS, fids, strict=True))]
        for name, fids in PUBLISHED_MULTISTEP.items()
    ]
    print(text_table(("", *(f"{calls} calls" for calls in MULTISTEP_CALLS)), cells))
    for i, (calls, column) in enumerate(found.items()):
        for ours, theirs in product(("DPM++3M", "UniPC-3"), ("DEIS-tAB3", "iPNDM-4")):
            gap, spread = column[ours].against(column[theirs])
            order = "level with" if abs(gap) <= 2 * spread else "worse than" if gap > 0 else "better than"
            known = "worse" if PUBLISHED_MULTISTEP[ours][i] > PUBLISHED_MULTISTEP[theirs][i] else "better"
            print(f"  {calls} calls: {ours} is {order} {theirs}, {gap:+.2f} +- {spread:.2f} (published: {known})")


if __name__ == "__main__":
    main()
