"""Real images to noise and back: ``python -m benchmarks.inversion [PART]``.

The parts are table, exact, implicit, null_text, curve and memory; without an argument all of them run. Each finished
row is kept, and the same command continues with the next one.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import odediff
from benchmarks.live_memory import LiveMemory
from benchmarks.rows import Rows
from odediff.app import App, plain_failures
from odediff.code import Code
from odediff.metrics import convergence_slope, psnr, round_trip_error
from odediff.model import Model
from odediff.round_trip import COLUMNS, exact_latent, measure
from odediff.table import text_table
from solvers import (
    BDIA,
    DDIM,
    EDICT,
    OBELM,
    RK4,
    AsynchronousLeapfrog,
    FixedPoint,
    Heun,
    Leapfrog,
    Noise,
    Reversible,
    ReversibleHeun,
    Solver,
    Status,
)

METHODS: dict[str, Solver] = {
    "DDIM": DDIM(),
    "DDIM, destination node": FixedPoint(max_iterations=0),
    "DDIM, fixed point": FixedPoint(tolerance=1e-5),
    "Heun": Heun(Noise()),
    "RK4": RK4(Noise()),
    "EDICT": EDICT(),
    "BDIA": BDIA(),
    "O-BELM": OBELM(),
    "Leapfrog": Leapfrog(),
    "Asynchronous leapfrog": AsynchronousLeapfrog(),
    "Reversible Heun": ReversibleHeun(),
    "McCallum-Foster, RK4": Reversible(),
    "McCallum-Foster, DDIM": Reversible(DDIM()),
}
EXACT = ("EDICT", "BDIA", "O-BELM", "Leapfrog", "Asynchronous leapfrog", "Reversible Heun", "McCallum-Foster, DDIM")
GUIDANCE = (1.0, 3.0, 7.5)
STEPS = (10, 50, 200)
GRID = odediff.grid.uniform_t
IMPLICIT_GRID = partial(odediff.grid.uniform_t, spacing="trailing")
"""Also uniform in t, but without the first entry, from which sigma/alpha would grow eightfold in one step."""
REFERENCE_STEPS = 201
TABLE_IMAGES, EXACT_IMAGES, NULL_TEXT_IMAGES, CURVE_IMAGES = 2, 100, 32, 2
IMPLICIT_IMAGES = {1.0: 100, 3.0: 20, 7.5: 20}
"""Few images, as a float64 network takes three times as long and a guided step 11 to 14 iterations of two passes."""
CURVE_STEPS = (10, 20, 40, 80, 160, 320, 640, 1000)


def main() -> None:
    """Run the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("--images", type=int, help="images for each part, instead of its default number")
    parser.add_argument("--folder", type=Path, default=Path("outputs/inversion"), help="where finished rows are kept")
    asked = parser.parse_args()
    if asked.images is not None and not 1 <= asked.images <= 1000:
        parser.error(f"--images {asked.images} is out of range; give a number from 1 to 1000")
    with plain_failures(App("inversion", "--folder")):
        for name in PARTS if asked.part is None else (asked.part,):
            print(f"\n== {name}", flush=True)
            PARTS[name](asked.folder, asked.images)


def table(folder: Path, images: int | None) -> None:
    """Every method at every guidance and number of steps; float64 states, float32 network."""
    count = images or TABLE_IMAGES
    pictures, labels = real_images(count, torch.float64)
    rows = Rows(folder, "table", images=count)

    @cache
    def latent(guidance: float) -> Tensor:
        return exact_latent(conditioned(labels, guidance), pictures, GRID, REFERENCE_STEPS)

    def measured(guidance: float, steps: int, solver: Solver) -> list[Any]:
        model, settings = conditioned(labels, guidance), {"grid": GRID, "steps": steps + 1}
        record, _ = measure(model, pictures, latent(guidance), solver, settings)
        return [record[column] for column in COLUMNS]

    for guidance in GUIDANCE:
        for steps in STEPS:
            for name, solver in METHODS.items():
                rows.of((name, f"{guidance:g}", steps), partial(measured, guidance, steps, solver))
    print(rows.text(("method", "guidance", "steps", *COLUMNS)))


