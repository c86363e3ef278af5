"""Ways to the noise and back, on real images: ``python -m benchmarks.inversion [PART]``.

The parts are table, exact, implicit, null_text, curve and memory; without a word all of them run. The table takes 10
minutes of one thread, null-text as much, the exact methods more than eight of two, implicit four, the curve and
memory two together.
``--images N`` sets how many images each uses.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import odediff
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
"""Uniform in t too, but without the first entry, from which sigma/alpha would grow eightfold in one step."""
REFERENCE_STEPS = 201
TABLE_IMAGES, EXACT_IMAGES, IMPLICIT_IMAGES, NULL_TEXT_IMAGES, CURVE_IMAGES = 2, 100, 4, 32, 2
CURVE_STEPS = (10, 20, 40, 80, 160, 320, 640, 1000)


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("--images", type=int)
    asked = parser.parse_args()
    for name in PARTS if asked.part is None else (asked.part,):
        begun = time.perf_counter()
        print(f"\n== {name}")
        PARTS[name](asked.images)
        print(f"{time.perf_counter() - begun:.0f} s")


def table(images: int | None) -> None:
    """Every method at every guidance and number of steps; float64 states, float32 network."""
    pictures, labels = real_images(images or TABLE_IMAGES, torch.float64)
    rows: list[list[Any]] = []
    for guidance in GUIDANCE:
        model = conditioned(labels, guidance)
        exact = exact_latent(model, pictures, GRID, REFERENCE_STEPS)
        # 50 steps everywhere; the ends of the ladder where nothing guides, and that is where order shows.
        for steps in STEPS if guidance == 1 else (50,):
            for name, solver in METHODS.items():
                # Eight calls a step in 200 steps would take as long as all the others.
                if steps == 200 and name in ("McCallum-Foster, RK4", "DDIM, fixed point"):
                    continue
                record, _ = measure(model, pictures, exact, solver, {"grid": GRID, "steps": steps + 1})
                rows.append([name, f"{guidance:g}", steps, *(record[column] for column in COLUMNS)])
    print(text_table(("method", "guidance", "steps", *COLUMNS), rows))


def exact(images: int | None) -> None:
    """The exact methods on many images, 50 steps uniform in t, and plain DDIM, which must fail."""
    rows = []
    for dtype, guidance in ((torch.float64, 1.0), (torch.float32, 3.0), (torch.float32, 7.5)):
        pictures, labels = real_images(images or EXACT_IMAGES, dtype)
        model = conditioned(labels, guidance)
        for name in ("DDIM", *EXACT):
            code = odediff.encode(model, pictures, solver=METHODS[name], grid=GRID, steps=51)
            error = float((odediff.decode(model, code) - pictures).abs().max())
            rows.append((name, str(dtype).removeprefix("torch."), f"{guidance:g}", error, code.stats.nfe))
    print(text_table(("method", "states", "guidance", "largest error", "calls"), rows))


def implicit(images: int | None) -> None:
    """DDIM's exact inverse, the iteration carried to the round-off of a float64 network."""
    pictures, labels = real_images(images or IMPLICIT_IMAGES, torch.float64)
    rows: list[tuple[Any, ...]] = []
    for guidance in GUIDANCE:
        model = odediff.zoo.fashion_mnist(dtype=torch.float64).condition(label=labels, guidance=guidance)
        solver = FixedPoint(history=3)
        code = odediff.encode(model, pictures, solver=solver, grid=IMPLICIT_GRID, steps=50, throw=False)
        assert code.effort is not None
        errors = (odediff.decode(model, code) - pictures).abs().flatten(1).amax(1)
        rows += [
            (f"{guidance:g}", image, Status(int(status)).name, float(residual), int(iterations), float(error))
            for image, (status, residual, iterations, error) in enumerate(
                zip(code.effort.status, code.effort.residual, code.effort.iterations, errors, strict=True)
            )
        ]
    print(text_table(("guidance", "image", "status", "residual", "iterations", "largest error"), rows))


