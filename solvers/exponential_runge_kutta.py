"""Exponential Runge-Kutta methods in log-SNR: tableaux of phi functions as data."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from solvers.arguments import as_number
from solvers.lines import Data, Line, Noise, singular_log_snr
from solvers.ode import ODE, Node
from solvers.phi import phi
from solvers.real import Real, native
from solvers.solver import Solver
from solvers.staged import Stage, Staged

Weight = tuple[tuple[float, int, float], ...]
"""``sum of w phi_k(c z)`` over the triples ``(w, k, c)``: the sum of two weights is their concatenation."""


class ExponentialTableau(NamedTuple):
    """Butcher's array of an explicit exponential method: stages ``c``, rows ``a`` below the diagonal, weights ``b``."""

    c: tuple[float, ...]
    a: tuple[tuple[Weight, ...], ...]
    b: tuple[Weight, ...]


def phi_(k: int, w: float = 1.0, c: float = 1.0) -> Weight:
    """The weight ``w phi_k(c z)``."""
    return ((w, k, c),)


@dataclass(frozen=True)
class ExponentialRungeKutta(Staged):
    """An explicit exponential Runge-Kutta method along the noise or the data line, in ``lambda = log(alpha/sigma)``.

    With h = lambda_b - lambda_a and stage nodes at ``lambda_a + c_i h``, on the data line ``k = x0`` and z = -h, on the
    noise line ``k = eps`` and z = h:

        x_i = (sigma_i/sigma_a) x_a + alpha_i h sum_j a_ij(z) x0_j          (data)
        x_i = (alpha_i/alpha_a) x_a - sigma_i h sum_j a_ij(z) eps_j         (noise)

    and likewise ``x_b`` with the weights b. The weights are sums of phi functions, exact for the exponential factor of
    the integrals in `solvers.lines`. A step that leaves or reaches a node where lambda degenerates, at the data
    (sigma = 0) or at pure noise (alpha below 1e-3), is a DDIM step.
    """

    line: Line = Data()

    def __post_init__(self) -> None:
        require_exponential(self, self.line)

    @property
    @abstractmethod
    def tableau(self) -> ExponentialTableau:
        """Stages and weights."""

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """Both lines."""
        return [cls(line=line) for line in (Noise(), Data())]

    @property
    def calls_per_step(self) -> int:
        """The number of stages."""
        return len(self.tableau.c)

    def singular(self, ode: ODE, a: Node, b: Node) -> bool | np.ndarray:
        """Whether a or b is one of the ends, where log-SNR degenerates, on either line."""
        return singular_log_snr(a, b)

    def stages(self, ode: ODE, a: Node, b: Node) -> tuple[Stage, ...]:
        """The tableau's stages, at ``lambda_a + c_i h``."""
        return exponential_stages(self.line, self.tableau, ode, a, b)


def require_exponential(solver: Solver, line: Line | None) -> None:
    """Raise `ValueError` unless the integral along ``line`` has an exponential factor in log-SNR."""
    if not isinstance(line, Noise | Data):
        raise ValueError(f"{type(solver).__name__}: line={line!r} has no exponential in log-SNR; use Noise() or Data()")


def exponential_stages(line: Line, tableau: ExponentialTableau, ode: ODE, a: Node, b: Node) -> tuple[Stage, ...]:
    """The stages of ``tableau`` between two regular nodes."""
    start, h = a.log_snr, b.log_snr - a.log_snr
    data = isinstance(line, Data)
    z = -h if data else h
    stages = []
    for c, row in zip((*tableau.c, 1.0), (*tableau.a, tableau.b), strict=True):
        # The ends are the nodes themselves: a round trip through lambda would move them by round-off.
        node = (b if c else a) if c in (0.0, 1.0) else ode.node_at(start + c * h)  # type: ignore[attr-defined]
        factor = node.alpha * h if data else -node.sigma * h
        weights = tuple((j, factor * _value(w, z)) for j, w in enumerate(row) if w)
        stages.append(Stage(node, native(np.divide(line.scale(node), line.scale(a))), weights))
    return tuple(stages)


def _value(weight: Weight, z: Real) -> Real:
    return sum((w * phi(k, c * z) for w, k, c in weight), start=0.0)


def within_step(name: str, setting: str, value: float) -> None:
    """Raise `ValueError` unless a stage at that fraction of a step lies within it."""
    if not 0 < as_number(value) <= 1:
        raise ValueError(f"{name}: {setting}={value!r} must lie in (0, 1]: it is the stage's place in the step")


@dataclass(frozen=True)
class RES2S(ExponentialRungeKutta):
    """The refined exponential solver with two stages, of order 2: the second at ``lambda_a + c2 h``.

    Zhang et al. 2023, "Improved order analysis and design of exponential integrator for diffusion models sampling". It
    meets the stiff order conditions, which DPM-Solver++(2S) misses by using phi_1/2 instead of phi_2. With c2 = 1 it is
    ETDRK2.
    """

    order: ClassVar[int] = 2
    c2: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        within_step("RES2S", "c2", self.c2)

    @property
    def tableau(self) -> ExponentialTableau:
        """Hochbruck & Ostermann 2005, eq. 5.3."""
        c = self.c2
        return ExponentialTableau((0.0, c), ((), (phi_(1, c, c),)), (phi_(1) + phi_(2, -1 / c), phi_(2, 1 / c)))


