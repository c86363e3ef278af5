"""The index of a table, to a fraction of an entry: is the network told one too many or too few?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from odediff.doctor.evidence import Answer, Reading, ask, mean_square
from odediff.doctor.hypotheses import telling, told
from odediff.doctor.report import Finding
from odediff.doctor.verdict import Verdict
from odediff.model import Model
from odediff.schedule import VPTable
from solvers import Node, combine

STEPS = (0.09, 0.075, 0.06, 0.05)
"""What one entry changes in log sigma at the entries to test: below, one does not matter; above, networks are rough."""
REACH = 0.2
"""How far from the declared time the network is asked, in log sigma."""
LEAST_ROWS = 48


def check_offset(verdict: Verdict, images: Tensor, seed: int) -> Iterator[Finding]:
    """Where between the entries of a table the network does best: the vertex of a parabola through three times.

    ``E(d) = E(0) + slope d + curvature d^2 / 2`` for a network told d entries more, summed over a few entries, each in
    units of E(0); d = -slope / curvature, with the standard error from the samples' influences.
    """
    model, path = verdict.declared.model, verdict.declared.model.path
    clock = told(model)
    if not isinstance(path, VPTable) or abs(clock(1.0) - clock(1.0 - 1 / path.T) - 1) > 1e-6:
        return
    if verdict.best != verdict.declared:
        yield Finding("time offset", "cannot tell", "not tested", "mend what is wrong above, and ask again")
        return
    repeated = torch.arange(len(images)).repeat(math.ceil(LEAST_ROWS / len(images)))
    data, rows = images[repeated.to(images.device)], model.rows(repeated)
    random = torch.Generator().manual_seed(seed + 1)
    entries = _sensitive_entries(path)
    slopes, curvatures = [], []
    for n, reach in entries:
        node = path.node(n / path.T)
        noise = torch.randn(data.shape, generator=random, dtype=data.dtype).to(data.device)
        x = combine((node.alpha, data), (node.sigma, noise))
        early, here, late = (_error_when_told(rows, node, x, noise, verdict.reading, d) for d in (-reach, 0, reach))
        slopes.append((late - early) / (2 * reach * here.mean()))
        curvatures.append((late + early - 2 * here) / (reach**2 * here.mean()))
    slope, curvature = np.mean(slopes, axis=0), np.mean(curvatures, axis=0)
    yield _offset_finding(slope, curvature, ", ".join(str(n) for n, _ in entries))


def _offset_finding(slope: np.ndarray, curvature: np.ndarray, entries: str) -> Finding:
    root = math.sqrt(len(slope))
    if curvature.mean() <= 3 * curvature.std(ddof=1) / root:
        remedy = "the network hardly reads its time near the data, where one entry would show"
        return Finding("time offset", "cannot tell", f"no best time at entries {entries}", remedy)
    best = -slope.mean() / curvature.mean()
    error = (slope + best * curvature).std(ddof=1) / (root * curvature.mean())
    measured = f"does best {best:+.2f} +- {error:.2f} entries from the declared time, at entries {entries}"
    if abs(abs(best) - 0.5) < 2 * error:
        return Finding("time offset", "cannot tell", measured, "give more images, or set samples higher")
    if abs(best) < 0.5:
        return Finding("time offset", "ok", measured)
    remedy = f"the index is off: tell the network {round(best) or math.copysign(1, best):+.0f} (time_offset of custom)"
    return Finding("time offset", "wrong", measured, remedy)


def _error_when_told(model: Model, node: Node, x: Tensor, noise: Tensor, reading: Reading, later: int) -> np.ndarray:
    clock = told(model)
    output = ask(telling(model, lambda t: clock(t) + later), node, x)
    return mean_square(Answer(node, x, output, noise).implied_noise(reading) - noise)


def _sensitive_entries(path: VPTable) -> list[tuple[int, int]]:
    """Entries near the data, and how many entries `REACH` is there."""
    log_sigma = 0.5 * np.log1p(-path.alphas_cumprod)
    steps = np.diff(log_sigma[: path.T // 2 + 2])
    reaches = np.maximum(1, np.rint(REACH / steps)).astype(int)
    n = np.arange(1, len(steps) + 1)
    inside = (n - reaches >= 1) & (n + reaches <= path.T)
    chosen = (
        {int(n[inside][np.abs(np.log(steps[inside] / step)).argmin()]) for step in STEPS} if inside.any() else set()
    )
    return [(entry, int(reaches[entry - 1])) for entry in sorted(chosen)]