def exact(folder: Path, images: int | None) -> None:
    """The exact methods on many images, 50 steps uniform in t, and plain DDIM, which must fail."""
    count = images or EXACT_IMAGES
    rows = Rows(folder, "exact", images=count)

    def returned(name: str, dtype: torch.dtype, guidance: float) -> list[Any]:
        pictures, labels = real_images(count, dtype)
        model = conditioned(labels, guidance)
        code = odediff.encode(model, pictures, solver=METHODS[name], grid=GRID, steps=51)
        error = float((odediff.decode(model, code) - pictures).abs().max())
        return [error, code.stats.nfe]

    for dtype in (torch.float64, torch.float32):
        for guidance in GUIDANCE:
            for name in ("DDIM", *EXACT):
                labels = (name, str(dtype).removeprefix("torch."), f"{guidance:g}")
                rows.of(labels, partial(returned, name, dtype, guidance))
    print(rows.text(("method", "states", "guidance", "largest error", "calls")))


def implicit(folder: Path, images: int | None) -> None:
    """DDIM's exact inverse, iterated down to the round-off of a float64 network."""
    rows = Rows(folder, "implicit")

    def returned(guidance: float, image: int) -> list[Any]:
        pictures, labels = (values[image : image + 1] for values in real_images(image + 1, torch.float64))
        model = odediff.zoo.fashion_mnist(dtype=torch.float64).condition(label=labels, guidance=guidance)
        code = odediff.encode(model, pictures, solver=FixedPoint(history=3), grid=IMPLICIT_GRID, steps=50, throw=False)
        assert code.effort is not None
        error = float((odediff.decode(model, code, throw=False) - pictures).abs().max())
        effort = code.effort
        return [Status(int(effort.status)).name, float(effort.residual), int(effort.iterations), error]

    for guidance in GUIDANCE:
        for image in range(images or IMPLICIT_IMAGES[guidance]):
            rows.of((f"{guidance:g}", image), partial(returned, guidance, image))
    print(rows.text(("guidance", "image", "status", "residual", "iterations", "largest error")))
    for guidance in GUIDANCE:
        mine = [row for row in rows.rows if row[0] == f"{guidance:g}"]
        converged = [row[3:] for row in mine if row[2] == Status.SUCCESS.name]
        print(f"guidance {guidance:g}: {len(converged)} of {len(mine)} converged")
        if converged:
            residual, iterations, error = (max(column) for column in zip(*converged, strict=True))
            print(f"    at most: residual {residual:.2g}, iterations {iterations}, error {error:.2g}")


def null_text(folder: Path, images: int | None) -> None:
    """Null-text inversion at guidance 2, 3 and 7.5, compared with DDIM and the other ways to invert."""
    count = images or NULL_TEXT_IMAGES
    rows = Rows(folder, "null_text", images=count)
    settings: dict[str, Any] = {"grid": GRID, "steps": 51}
    pictures, labels = real_images(count, torch.float32)

    def quality(way: Callable[..., Code], encoder: Model, decoder: Model) -> list[Any]:
        begun = time.perf_counter()
        code = way(encoder, pictures, **settings)
        by_image = psnr(pictures, odediff.decode(decoder, code, edit=True))
        memory = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        return [by_image.tolist(), code.stats.network_evaluations, round(time.perf_counter() - begun, 1), memory]

    plain = conditioned(labels, 1.0)
    shown: list[list[Any]] = []
    for guidance in (7.5, 3.0, 2.0):
        model = conditioned(labels, guidance)
        ways: dict[str, tuple[Callable[..., Code], Model, Model]] = {
            "DDIM at guidance 1": (by_ddim, plain, plain),
            "DDIM, encoded and decoded guided": (by_ddim, model, model),
            "DDIM, encoded at 1, decoded guided": (by_ddim, plain, model),
            "negative prompt": (odediff.negative_prompt, model, model),
            "null-text": (odediff.null_text, model, model),
            "stored offsets": (odediff.direct_inversion, model, model),
            "one shared null": (odediff.shared_null, model, model),
        }
        unguided: list[float] = []
        for name, way in ways.items():
            *_, by_image, passes, seconds, memory = rows.of((name, f"{guidance:g}"), partial(quality, *way))
            unguided = unguided or by_image
            distance = [mine - other for mine, other in zip(by_image, unguided, strict=True)]
            spread = f"{min(distance):.1f} to {max(distance):.1f}"
            shown.append([name, f"{guidance:g}", statistics.median(by_image), spread, passes, seconds, memory])
            if name == "null-text":
                print(f"guidance {guidance:g}, null-text minus DDIM at 1 [dB], image by image:")
                print(*(f"{value:.1f}" for value in distance))
    header = ("method", "guidance", "PSNR [dB]", "against DDIM at 1, per image", "passes", "seconds", "memory [GiB]")
    print(text_table(header, shown))


