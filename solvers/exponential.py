"""DDIM and its stochastic relatives: steps with both predictions frozen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from solvers.arguments import as_number
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node, PathODE
from solvers.real import Real, divide, native
from solvers.solver import Law, Past, Solver, Step, require_path
from solvers.sums import combine


@dataclass(frozen=True)
class DDIM(Solver):
    """Freeze both predictions and move along the path: ``x_b = alpha_b x0 + sigma_b eps``.

    Song, Meng & Ermon 2021, "Denoising diffusion implicit models", eq. 12. With ``eta > 0``, part of the predicted
    noise is replaced by fresh noise (eq. 16, in the form that holds on every path):

        std = eta sigma_b sqrt(1 - (s_b / s_a)^2)
        x_b = alpha_b x0 + sqrt(sigma_b^2 - std^2) eps + std z

    The deterministic sampler is eta = 0; eta = 1 is DDPM's posterior. With eta = 0 there is no division and no
    logarithm: the step is exact at sigma = 0, at alpha = 0 and in both directions.
    """

    order: ClassVar[int] = 1
    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= as_number(self.eta) <= 1:
            raise ValueError(f"DDIM: eta={self.eta!r} must lie in [0, 1]; 0 is the deterministic sampler, 1 is DDPM")

    @property
    def law(self) -> Law:  # type: ignore[override]
        """An order for eta = 0, otherwise a weak order."""
        return "order" if self.deterministic else "weak"

    @property
    def deterministic(self) -> bool:
        """Whether eta = 0."""
        return self.eta == 0

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """The ODE, the SDE, and halfway."""
        return [cls(), cls(eta=0.5), cls(eta=1.0)]

    def start(
        self,
        ode: ODE,
        nodes: Sequence[Node],
        x: Tensor,
        *,
        stream: NoiseStream | None = None,
        past: Past = (),
        state: Any = None,
    ) -> Any:
        """With eta > 0 the state of a run is its noise stream."""
        require_path(self, ode)
        return None if self.deterministic else start_noise(self, nodes, stream, state)

    def step(self, ode: PathODE, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """Move along the path with both predictions frozen at ``a``."""
        prediction = ode.predict(a, x)
        if self.eta == 0:
            return Step(prediction.mix(b.alpha, b.sigma))
        z, stream = state.draw(x)
        mean = prediction.mix(b.alpha, direction(a, b, self.eta))
        return Step(combine((1.0, mean), (self.eta * posterior_std(a, b), z)), state=stream)


class Stochastic(Solver):
    """A sampler of the reverse SDE without a history: the state of a run is its noise stream."""

    law: ClassVar[Law] = "weak"

    @property
    def deterministic(self) -> bool:
        """False: every step draws noise."""
        return False

    def start(
        self,
        ode: ODE,
        nodes: Sequence[Node],
        x: Tensor,
        *,
        stream: NoiseStream | None = None,
        past: Past = (),
        state: Any = None,
    ) -> Any:
        """The state of a run is its noise stream."""
        require_path(self, ode)
        return start_noise(self, nodes, stream, state)


@dataclass(frozen=True)
class DDPM(Stochastic):
    """Ancestral sampling (Ho, Jain & Abbeel 2020, algorithm 2): the mean and the noise of the reverse chain.

    ``variance="small"`` is the posterior's, ``beta-tilde``: DDIM with eta = 1. ``variance="large"`` keeps that mean
    and draws the noise with the forward chain's deviation between the two nodes, ``sqrt(beta)``: the
    sigma-hat of Song, Meng & Ermon 2021, section 5. The last step, to sigma = 0, adds no noise.
    """

    order: ClassVar[int] = 1
    variance: Literal["small", "large"] = "small"

    def __post_init__(self) -> None:
        if self.variance not in ("small", "large"):
            raise ValueError(
                f'DDPM: variance={self.variance!r} is unknown; use "small", the posterior\'s, or "large", sigma-hat'
            )

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """Both variances."""
        return [cls(), cls("large")]

    def step(self, ode: PathODE, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """Draw from the reverse chain's Gaussian."""
        prediction = ode.predict(a, x)
        std = posterior_std(a, b) if self.variance == "small" else forward_std(a, b)
        z, stream = state.draw(x)
        mean = prediction.mix(b.alpha, direction(a, b, eta=1.0))
        return Step(combine((1.0, mean), (std, z)), state=stream)


def posterior_std(a: Node, b: Node) -> Real:
    """The deviation of the noisier state's posterior: ``sigma_b sqrt(1 - (s_b/s_a)^2)``, for s_b < s_a.

    Song, Meng & Ermon 2021, eq. 16 with eta = 1.
    """
    ratio = divide(b.s, a.s)
    return native(b.sigma * ((1 - ratio) * (1 + ratio)) ** 0.5)


def direction(a: Node, b: Node, eta: float) -> Real:
    """The weight of eps next to the fresh noise, ``sqrt(sigma_b^2 - eta^2 posterior_std^2)``.

    It is computed as ``sigma_b sqrt((1 - eta)(1 + eta) + (eta s_b/s_a)^2)``: the difference of two nearly equal squares
    could be negative.
    """
    ratio = divide(b.s, a.s)
    return native(b.sigma * ((1 - eta) * (1 + eta) + (eta * ratio) ** 2) ** 0.5)


def forward_std(a: Node, b: Node) -> Real:
    """The deviation that the forward chain adds from b up to a, ``sqrt(sigma_a^2 - (alpha_a sigma_b / alpha_b)^2)``.

    Zero where sigma_b = 0: the last step of the reverse chain adds no noise.
    """
    ratio = divide(b.s, a.s)
    return native((b.sigma != 0) * a.sigma * ((1 - ratio) * (1 + ratio)) ** 0.5)


def start_noise(solver: Solver, nodes: Sequence[Node], stream: NoiseStream | None, state: Any) -> NoiseStream:
    """The noise stream of a stochastic run from noise to data, carried on from ``state`` if there is one."""
    # A run over a single node is completed by the closing step.
    if len(nodes) > 1 and not np.all(nodes[0].angle > nodes[-1].angle):
        raise ValueError(
            f"times: {solver} is stochastic and runs from noise to data only; to invert, use a deterministic solver "
            "such as DDIM(eta=0)"
        )
    if state is not None and not isinstance(state, NoiseStream):
        raise TypeError(f"state: a {type(state).__name__} is not the noise of {solver}; pass its own Solution.state")
    stream = state if state is not None else stream
    if stream is None:
        raise ValueError(f"stream=None: {solver} draws noise; pass stream=solvers.NoiseStream(seed)")
    return stream