@dataclass(frozen=True)
class RES3S(ExponentialRungeKutta):
    """The refined exponential solver with three stages, of order 3 (Zhang et al. 2023), at ``c2`` and ``c3``.

    Hochbruck & Ostermann 2005, "Explicit exponential Runge-Kutta methods for semilinear parabolic problems", eq. 5.8.
    """

    order: ClassVar[int] = 3
    c2: float = 1 / 2
    c3: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        within_step("RES3S", "c2", self.c2)
        within_step("RES3S", "c3", self.c3)
        if self.c2 in (self.c3, 2 / 3):
            raise ValueError(f"RES3S: c2={self.c2!r} must be neither c3={self.c3!r} nor 2/3; 1/2 and 1 are usual")

    @property
    def tableau(self) -> ExponentialTableau:
        """The family's tableau, with its parameter gamma eliminated."""
        c2, c3 = self.c2, self.c3
        gamma = (3 * c3**2 - 2 * c3) / ((2 - 3 * c2) * c2)
        total = gamma * c2 + c3
        a32 = phi_(2, gamma * c2, c2) + phi_(2, c3**2 / c2, c3)
        a31 = phi_(1, c3, c3) + tuple((-w, k, c) for w, k, c in a32)
        b2, b3 = phi_(2, gamma / total), phi_(2, 1 / total)
        b1 = phi_(1) + phi_(2, -(gamma + 1) / total)
        return ExponentialTableau((0.0, c2, c3), ((), (phi_(1, c2, c2),), (a31, a32)), (b1, b2, b3))


@dataclass(frozen=True)
class FixedTableau(ExponentialRungeKutta):
    """A method without parameters."""

    array: ClassVar[ExponentialTableau]

    @property
    def tableau(self) -> ExponentialTableau:
        """The method's array."""
        return self.array


@dataclass(frozen=True)
class ETDRK2(FixedTableau):
    """Exponential time differencing of order 2 (Cox & Matthews 2002, eq. 22): the trapezoidal relative of Heun."""

    order: ClassVar[int] = 2
    array: ClassVar[ExponentialTableau] = ExponentialTableau(
        (0.0, 1.0), ((), (phi_(1),)), (phi_(1) + phi_(2, -1.0), phi_(2))
    )


@dataclass(frozen=True)
class ETDRK3(FixedTableau):
    """Exponential time differencing of order 3 (Cox & Matthews 2002, eqs. 23 to 25)."""

    order: ClassVar[int] = 3
    array: ClassVar[ExponentialTableau] = ExponentialTableau(
        (0.0, 1 / 2, 1.0),
        ((), (phi_(1, 1 / 2, 1 / 2),), (phi_(1, -1.0), phi_(1, 2.0))),
        (
            phi_(1) + phi_(2, -3.0) + phi_(3, 4.0),
            phi_(2, 4.0) + phi_(3, -8.0),
            phi_(2, -1.0) + phi_(3, 4.0),
        ),
    )


@dataclass(frozen=True)
class ETDRK4(FixedTableau):
    """Exponential time differencing of order 4 (Cox & Matthews 2002, eqs. 26 to 29): the relative of RK4."""

    order: ClassVar[int] = 4
    array: ClassVar[ExponentialTableau] = ExponentialTableau(
        (0.0, 1 / 2, 1 / 2, 1.0),
        (
            (),
            (phi_(1, 1 / 2, 1 / 2),),
            ((), phi_(1, 1 / 2, 1 / 2)),
            # The paper's phi_1(z/2) (e^(z/2) - 1)/2, by e^(z/2) phi_1(z/2) + phi_1(z/2) = 2 phi_1(z).
            (phi_(1) + phi_(1, -1.0, 1 / 2), (), phi_(1, 1.0, 1 / 2)),
        ),
        (
            phi_(1) + phi_(2, -3.0) + phi_(3, 4.0),
            phi_(2, 2.0) + phi_(3, -4.0),
            phi_(2, 2.0) + phi_(3, -4.0),
            phi_(2, -1.0) + phi_(3, 4.0),
        ),
    )


_A52 = phi_(2, 1 / 2, 1 / 2) + phi_(3, -1.0) + phi_(2, 1 / 4) + phi_(3, -1 / 2, 1 / 2)
_A54 = phi_(2, -1 / 4, 1 / 2) + phi_(3, 1.0) + phi_(2, -1 / 4) + phi_(3, 1 / 2, 1 / 2)


@dataclass(frozen=True)
class HochbruckOstermann4(FixedTableau):
    """Five stages of stiff order 4: unlike ETDRK4, it keeps its order on stiff problems.

    Hochbruck & Ostermann 2005, "Explicit exponential Runge-Kutta methods for semilinear parabolic problems", eq. 5.19.
    """

    order: ClassVar[int] = 4
    array: ClassVar[ExponentialTableau] = ExponentialTableau(
        (0.0, 1 / 2, 1 / 2, 1.0, 1 / 2),
        (
            (),
            (phi_(1, 1 / 2, 1 / 2),),
            (phi_(1, 1 / 2, 1 / 2) + phi_(2, -1.0, 1 / 2), phi_(2, 1.0, 1 / 2)),
            (phi_(1) + phi_(2, -2.0), phi_(2), phi_(2)),
            (
                phi_(1, 1 / 2, 1 / 2) + tuple((-w, k, c) for w, k, c in (*_A52, *_A52, *_A54)),
                _A52,
                _A52,
                _A54,
            ),
        ),
        (
            phi_(1) + phi_(2, -3.0) + phi_(3, 4.0),
            (),
            (),
            phi_(2, -1.0) + phi_(3, 4.0),
            phi_(2, 4.0) + phi_(3, -8.0),
        ),
    )