def by_ddim(model: Model, images: Tensor, **settings: Any) -> Code:
    """Encode by a flipped solve of DDIM."""
    return odediff.encode(model, images, solver=DDIM(), **settings)


def curve(folder: Path, images: int | None) -> None:
    """Table 2 of the DDIM paper as a curve, the round-trip error against steps, with RK4 beside it."""
    count = images or CURVE_IMAGES
    rows, errors = Rows(folder, "curve", images=count), {}
    model, pictures = odediff.zoo.fashion_mnist(), real_images(count, torch.float64)[0]

    def returned(solver: Solver, steps: int) -> list[float]:
        return [rms_round_trip(model, pictures, solver, steps)]

    for name, solver, ladder in (("DDIM", DDIM(), CURVE_STEPS), ("RK4", RK4(Noise()), CURVE_STEPS[:5])):
        errors[name] = [
            rows.of((name, steps, solver.calls(steps)), partial(returned, solver, steps))[-1] for steps in ladder
        ]
    print(rows.text(("method", "steps", "calls", "rms round trip")))
    floor = 1e-8
    doublings = len(CURVE_STEPS) - 1
    print(f"DDIM: slope {convergence_slope(CURVE_STEPS[2:doublings], errors['DDIM'][2:doublings], floor):.2f}")
    print(f"RK4: slope {convergence_slope(CURVE_STEPS[:5], errors['RK4'], floor):.2f}")
    reached = next((n for n, e in zip(CURVE_STEPS, errors["RK4"], strict=False) if e <= errors["DDIM"][-1]), None)
    if reached is not None:
        print(
            f"RK4 reaches DDIM's error at 1000 steps with {4 * reached} calls: {1000 / (4 * reached):.1f} times fewer"
        )


def memory(folder: Path, images: int | None) -> None:
    """The peak memory of an encoding in states, with the history of the method but without the network."""
    rows = Rows(folder, "memory")

    def peaks(solver: Solver) -> list[float]:
        short, long = (encoding_peak(solver, steps) for steps in (10, 200))
        return [short, long, long / short]

    for name, solver in METHODS.items():
        rows.of((name,), partial(peaks, solver))
    print(rows.text(("method", "10 steps [states]", "200 steps [states]", "ratio")))


def encoding_peak(solver: Solver, steps: int) -> float:
    """The peak memory of all tensors alive while a state of 10^5 numbers is encoded, in units of that state."""
    x = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0)).mul_(0.1)
    model = odediff.Model(lambda x, time: x * 0.1, odediff.VPTable.linear())
    with LiveMemory() as memory:
        odediff.encode(model, x, solver=solver, grid=GRID, steps=steps + 1, throw=False)
    return memory.peak / (x.numel() * x.element_size())


PARTS: dict[str, Callable[[Path, int | None], None]] = {
    "table": table,
    "exact": exact,
    "implicit": implicit,
    "null_text": null_text,
    "curve": curve,
    "memory": memory,
}


def real_images(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The first test images, with the classes in turn, and their labels."""
    images, labels = odediff.zoo.test_images()
    return images[:count].to(dtype), labels[:count]


def conditioned(labels: Tensor, guidance: float) -> Model:
    """The embedded network conditioned on those classes, in calls of one size, so that no row depends on others."""
    model = replace(odediff.zoo.fashion_mnist(), chunk=min(len(labels), 20))
    return model.condition(label=labels, guidance=guidance)


def rms_round_trip(model: Model, images: Tensor, solver: Solver, steps: int) -> float:
    """The rms difference between images and their round trips, on nodes uniform in log-SNR."""
    code = odediff.encode(model, images, solver=solver, grid=odediff.grid.log_snr, steps=steps + 1)
    return float(round_trip_error(images, odediff.decode(model, code)).square().mean().sqrt())


if __name__ == "__main__":
    main()
