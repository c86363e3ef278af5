"""The index of a table, to a fraction of an entry: is the network told one too many or one too few?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from odediff.doctor.evidence import LEVELS, Answer, Reading, ask, mean_square
from odediff.doctor.hypotheses import telling, told
from odediff.doctor.report import Finding
from odediff.doctor.verdict import Verdict
from odediff.model import Model
from odediff.schedule import VPTable
from solvers import Node, NoiseStream, combine

STEPS = (0.11, 0.097, 0.087, 0.08, 0.073)
"""The changes in log sigma from one entry to the next at the entries to test (6 to 10 of DDPM's table).

Further from the data one entry hardly matters; nearer to it, networks are not trained well enough.
"""
LEAST_ROWS = 32
"""The least number of rows to test on; fewer images are repeated."""


def check_offset(verdict: Verdict, images: Tensor, seed: int) -> Iterator[Finding]:
    """Find where between the entries of a table the network does best: the vertex of a parabola through three times.

    ``E(d) = E(0) + slope d + curvature d^2 / 2`` for a network told d = -1, 0, 1 entries more, in units of E(0) and
    summed over a few entries; the vertex is at -slope / curvature, its standard error from the samples' influences.
    """
    model, path = verdict.declared.model, verdict.declared.model.path
    clock = told(model)
    if not isinstance(path, VPTable) or abs(clock(1.0) - clock(1.0 - 1 / path.T) - 1) > 1e-6:
        return
    if verdict.best != verdict.declared:
        yield Finding("time offset", "cannot tell", "not tested", "fix what is wrong above, and test again")
        return
    repeated = torch.arange(len(images), device="cpu").repeat(math.ceil(LEAST_ROWS / len(images)))
    data, rows = images[repeated.to(images.device)], model.rows(repeated)
    stream = NoiseStream(seed, counter=LEVELS)
    if not (entries := _sensitive_entries(path)):
        yield Finding("time offset", "cannot tell", "not tested", "a table of two entries has no entry between others")
        return
    slopes, curvatures = [], []
    for n in entries:
        node = path.node(n / path.T)
        noise, stream = stream.draw(data)
        x = combine((node.alpha, data), (node.sigma, noise))
        early, here, late = (_error_when_told(rows, node, x, noise, verdict.reading, d) for d in (-1, 0, 1))
        slopes.append((late - early) / (2 * here.mean()))
        curvatures.append((late + early - 2 * here) / here.mean())
    yield _judge(np.mean(slopes, axis=0), np.mean(curvatures, axis=0), ", ".join(map(str, entries)))


def _judge(slope: np.ndarray, curvature: np.ndarray, entries: str) -> Finding:
    """The finding from each sample's slope and curvature."""
    root = math.sqrt(len(slope))
    if curvature.mean() <= 3 * curvature.std(ddof=1) / root:
        remedy = "the network hardly uses its time near the data, where one entry would matter"
        return Finding("time offset", "cannot tell", f"no best time at entries {entries}", remedy)
    best = -slope.mean() / curvature.mean()
    error = (slope + best * curvature).std(ddof=1) / (root * curvature.mean())
    measured = f"does best {best:+.2f} +- {error:.2f} entries from the declared time, at entries {entries}"
    if abs(abs(best) - 0.5) < 2 * error:
        return Finding("time offset", "cannot tell", measured, "give more images, or set samples higher")
    if abs(best) < 0.5:
        return Finding("time offset", "ok", measured)
    counts = "from 0" if best < 0 else "from 1"
    remedy = f"the index is off: tell the network one {'less' if best < 0 else 'more'}, as if it counted {counts}"
    return Finding("time offset", "wrong", measured, remedy)


def _error_when_told(model: Model, node: Node, x: Tensor, noise: Tensor, reading: Reading, later: int) -> np.ndarray:
    clock = told(model)
    output = ask(telling(model, lambda t: clock(t) + later), node, x)
    return mean_square(Answer(node, x, output, noise).implied_noise(reading) - noise)


def _sensitive_entries(path: VPTable) -> list[int]:
    """The entries, each with neighbours, where the next one differs by about `STEPS` in log sigma."""
    log_sigma = 0.5 * np.log1p(-path.alphas_cumprod)
    n = np.arange(2, path.T)
    steps = np.log(np.diff(log_sigma)[1:])
    return sorted({int(n[np.abs(steps - math.log(step)).argmin()]) for step in STEPS}) if len(n) else []
