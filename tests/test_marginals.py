"""Every sampler of the family has the marginals of the forward process at all times."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

import odediff
import solvers
from odediff import metrics
from odediff.problems import exact_model
from solvers import DDIM, DDPM, EDMHeun, EulerMaruyama, Heun, Node, Noise, NoiseStream, SASolver, Solver, Step, combine
from solvers.exponential import posterior_std
from solvers.testing import Mixture

TABLE = odediff.VPTable.linear()
COUNT = 20_000
TIMES = (0.75, 0.5, 0.25, 0.0)


def mixture() -> Mixture:
    """Three modes that are apart at t = 0.25 and merged at t = 0.75."""
    weights, deviations = (torch.tensor(v, dtype=torch.float64) for v in ([0.2, 0.5, 0.3], [0.15, 0.3, 0.2]))
    means = torch.tensor([[1.2, 0.6], [-0.8, 0.3], [0.2, -1.0]], dtype=torch.float64)
    return Mixture(weights, means, deviations)


@dataclass(frozen=True)
class TooNoisy(DDIM):
    """DDIM(eta) with its noise scaled by 1.2 and the direction term as it was."""

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        std = self.eta * posterior_std(a, b)
        prediction = ode.predict(a, x)
        z, stream = state.draw(x)
        direction = math.sqrt(b.sigma**2 - std**2)
        return Step(combine((1.0, prediction.mix(b.alpha, direction)), (1.2 * std, z)), state=stream)


def exact(t: float, seed: int, count: int = COUNT) -> torch.Tensor:
    """Samples of the forward process: alpha x0 + sigma eps."""
    node = TABLE.node(t)
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed + 1000), dtype=torch.float64)
    return node.alpha * mixture().sample(count, seed) + node.sigma * noise


@cache
def states_at(solver: Solver, stride: int, seed: int, count: int = COUNT) -> dict[float, torch.Tensor]:
    """States of a run over every ``stride``-th entry of the table, from the exact law at t = 1."""
    found: dict[float, torch.Tensor] = {}

    def keep(node: Node, x: torch.Tensor) -> None:
        if node.t in TIMES:
            found[node.t] = x

    ode = odediff.probability_flow(exact_model(mixture(), TABLE))
    times = odediff.grid.subsequence(TABLE, range(stride - 1, 1000, stride))
    solvers.solve(ode, solver, exact(1.0, seed, count).float(), times, stream=NoiseStream(seed), callback=keep)
    return found


SAMPLERS = {
    # 500 steps of a method of order 2 are nearer to the flow than 1,000 of DDIM.
    "ODE": (Heun(Noise()), 2, 1),
    "eta = 0.5": (DDIM(eta=0.5), 1, 2),
    "DDPM": (DDPM(), 1, 3),
}


def test_ode_and_stochastic_samplers_share_every_marginal():
    p_values = {
        (name, t): metrics.energy_test(states_at(*setting)[t], exact(t, seed=100 + 10 * i + k), seed=i)
        for i, (name, setting) in enumerate(SAMPLERS.items())
        for k, t in enumerate(TIMES)
    }
    adjusted = dict(zip(p_values, metrics.holm(list(p_values.values())), strict=True))
    assert len(adjusted) == 12
    assert min(adjusted.values()) > 0.05, adjusted


REVERSE_SDES = {
    "Euler-Maruyama": (EulerMaruyama(), 1, 5),
    "EDM with churn": (EDMHeun(), 5, 6),
    "SDE-DPM-Solver++(2M)": (SASolver(corrector_order=0, form="midpoint"), 5, 7),
    "SA-Solver": (SASolver(predictor_order=3, corrector_order=3), 5, 8),
}


def test_solvers_of_the_reverse_sde_have_the_marginals_of_the_forward_process():
    count = COUNT // 5
    p_values = {
        (name, t): metrics.energy_test(states_at(*setting, count)[t], exact(t, 300 + 10 * i + k, count), seed=i)
        for i, (name, setting) in enumerate(REVERSE_SDES.items())
        for k, t in enumerate(TIMES[2:])
    }
    adjusted = dict(zip(p_values, metrics.holm(list(p_values.values())), strict=True))
    assert len(adjusted) == 8
    assert min(adjusted.values()) > 0.05, adjusted


def test_the_test_of_marginals_finds_noise_that_is_too_large():
    # A fifth of the samples is enough.
    states = states_at(TooNoisy(eta=1.0), 1, 4, COUNT // 5)
    assert metrics.energy_test(states[0.25], exact(0.25, 200, COUNT // 5)) < 1e-6
