"""``task=joint``: one marginal law, many joint laws of the noise and the data."""

from __future__ import annotations

import math
from typing import Any

import torch
from omegaconf import DictConfig
from scipy.stats import kstest
from torch import Tensor

from odediff.pictures import joint_laws
from odediff.problem import ProbabilityFlow
from odediff.problems import exact_model
from odediff.run import build, refuse_unused, require_room
from odediff.sampling import make_times, sample
from odediff.table import text_table
from solvers import DDIM, Node, NoiseStream
from solvers.testing import Gaussian

DATA = Gaussian(mean=0.5, deviation=0.6)


def run(config: DictConfig, etas: list[float]) -> None:
    """Take ``samples`` noises to Gaussian data by DDIM with each eta, on the schedule of the model.

    Write joint.png, the clouds of (noise, data) with their marginals, and run.json; print the moments beside their
    closed forms.
    """
    refuse_unused(
        ("solver", "closing", "rtol", "dtype", "device", "model.guidance", "model.condition"),
        "the samples are Gaussian data, drawn by DDIM with each of task.etas=[0,1,...]",
    )
    run, count = build(config), config.samples
    if not etas:
        raise ValueError("task.etas=[] leaves nothing to draw; give one or more, such as task.etas=[0,1]")
    solvers = [DDIM(eta=eta) for eta in etas]
    if count < 2:
        raise ValueError(f"samples={count} has no covariance; ask for at least 2, and for thousands to see it")
    require_room(count, (1,), torch.float64, "cpu")
    model = exact_model(DATA, run.model.path, "v")  # v is informative at both ends of every path
    times = make_times(ProbabilityFlow(model), DDIM(), run.grid, config.steps, config.nfe, "denoise")
    start, end = (model.path.node(float(t)) for t in (times[0], times[-1]))
    drawn = NoiseStream(config.seed).draw(torch.empty(count, 1, dtype=torch.float64))[0]
    noise = DATA.flow(Node(0.0, 0.0, 1.0), start, drawn)
    found: list[dict[str, Any]] = []
    ends: list[Tensor] = []
    for solver in solvers:
        data = sample(model, noise=noise, solver=solver, grid=times, seed=config.seed, progress=run.progress)
        found.append({"eta": solver.eta, **moments(noise[:, 0], data[:, 0], covariance(start, end, solver.eta))})
        ends.append(data[:, 0])
    spreads = [(float(node.alpha) * DATA.mean, spread(node)) for node in (start, end)]
    joint_laws(
        run.folder / "joint.png",
        [(noise[:, 0], end) for end in ends],
        [
            f"eta = {row['eta']:g}\ncovariance {row['covariance']:.3f} (closed form {row['closed_form']:.3f})"
            for row in found
        ],
        spreads,
        "The same marginals, another joint law for every eta",
    )
    run.record({"solver": "DDIM", "nfe": len(times) - 1, "mean": DATA.mean, "deviation": DATA.deviation, "laws": found})
    print(
        f"Gaussian data of mean {DATA.mean:g} and deviation {DATA.deviation:g}, {count} samples, {len(times) - 1} steps"
    )
    print(text_table(tuple(found[0]), [tuple(row.values()) for row in found]))
    print(f"picture and run.json in {run.folder}")


def spread(node: Node) -> float:
    """The standard deviation of the noisy data at ``node``."""
    return math.hypot(node.alpha * DATA.deviation, node.sigma)


def covariance(a: Node, b: Node, eta: float) -> float:
    """Cov(x_a, x_b) of Gaussian data, from noise at a to data at b, in the limit of many steps of DDIM(eta).

    In y = x/alpha and v = s^2 the method is, in that limit, the reverse diffusion ``dy = -(1 + eta^2)/2 (y - m)/(d^2 +
    v) |dv| + eta dW(|dv|)`` as v falls from v_a to v_b: a linear equation whose mean shrinks by ``((d^2 + v_b)/(d^2 +
    v_a))^p, p = (1 + eta^2)/2``, while y_a has the variance d^2 + v_a. The ODE (p = 1/2) makes the correlation 1, DDPM
    (p = 1) the one of the forward chain. Written with the deviations of x, alpha sqrt(d^2 + v), it is finite at alpha_a
    = 0: ``spread_a^(1 - eta^2) alpha_a^(eta^2) spread_b^(1 + eta^2) alpha_b^(-eta^2)``.
    """
    share = eta**2
    of_noise = spread(a) ** (1 - share) * float(a.alpha) ** share
    return of_noise * spread(b) ** (1 + share) * float(b.alpha) ** -share


def moments(noise: Tensor, data: Tensor, closed_form: float) -> dict[str, float]:
    """The data's moments, the p-value of its law, and the covariance with its distance from the closed form.

    The distance is in standard errors, ``sqrt((Var(x) Var(y) + Cov^2) / n)`` for Gaussian pairs.
    """
    found = float(torch.cov(torch.stack((noise, data)))[0, 1])
    error = math.sqrt((float(noise.var() * data.var()) + closed_form**2) / len(data))
    return {
        "mean": float(data.mean()),
        "deviation": float(data.std()),
        "p_value": float(kstest(data.numpy(), "norm", (DATA.mean, DATA.deviation)).pvalue),
        "covariance": found,
        "closed_form": closed_form,
        "standard_errors_off": (found - closed_form) / error,
    }