def null_text(images: int | None) -> None:
    """Null-text inversion at guidance 2, 3 and 7.5, against what it stands between."""
    pictures, labels = real_images(images or NULL_TEXT_IMAGES, torch.float32)
    settings: dict[str, Any] = {"grid": GRID, "steps": 51}
    rows: list[tuple[Any, ...]] = []
    for guidance in (7.5, 3.0, 2.0):
        count = len(pictures) if guidance == 7.5 else min(len(pictures), 4)
        some, model = pictures[:count], conditioned(labels[:count], guidance)
        plain = conditioned(labels[:count], 1.0)
        ways: list[tuple[str, Callable[..., Code], Model, Model]] = [
            ("DDIM at guidance 1", by_ddim, plain, plain),
            ("DDIM, encoded and decoded guided", by_ddim, model, model),
            ("DDIM, encoded at 1, decoded guided", by_ddim, plain, model),
            ("negative prompt", odediff.negative_prompt, model, model),
            ("null-text", odediff.null_text, model, model),
            ("stored offsets", odediff.direct_inversion, model, model),
        ]
        if count <= 4:
            ways.append(("one shared null", odediff.shared_null, model, model))
        unguided = None
        for name, way, encoder, decoder in ways:
            begun = time.perf_counter()
            code = way(encoder, some, **settings)
            quality = psnr(some, odediff.decode(decoder, code, edit=True))
            unguided = quality if unguided is None else unguided
            distance = quality - unguided
            seconds = round(time.perf_counter() - begun, 1)
            spread = f"{float(distance.min()):.1f} to {float(distance.max()):.1f}"
            passes = code.stats.network_evaluations
            rows.append((name, f"{guidance:g}", count, float(quality.median()), spread, passes, seconds))
    header = ("method", "guidance", "images", "PSNR [dB]", "against DDIM at 1, per image", "passes", "seconds")
    print(text_table(header, rows))
    print(f"largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def by_ddim(model: Model, images: Tensor, **settings: Any) -> Code:
    """A flipped solve."""
    return odediff.encode(model, images, solver=DDIM(), **settings)


def curve(images: int | None) -> None:
    """DDIM's table 2 as a curve: error of the way back against steps, and a method of order 3 beside it."""
    pictures, _ = real_images(images or CURVE_IMAGES, torch.float64)
    model = odediff.zoo.fashion_mnist()
    rows, errors = [], {}
    for name, solver, ladder in (("DDIM", DDIM(), CURVE_STEPS), ("RK4", RK4(Noise()), CURVE_STEPS[:5])):
        errors[name] = [rms_round_trip(model, pictures, solver, steps) for steps in ladder]
        rows += [(name, steps, solver.calls(steps), e) for steps, e in zip(ladder, errors[name], strict=True)]
    print(text_table(("method", "steps", "calls", "rms round trip"), rows))
    floor = 1e-8
    doublings = len(CURVE_STEPS) - 1
    print(f"DDIM: slope {convergence_slope(CURVE_STEPS[2:doublings], errors['DDIM'][2:doublings], floor):.2f}")
    print(f"RK4: slope {convergence_slope(CURVE_STEPS[:5], errors['RK4'], floor):.2f}")
    reached = next(n for n, e in zip(CURVE_STEPS, errors["RK4"], strict=False) if e <= errors["DDIM"][-1])
    print(f"RK4 reaches DDIM's error at 1000 steps with {4 * reached} calls: {1000 / (4 * reached):.1f} times fewer")


def memory(images: int | None) -> None:
    """The peak memory of a reversible encoding at 10 and at 200 steps, each in a process of its own."""
    program = (
        "import resource, sys, odediff, solvers\n"
        "x = odediff.zoo.test_images()[0][:{n}]\n"
        "model = odediff.Model(lambda x, time: x * 0.1, odediff.VPTable.linear())\n"
        "x = x.repeat(1, 32, 1, 1)\n"
        "odediff.encode(model, x, solver=solvers.{solver}(), grid=odediff.grid.uniform_t, steps={steps})\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
    )
    rows = []
    for solver in ("BDIA", "OBELM", "AsynchronousLeapfrog", "EDICT"):
        peaks = []
        for steps in (11, 201):
            code = program.format(n=images or 20, solver=solver, steps=steps)
            found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            peaks.append(float(found.stdout))
        rows.append((solver, peaks[0], peaks[1], peaks[1] / peaks[0]))
    print(text_table(("method", "10 steps [MiB]", "200 steps [MiB]", "ratio"), rows))


PARTS: dict[str, Callable[[int | None], None]] = {
    "table": table,
    "exact": exact,
    "implicit": implicit,
    "null_text": null_text,
    "curve": curve,
    "memory": memory,
}


def real_images(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The first test images, a class each in turn, and their labels."""
    images, labels = odediff.zoo.test_images()
    return images[:count].to(dtype), labels[:count]


def conditioned(labels: Tensor, guidance: float) -> Model:
    """The embedded network, asked for those classes; its calls are of one size, so that no row depends on others."""
    model = replace(odediff.zoo.fashion_mnist(), chunk=min(len(labels), 20))
    return model.condition(label=labels, guidance=guidance)


def rms_round_trip(model: Model, images: Tensor, solver: Solver, steps: int) -> float:
    """The rms difference between images and what comes back, on nodes uniform in log-SNR."""
    code = odediff.encode(model, images, solver=solver, grid=odediff.grid.log_snr, steps=steps + 1)
    return float(round_trip_error(images, odediff.decode(model, code)).square().mean().sqrt())


if __name__ == "__main__":
    main()
