"""A measured round trip to the noise and back: the reconstruction, the noise, and the cost."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from odediff.inversion import decode, encode
from odediff.metrics import gaussianity
from odediff.model import Model
from solvers import RK4, Rotation, Solver

COLUMNS = ("latent", "with pair", "without", "mean", "std", "autocorrelation", "calls", "seconds", "failed")


def exact_latent(model: Model, images: Tensor, grid: Any, steps: int) -> Tensor:
    """The noise of images under the exact flow, approximated by RK4 on the rotation line in ``steps`` steps."""
    return encode(model, images, solver=RK4(Rotation()), grid=grid, steps=steps).x


def measure(
    model: Model, images: Tensor, exact: Tensor, solver: Solver, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], Tensor]:
    """The results of a round trip, named as in `COLUMNS`, and the reconstructed images.

    ``latent`` is the distance of the latent from ``exact``; ``with pair`` and ``without`` are those of the images from
    their reconstructions with and without the companion of a reversible method. All three are largest magnitudes over
    the samples that did not fail.
    """
    begun = time.perf_counter()
    code = encode(model, images, solver=solver, throw=False, **settings)
    again = decode(model, code, throw=False)
    seconds = time.perf_counter() - begun
    bare = decode(model, replace(code, state=None, digest=""), throw=False) if code.state is not None else None
    kept = code.status == 0
    return {
        "latent": largest((code.x - exact)[kept]),
        "with pair": largest((again - images)[kept]),
        "without": None if bare is None else largest((bare - images)[kept]),
        **gaussianity(code.x[kept]),
        "calls": code.stats.nfe,
        "seconds": round(seconds, 1),
        "failed": int((~kept).sum()),
    }, again.nan_to_num(0.0)


def largest(values: Tensor) -> float:
    """The largest magnitude; NaN if there are no values."""
    return float(values.abs().max()) if values.numel() else math.nan
