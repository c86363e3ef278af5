"""Samplers of the reverse SDE: Euler-Maruyama, DPM-Solver++ SDE and EDM's Heun. `DDIM(eta=1)` is ancestral Euler."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from solvers.arguments import as_number
from solvers.exponential import DDIM, Stochastic, direction, posterior_std, start_noise
from solvers.lines import Noise, singular_log_snr, singular_step, singular_steps
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node, PathODE
from solvers.real import anywhere, divide, log, native
from solvers.requests import requests
from solvers.runge_kutta import Heun
from solvers.solver import Law, Past, Solver, Step, require_path, require_run
from solvers.sums import combine

LARGEST_RAISE = math.sqrt(2) - 1
"""The largest relative increase of the noise level in one step of EDM: at most as much new noise as the state has."""


@dataclass(frozen=True)
class EulerMaruyama(Stochastic):
    """The Euler-Maruyama method on the reverse SDE, in the time of the path.

    The forward SDE ``dx = (alpha'/alpha) x dt + g dW`` with ``g^2 = 2 sigma (sigma' - s alpha')`` has the path's
    marginals, and so does its reverse (Song et al. 2021, "Score-based generative modeling through SDEs", eq. 6), here
    with the predictions substituted for the state and the score:

        x_b = x_a + (t_b - t_a) (alpha' x0 + (2 sigma' - s alpha') eps) + g sqrt(|t_b - t_a|) z

    A step from alpha below 1e-3 or to sigma = 0, where that field is singular, is a step of ``DDIM(eta=1)``.
    """

    order: ClassVar[int] = 1

    def step(self, ode: PathODE, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """Draw from the Gaussian of one step."""
        if np.any(Noise().singular(a)) or np.any(np.equal(b.sigma, 0)):
            return DDIM(eta=1.0).step(ode, a, b, x, state)
        alpha_rate, sigma_rate = ode.rates(a.t)
        h = b.t - a.t
        growth = sigma_rate - a.s * alpha_rate
        drift = ode.predict(a, x).mix(h * alpha_rate, h * (sigma_rate + growth))
        z, stream = state.draw(x)
        std = native(np.sqrt(-2 * h * a.sigma * growth))
        return Step(combine((1.0, x), (1.0, drift), (std, z)), state=stream)


@dataclass(frozen=True)
class DPMSolverSDE(Stochastic):
    """DPM-Solver++ in its stochastic single-step form, "DPM++ SDE" (Crowson 2022, "k-diffusion", `sample_dpmpp_sde`).

    It makes one step of ``DDIM(eta)`` to a node m halfway in log-SNR, and one from a to b with the prediction x0 at m:

        x_m = alpha_m x0(a, x_a) + direction(a, m) eps(a, x_a) + eta posterior_std(a, m) z_m
        x_b = alpha_b x0(m, x_m) + direction(a, b) (x_a - alpha_a x0(m, x_m)) / sigma_a + eta posterior_std(a, b) z_b

    Both draws are increments of one Brownian motion in s, over ``s_a - s_m`` and ``s_a - s_b``, so that z_b and z_m
    have the correlation ``sqrt((s_a - s_m)/(s_a - s_b))``, on which the weak order 2 depends. In diffusers it is
    DPMSolverSDE. A step that leaves pure noise (alpha below 1e-3) or reaches sigma = 0 is a step of ``DDIM(eta)``.

    Args:
        eta: the share of the posterior's deviation that is fresh noise, above 0 and at most 1.
    """

    order: ClassVar[int] = 2
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < as_number(self.eta) <= 1:
            raise ValueError(
                f"DPMSolverSDE: eta={self.eta!r} must lie in (0, 1]; without fresh noise use DPMSolver2(line=Data())"
            )

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """All the noise, and less."""
        return [cls(), cls(eta=0.5)]

    def calls(self, n_steps: int) -> int:
        """Two for each step."""
        return 2 * n_steps

    def calls_over(self, ode: ODE, nodes: Sequence[Node]) -> int:
        """Two for each step, one for a DDIM step."""
        return sum(1 if self._singular(a, b) else 2 for a, b in pairwise(nodes))

    def step(self, ode: PathODE, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """Predict at a and halfway; two draws."""
        if self._singular(a, b):
            return DDIM(self.eta).step(ode, a, b, x, state)
        middle = ode.node_at((a.log_snr + b.log_snr) / 2)
        mean = ode.predict(a, x).mix(middle.alpha, direction(a, middle, self.eta))
        z_middle, stream = state.draw(x)
        x0 = ode.predict(middle, combine((1.0, mean), (self.eta * posterior_std(a, middle), z_middle))).x0
        z, stream = stream.draw(x)
        repeated = divide(a.s - middle.s, a.s - b.s)
        std = self.eta * posterior_std(a, b)
        left = divide(direction(a, b, self.eta), a.sigma)
        end = combine(
            (left, x),
            (b.alpha - left * a.alpha, x0),
            (std * repeated**0.5, z_middle),
            (std * (1 - repeated) ** 0.5, z),
        )
        return Step(end, state=stream)

    def _singular(self, a: Node, b: Node) -> bool:
        return anywhere(singular_log_snr(a, b))


class Churning(NamedTuple):
    """A run of `EDMHeun`: its noise, how far a step raises the level, and the node of the largest level."""

    stream: NoiseStream
    gamma: float
    first: Node


@dataclass(frozen=True)
class EDMHeun(Solver):
    """EDM's stochastic sampler (Karras et al. 2022, algorithm 2): raise the noise level, then take a step of Heun.

    With ``gamma = min(churn / N, sqrt(2) - 1)`` where ``s_min <= s_a <= s_max``, else 0, in N steps, including a
    closing DDIM step, as in the paper:

        s_hat = (1 + gamma) s_a
        x_hat = (alpha_hat / alpha_a) x_a + alpha_hat sqrt(s_hat^2 - s_a^2) noise z

    and Heun's step on the noise line leads from x_hat, where the network is called, to b. Fresh noise of the right size
    preserves the marginals, so the weak order is Heun's. ``churn, s_min, s_max, noise`` are the paper's S_churn,
    S_tmin, S_tmax, S_noise (levels in units of s = sigma/alpha); with noise above 1, which the paper tunes to offset
    networks that remove too much, small steps do not converge to the exact marginals. The raised level is clamped to
    the largest of the grid, above which no network was trained. ``Heun(line=Noise())`` is the method without churn.
    """

    law: ClassVar[Law] = "weak"
    order: ClassVar[int] = 2
    churn: float = 40.0
    s_min: float = 0.05
    s_max: float = 50.0
    noise: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < as_number(self.churn) < math.inf:
            raise ValueError(
                f"EDMHeun: churn={self.churn!r} must be positive and finite; without churn use Heun(line=Noise())"
            )
        if not 0 <= as_number(self.s_min) <= as_number(self.s_max):
            raise ValueError(f"EDMHeun: s_min={self.s_min!r} and s_max={self.s_max!r}: give 0 <= s_min <= s_max")
        if not 0 < as_number(self.noise) < math.inf:
            raise ValueError(f"EDMHeun: noise={self.noise!r} must be positive and finite; 1 keeps the marginals")

    @property
    def deterministic(self) -> bool:
        """False: every step draws noise."""
        return False

    @property
    def carries_on(self) -> bool:
        """False: the churn of a step depends on the number of steps of its grid."""
        return False

    def calls(self, n_steps: int) -> int:
        """Two for each step."""
        return 2 * n_steps

    def calls_over(self, ode: ODE, nodes: Sequence[Node]) -> int:
        """Two for each step, one for a DDIM step."""
        return self.calls(len(nodes) - 1) - singular_steps(Noise(), ode, nodes)

    def start(
        self,
        ode: ODE,
        nodes: Sequence[Node],
        x: Tensor,
        *,
        stream: NoiseStream | None = None,
        past: Past = (),
        state: Any = None,
    ) -> Churning:
        """The noise stream, and the churn of this grid."""
        require_path(self, ode)
        require_run(self, state, Churning)
        stream = start_noise(self, nodes, stream, state.stream if state is not None else None)
        steps = len(nodes) - 1 + requests(ode).denoised
        return Churning(stream, min(self.churn / max(steps, 1), LARGEST_RAISE), nodes[0])

    def step(self, ode: PathODE, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """Raise the level and step down from there; one draw for every step, whether raised or not."""
        z, stream = state.stream.draw(x)
        if self.s_min <= a.s <= self.s_max and not np.any(singular_step(Noise(), ode, a, a)):
            raised = (1 + state.gamma) * float(a.s)
            # The ends are the nodes themselves: the largest level is met exactly, not up to round-off.
            hat = state.first if raised >= state.first.s else ode.node_at(-log(raised))
            added = self.noise * hat.alpha * math.sqrt(max(0.0, (hat.s - a.s) * (hat.s + a.s)))
            x, a = combine((hat.alpha / a.alpha, x), (added, z)), hat
        return Step(Heun(Noise()).step(ode, a, b, x).x, state=state._replace(stream=stream))
