"""Real images to noise and back, against the number of steps: ``python -m benchmarks.round_trip``."""

from __future__ import annotations

import argparse

import odediff
from odediff.app import plain_failures
from odediff.metrics import convergence_slope, round_trip_error
from odediff.table import text_table
from solvers import DDIM, RK4, Heun, Noise, Solver

IMAGES = 2
STEPS = (10, 20, 40, 80, 160, 320, 640)
ASYMPTOTIC = {"DDIM": 40, "Heun": 10}
"""The number of steps from which each slope is fitted; coarser grids are not asymptotic yet."""
FLOOR_STEPS = 1000


def main() -> None:
    """Print the table, or one clear line."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with plain_failures():
        show()


def show() -> None:
    """Print the errors, the floor and the fitted slopes."""
    rows, errors = [], {}
    for name, solver in (("DDIM", DDIM()), ("Heun", Heun(line=Noise()))):
        errors[name] = [round_trip(solver, steps) for steps in STEPS]
        rows += [(name, steps, error) for steps, error in zip(STEPS, errors[name], strict=True)]
    floor = round_trip(RK4(line=Noise()), FLOOR_STEPS)
    print(text_table(("solver", "steps", "rms round trip"), [*rows, ("RK4 (the floor)", FLOOR_STEPS, floor)]))
    for name, begin in ASYMPTOTIC.items():
        first = STEPS.index(begin)
        slope = convergence_slope(STEPS[first:], errors[name][first:], floor)
        print(f"{name}: slope {slope:.2f} from {begin} steps on")


def round_trip(solver: Solver, steps: int) -> float:
    """The rms difference between images and their reconstructions; float64 states, nodes uniform in log-SNR."""
    model = odediff.zoo.fashion_mnist()
    images = odediff.zoo.test_images()[0][:IMAGES].double()
    code = odediff.encode(model, images, solver=solver, grid=odediff.grid.log_snr, steps=steps + 1)
    return float(round_trip_error(images, odediff.decode(model, code)).square().mean().sqrt())


if __name__ == "__main__":
    main()
