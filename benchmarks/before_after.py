"""Images to noise and back by the embedded network, for the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

import odediff
from benchmarks.sheets import Strip, tile
from odediff.config import configured_grids, configured_solvers
from odediff.metrics import round_trip_error
from solvers import SolveError

IMAGES = 4
COLUMNS = 2


def round_trips(methods: Iterable[tuple[str, str]], ceilings: Sequence[int]) -> list[Strip]:
    """The real images, then the round trip of each method with ``nfe`` calls each way.

    ``methods`` are names of solvers and grids in the configuration; unknown ones, and those that cannot be flipped, are
    left out. A note gives the rms errors, in units where images span [-1, 1].
    """
    images = odediff.zoo.test_images()[0][:IMAGES]
    strips = [Strip("real images", "before", [_pixels(images)] * len(ceilings))]
    model, solvers, grids = odediff.zoo.fashion_mnist(), configured_solvers(), configured_grids()
    for method, grid in methods:
        pictures: list[np.ndarray | None] = []
        errors = []
        for nfe in ceilings:
            try:
                code = odediff.encode(model, images, solver=solvers[method], grid=grids[grid], nfe=nfe)
                again = odediff.decode(model, code)
            except (KeyError, ValueError, SolveError):
                pictures.append(None)
                errors.append("none")
                continue
            pictures.append(_pixels(again))
            errors.append(f"{float(round_trip_error(images, again).square().mean().sqrt()):.2g}")
        if any(picture is not None for picture in pictures):
            strips.append(Strip(f"{method}, {grid}", f"rms error {' · '.join(errors)}", pictures))
    return strips


def _pixels(images: Tensor) -> np.ndarray:
    """Values in 0..255, tiled."""
    return tile(((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).flatten(1).numpy(), COLUMNS)
