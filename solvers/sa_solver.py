"""Stochastic Adams methods: SA-Solver, with SDE-DPM-Solver++ (1, 2M, 3M) as its settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from torch import Tensor

from solvers.arguments import as_number, require_whole
from solvers.exponential import start_noise
from solvers.exponential_runge_kutta import require_exponential
from solvers.lines import Data, Line, Noise, singular_step
from solvers.multistep import CLOSE
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node, PathODE
from solvers.phi import phi
from solvers.requests import requests
from solvers.solver import Law, Past, Solver, Step, require_path, require_run
from solvers.sums import combine

HIGHEST = 4
PURE_NOISE = 1e-8
"""The alpha below which a node is pure noise up to rounding, and its log-SNR that of a rounding error."""


class Coefficients(NamedTuple):
    """What a step needs of the grid.

    ``state`` is the coefficient of the state, ``std`` that of the fresh noise, and ``weights`` those of the slopes,
    newest first, which also correct the state at the start. ``correction`` are the weights of the slopes, first the one
    at the end of the step, in the difference of the corrected state there from the predicted one. ``levels`` are the
    log-SNRs of the predictions kept after the step. ``frozen`` marks a step at a singular node, whose ``weights`` are
    those of x0 and eps.
    """

    state: float
    std: float
    weights: tuple[float, ...]
    correction: tuple[float, ...]
    levels: tuple[float, ...]
    frozen: bool = False


class Run(NamedTuple):
    """A run: its noise, the coefficients of all steps, the next one's number; past slopes, their log-SNRs and line."""

    stream: NoiseStream
    steps: tuple[Coefficients, ...]
    next: int
    slopes: tuple[Tensor, ...]
    levels: tuple[float, ...]
    line: Line


