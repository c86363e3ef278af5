"""A way to the noise and back, measured: what returns, what the noise is like, what it cost."""

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
    """The noise of images by the flow itself, as near as RK4 on the rotation line comes in ``steps`` steps."""
    return encode(model, images, solver=RK4(Rotation()), grid=grid, steps=steps).x


def measure(
    model: Model, images: Tensor, exact: Tensor, solver: Solver, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], Tensor]:
    """What a round trip gives, by the names of `COLUMNS`, and the images that came back.

    ``latent`` is the distance of the latent to ``exact``; ``with pair`` and ``without`` are those of the images to
    their reconstructions, with the companion of a reversible method and without it. All three are the largest among
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
    """The largest magnitude; NaN of nothing."""
    return float(values.abs().max()) if values.numel() else math.nan