@dataclass(frozen=True)
class SASolver(Solver):
    """The stochastic Adams method in ``lambda = log(alpha/sigma)`` (Xue et al. 2023, "SA-Solver").

    The SDEs with the path's marginals differ by their amount of noise, tau. With h = lambda_b - lambda_a and tau
    constant over a step, on the data line (slope x0) and on the noise line (slope eps)

        x_b = (sigma_b/sigma_a) e^{-tau^2 h} x_a + sigma_b sqrt(1 - e^{-2 tau^2 h}) z
              + (1 + tau^2) sigma_b integral e^{lambda - tau^2 (lambda_b - lambda)} x0 dlambda
        x_b = (alpha_b/alpha_a) x_a + tau sigma_b sqrt(e^{2h} - 1) z
              - (1 + tau^2) alpha_b integral e^{-lambda} eps dlambda

    The slope is a polynomial through ``predictor_order`` past ones: the predictor. With ``corrector_order`` q > 0 the
    call at b, which the next step needs anyway, corrects x_b by the polynomial through that slope and q - 1 past ones,
    with the same draw z, so that the two differ by slopes alone; the last state is a prediction. tau = 1 where ``s_min
    <= s_a <= s_max`` and 0 elsewhere is the paper's advice, within s of 0.05 to 1 for CIFAR-10. k-diffusion's eta is
    tau^2.

    SDE-DPM-Solver++ (Lu et al. 2022, "DPM-Solver++", section 5) is ``corrector_order=0`` with tau = 1: of order 1 it is
    ``DDIM(eta=1)``. Published forms that are not the Adams quadrature are settings:

    - ``form="midpoint"``: SDE-DPM-Solver++(2M): phi_1/2 instead of phi_2 in steps that read two slopes;
    - ``form="k_diffusion"``: its 3M: the second difference without its factor 2, so that phi_3 counts half;
    - ``form="diffusers"``: 3M as in diffusers' multistep scheduler, after a start by midpoint: besides that factor, the
      1/2 in its last weight, ``(1 - e^{-2h} - 2h)/(2h)^2 - 1/2``, has the wrong sign; on the data line only;
    - ``form="reference"``: the code of SA-Solver and diffusers: 1/2 instead of phi_2 where two slopes are read.

    On a grid with fewer steps than ``lower_order_below`` no predictor reads more predictions than there are steps to
    the end, including its own and the closing one, and no corrector more than one beyond: infinite for SA-Solver's
    ``lower_order_final``, 15 for that of SDE-DPM-Solver++.

    A step that leaves or reaches a node without a log-SNR (sigma = 0; alpha = 0, on the noise line alpha below 1e-3)
    freezes both predictions: ``x_b = alpha_b x0 + sigma_b r eps + sigma_b sqrt(1 - r^2) z`` with ``r =
    (s_b/s_a)^{tau^2}``; the history begins after it. All samples share their nodes. The noise within a step limits the
    weak order to 2 whatever the degree of the polynomials, and that of 3M in the form "diffusers" to 1.
    """

    law: ClassVar[Law] = "weak"
    line: Line = Data()
    predictor_order: int = 2
    corrector_order: int = 2
    tau: float = 1.0
    s_min: float = 0.0
    s_max: float = math.inf
    form: Literal["adams", "midpoint", "k_diffusion", "diffusers", "reference"] = "adams"
    lower_order_below: float = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        require_exponential(self, self.line)
        for name, lowest in (("predictor_order", 1), ("corrector_order", 0)):
            require_whole(f"SASolver: {name}", getattr(self, name), lowest, HIGHEST)
        if not 0 < as_number(self.tau) < math.inf:
            raise ValueError(
                f"SASolver: tau={self.tau!r} must be positive and finite; tau = 0 is the ODE, for deterministic solvers"
            )
        if not 0 <= as_number(self.s_min) <= as_number(self.s_max):
            raise ValueError(f"SASolver: s_min={self.s_min!r} and s_max={self.s_max!r}: give 0 <= s_min <= s_max")
        if not as_number(self.lower_order_below) >= 0:
            raise ValueError(
                f"SASolver: lower_order_below={self.lower_order_below!r} must be a number of steps; 0 keeps the order "
                "to the end"
            )
        if self.form not in ("adams", "midpoint", "k_diffusion", "diffusers", "reference"):
            raise ValueError(
                f'SASolver: form={self.form!r} is unknown; use "adams", "midpoint", "k_diffusion", "diffusers" or '
                '"reference"'
            )
        if self.corrector_order and self.form not in ("adams", "reference"):
            raise ValueError(
                f"SASolver: form={self.form!r} belongs to SDE-DPM-Solver++, without a corrector; set corrector_order=0"
            )
        if self.form == "diffusers" and self.predictor_order > 2 and isinstance(self.line, Noise):
            raise ValueError(
                f'SASolver: form="diffusers" with predictor_order={self.predictor_order!r} diverges on the noise line; '
                'use line=Data(), as diffusers does, or form="adams"'
            )

    @property
    def order(self) -> int:  # type: ignore[override]
        """The weak order."""
        if self.form == "diffusers" and self.predictor_order == 3:
            return 1
        return min(2, self.corrector_order or self.predictor_order)

    @property
    def reads_past(self) -> bool:
        """False: the noise at earlier nodes would have to be known as well."""
        return False

    @property
    def one_step(self) -> bool:
        """Whether no step reads a second prediction."""
        return self.predictor_order == 1 and self.corrector_order == 0

    @property
    def carries_on(self) -> bool:
        """Whether the order is kept to the end of a grid."""
        return self.lower_order_below == 0

    @property
    def deterministic(self) -> bool:
        """False: every step draws noise."""
        return False

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """SA-Solver on both lines and with its advice, SDE-DPM-Solver++ in its forms."""
        return [
            cls(),
            cls(line=Noise()),
            cls(predictor_order=3, corrector_order=4, tau=0.6, s_min=0.5, s_max=2.0),
            cls(form="reference"),
            cls(predictor_order=1, corrector_order=0),
            cls(corrector_order=1),
            cls(corrector_order=0, form="midpoint"),
            cls(predictor_order=3, corrector_order=0),
            cls(predictor_order=3, corrector_order=0, form="k_diffusion"),
            cls(predictor_order=3, corrector_order=0, form="diffusers"),
            cls(predictor_order=3, corrector_order=4, lower_order_below=10),
        ]

    def start(
        self,
        ode: ODE,
        nodes: Sequence[Node],
        x: Tensor,
        *,
        stream: NoiseStream | None = None,
        past: Past = (),
        state: Any = None,
    ) -> Run:
        """Plan the coefficients of every step."""
        require_path(self, ode)
        require_run(self, state, Run)
        if state is not None and state.line != self.line:
            raise ValueError(
                f"state: it has slopes along {state.line}, and {self} reads them along {self.line}; "
                "pass the state of a solve on the same line"
            )
        stream = start_noise(self, nodes, stream, state.stream if state is not None else None)
        levels = state.levels if state is not None else ()
        correction = state.steps[state.next - 1].correction if state is not None and state.next else ()
        steps: list[Coefficients] = []
        total = len(nodes) - 1 + requests(ode).denoised
        for done, (a, b) in enumerate(pairwise(nodes)):
            most = total - done if total < self.lower_order_below else HIGHEST
            steps.append(self._coefficients(ode, a, b, levels, correction, most))
            levels, correction = steps[-1].levels, steps[-1].correction
        slopes, levels = (state.slopes, state.levels) if state is not None else ((), ())
        return Run(stream, tuple(steps), 0, slopes, levels, self.line)

    def step(self, ode: PathODE, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """Predict at a; move to b, with the state at a corrected by that call."""
        coefficients: Coefficients = state.steps[state.next]
        prediction = ode.predict(a, x)
        z, stream = state.stream.draw(x)
        following = state._replace(stream=stream, next=state.next + 1, levels=coefficients.levels)
        if coefficients.frozen:
            mean = prediction.mix(*coefficients.weights)
            return Step(combine((1.0, mean), (coefficients.std, z)), state=following._replace(slopes=()))
        slopes = (self.line.slope(a, prediction), *state.slopes)
        moved = (coefficients.state, x), (coefficients.std, z)
        end = combine(*moved, *zip(coefficients.weights, slopes, strict=False))
        return Step(end, state=following._replace(slopes=slopes[: len(coefficients.levels)]))

    def _coefficients(
        self, ode: ODE, a: Node, b: Node, levels: tuple[float, ...], correction: tuple[float, ...], most: int
    ) -> Coefficients:
        """The coefficients of the step from a to b, given earlier ``levels`` and the ``correction`` of the state at a.

        The predictor reads at most ``most`` predictions, the corrector one more.
        """
        eta = self.tau**2 if self.s_min <= a.s <= self.s_max else 0.0
        singular = singular_step(self.line, ode, a, b) or singular_step(Data(), ode, a, b)
        if singular or min(a.alpha, b.alpha) < PURE_NOISE:
            r = float(b.s / a.s) ** eta
            std = float(b.sigma) * math.sqrt((1 - r) * (1 + r))
            return Coefficients(math.nan, std, (float(b.alpha), float(b.sigma) * r), (), (), frozen=True)
        h = float(b.log_snr - a.log_snr)
        levels = (float(a.log_snr), *levels)
        keep = max(self.predictor_order, self.corrector_order - 1)
        if isinstance(self.line, Data):
            scale, std = float(b.sigma / a.sigma) * math.exp(-eta * h), math.sqrt(-math.expm1(-2 * eta * h))
        else:
            scale, std = float(b.alpha / a.alpha), math.sqrt(eta * math.expm1(2 * h))
        predictor = self._weights(a, b, eta, levels[: min(self.predictor_order, most)])
        change: tuple[float, ...] = ()
        if self.corrector_order:
            corrector = self._weights(a, b, eta, (float(b.log_snr), *levels)[: min(self.corrector_order, most + 1)])
            change = tuple(c - p for c, p in zip_longest(corrector, (0.0, *predictor), fillvalue=0.0))
        weights = tuple(w + scale * c for w, c in zip_longest(predictor, correction, fillvalue=0.0))
        return Coefficients(scale, float(b.sigma) * std, weights, change, levels[:keep])

    def _weights(self, a: Node, b: Node, eta: float, levels: tuple[float, ...]) -> tuple[float, ...]:
        """The exponential integral from a to b of the polynomial through values at ``levels``, as weights of these.

        Between levels that nearly coincide there is more noise than slope: of two such levels only the newer is read.
        """
        h = float(b.log_snr - a.log_snr)
        read = [0]
        for i, level in enumerate(levels):
            if abs(level - levels[read[-1]]) >= CLOSE * h:
                read.append(i)
        data = isinstance(self.line, Data)
        factor, z = (float(b.alpha), -(1 + eta) * h) if data else (-float(b.sigma), h)
        # Row k of the inverse gives the coefficient of u^k, u = (lambda - lambda_a)/h, and k! times it the derivative.
        powers = np.vander([(levels[i] - float(a.log_snr)) / h for i in read], increasing=True)
        moments = [math.factorial(k) * moment for k, moment in enumerate(self._moments(len(read), z))]
        weights = np.zeros(len(levels))
        weights[read] = factor * (1 + eta) * h * (np.array(moments) @ np.linalg.inv(powers))
        return tuple(weights.tolist())

    def _moments(self, points: int, z: float) -> list[float]:
        """``phi_1(z), phi_2(z), ...``, or what the form replaces them with."""
        moments = [float(phi(k + 1, z)) for k in range(points)]
        if points == 2 and self.form in ("midpoint", "diffusers"):
            moments[1] = moments[0] / 2
        elif points == 2 and self.form == "reference":
            moments[1] = 1 / 2
        elif points == 3 and self.form == "k_diffusion":
            moments[2] /= 2
        elif points == 3 and self.form == "diffusers":
            moments[2] = (moments[1] + 1 / 2) / (2 * z)
        return moments
