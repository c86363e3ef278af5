"""Exponential Runge-Kutta methods in log-SNR: tableaux of phi functions as data."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from solvers.lines import Data, Line, Noise, singular_step
from solvers.ode import ODE, Node
from solvers.phi import phi
from solvers.real import Real, native
from solvers.solver import Solver
from solvers.staged import Plan, Stage, Staged

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


EULER = ExponentialTableau((0.0,), ((),), (phi_(1),))
"""Freeze the slope's part that is not exponential: DDIM."""


@dataclass(frozen=True)
class ExponentialRungeKutta(Staged):
    """An explicit exponential Runge-Kutta method along the noise or the data line, in ``lambda = log(alpha/sigma)``.

    With h = lambda_b - lambda_a and stage nodes at ``lambda_a + c_i h``, on the data line ``k = x0`` and z = -h, on the
    noise line ``k = eps`` and z = h:

        x_i = (sigma_i/sigma_a) x_a + alpha_i h sum_j a_ij(z) x0_j          (data)
        x_i = (alpha_i/alpha_a) x_a - sigma_i h sum_j a_ij(z) eps_j         (noise)

    and so for ``x_b`` with the weights b. The weights are sums of phi functions, exact for the exponential factor of
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
        """At both ends, on either line: there log-SNR is infinite."""
        return singular_step(Noise(), ode, a, b) | singular_step(Data(), ode, a, b)

    def stages(self, ode: ODE, a: Node, b: Node) -> tuple[Stage, ...]:
        """The tableau's, at ``lambda_a + c_i h``."""
        return exponential_stages(self.line, self.tableau, ode, a, b)


def require_exponential(solver: Solver, line: Line | None) -> None:
    """Raise `ValueError` unless the integral along ``line`` has an exponential in log-SNR."""
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
        weights = tuple((j, native(np.multiply(factor, _value(w, z)))) for j, w in enumerate(row) if w)
        stages.append(Stage(node, native(np.divide(line.scale(node), line.scale(a))), weights))
    return tuple(stages)


def _value(weight: Weight, z: Real) -> Real:
    return sum((w * phi(k, c * z) for w, k, c in weight), start=0.0)


def _within(name: str, setting: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name}: {setting}={value!r} must lie in (0, 1]; the stage lies at that part of the step")


@dataclass(frozen=True)
class DPMSolver2(ExponentialRungeKutta):
    """DPM-Solver-2, of order 2 (Lu et al. 2022, "DPM-Solver", algorithm 4): one stage at ``lambda_a + r1 h``.

    On the data line it is DPM-Solver++(2S) (Lu et al. 2022, "DPM-Solver++", algorithm 1). With r1 = 1/2 on the noise
    line it is the midpoint rule whose middle is taken in log s, known as DPM-2 or KDPM2 (Karras et al. 2022, in the
    code of k-diffusion); on the same line `Midpoint` takes it in s.
    """

    order: ClassVar[int] = 2
    line: Line = Noise()
    r1: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("DPMSolver2", "r1", self.r1)

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """Both lines, and the stage at the end."""
        return [cls(), cls(line=Data()), cls(r1=1.0)]

    @property
    def tableau(self) -> ExponentialTableau:
        """Its weights are multiples of phi_1 alone."""
        r, half = self.r1, 1 / (2 * self.r1)
        first = phi_(1, 1 - half) if half != 1 else ()
        return ExponentialTableau((0.0, r), ((), (phi_(1, r, r),)), (first, phi_(1, half)))


@dataclass(frozen=True)
class DPMSolver3(ExponentialRungeKutta):
    """DPM-Solver-3 (Lu et al. 2022, "DPM-Solver", algorithm 5): stages at ``lambda_a + r1 h`` and ``lambda_a + r2 h``.

    ``form="published"`` is the paper's. ``form="taylor"`` ends with both differences of the stages (the authors' code
    has it under that name, diffusers as ``solver_type="heun"``). ``form="diffusers"`` is the default of diffusers'
    singlestep scheduler, ``solver_type="midpoint"``: the paper's end, and a second stage with phi_1/2 in the place of
    phi_2. Each has order 3 for r2 = 2/3 and order 2 for any other r2, whatever r1: the second stage makes it so.
    `RES3S` has order 3 with other stages too.
    """

    line: Line = Noise()
    r1: float = 1 / 3
    r2: float = 2 / 3
    form: Literal["published", "taylor", "diffusers"] = "published"

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("DPMSolver3", "r1", self.r1)
        _within("DPMSolver3", "r2", self.r2)
        if self.r1 == self.r2:
            raise ValueError(f"DPMSolver3: r1={self.r1!r} and r2={self.r2!r} must differ; 1/3 and 2/3 are usual")
        if self.form not in ("published", "taylor", "diffusers"):
            raise ValueError(f'DPMSolver3: form={self.form!r} is unknown; use "published", "taylor" or "diffusers"')

    @property
    def order(self) -> int:  # type: ignore[override]
        """3 for r2 = 2/3, where ``a_32 b_3 r1 = r2/4`` is the 1/6 that the third order asks for; 2 for any other."""
        return 3 if math.isclose(self.r2, 2 / 3) else 2

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """Both lines, every form, and other stages."""
        return [
            *super().variants(),
            cls(form="diffusers"),
            cls(line=Data(), r1=0.4, form="taylor"),
            cls(r2=0.9),
        ]

    @property
    def tableau(self) -> ExponentialTableau:
        """Stages and weights of the form."""
        r1, r2 = self.r1, self.r2
        tilt = phi_(2, r2**2 / r1, r2) if self.form != "diffusers" else phi_(1, r2**2 / (2 * r1), r2)
        first = phi_(1, r2, r2) + tuple((-w, k, c) for w, k, c in tilt)
        if self.form == "taylor":
            # p(u) through u = 0, r1, r2: its derivatives at 0 weigh phi_2 and phi_3.
            d1, d2 = r2 / (r1 * (r2 - r1)), -r1 / (r2 * (r2 - r1))
            e1, e2 = -2 / (r1 * (r2 - r1)), 2 / (r2 * (r2 - r1))
            b1, b2 = phi_(2, d1) + phi_(3, e1), phi_(2, d2) + phi_(3, e2)
            b0 = phi_(1) + phi_(2, -d1 - d2) + phi_(3, -e1 - e2)
        else:
            b0, b1, b2 = phi_(1) + phi_(2, -1 / r2), (), phi_(2, 1 / r2)
        return ExponentialTableau((0.0, r1, r2), ((), (phi_(1, r1, r1),), (first, tilt)), (b0, b1, b2))


@dataclass(frozen=True)
class DPMFast(Staged):
    """DPM-Solver-fast (Lu et al. 2022, "DPM-Solver", section 3.4): steps of DPM-Solver-3, then the ``last`` orders.

    The paper, and k-diffusion after it, spend a given number of calls: with ``last=(2, 1)``, ``(1,)`` or ``(2,)`` the
    steps cost 3n - 3, 3n - 2 or 3n - 1. Made for a grid that is uniform in log-SNR. One last step of order k has
    a local error of order k + 1, and that is the order of the whole.
    """

    line: Line = Noise()
    last: tuple[int, ...] = (2, 1)

    def __post_init__(self) -> None:
        require_exponential(self, self.line)
        # A configuration file gives a list.
        object.__setattr__(self, "last", tuple(self.last))
        if not set(self.last) <= {1, 2, 3}:
            raise ValueError(f"DPMFast: last={self.last!r} must hold orders of 1, 2 or 3, such as (2, 1)")

    @property
    def order(self) -> int:  # type: ignore[override]
        """What the last steps leave of 3."""
        return min((3, *(order + 1 for order in self.last)))

    @property
    def carries_on(self) -> bool:
        """Not where the end of the grid has its own orders."""
        return not self.last

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """Endings that leave order 2 and order 3."""
        return [cls(), cls(last=(2,), line=Data())]

    @property
    def calls_per_step(self) -> int:
        """Of all but the last steps."""
        return 3

    def calls(self, n_steps: int) -> int:
        """The orders' sum."""
        return sum(self._orders(n_steps))

    def singular(self, ode: ODE, a: Node, b: Node) -> bool | np.ndarray:
        """As for every exponential Runge-Kutta method."""
        return DPMSolver2(self.line).singular(ode, a, b)

    def plan(self, ode: ODE, nodes: Sequence[Node]) -> Plan:
        """Each step by the method of its order."""
        steps = []
        for order, (a, b) in zip(self._orders(len(nodes) - 1), pairwise(nodes), strict=True):
            singular = np.any(self.singular(ode, a, b))
            steps.append(None if singular else exponential_stages(self.line, self._tableau(order), ode, a, b))
        return Plan(tuple(steps), 0)

    def stages(self, ode: ODE, a: Node, b: Node) -> tuple[Stage, ...]:
        """Of a step by itself: DPM-Solver-3."""
        return exponential_stages(self.line, self._tableau(3), ode, a, b)

    def _orders(self, n_steps: int) -> tuple[int, ...]:
        return (*(3,) * (n_steps - len(self.last)), *self.last)[max(0, len(self.last) - n_steps) :]

    def _tableau(self, order: int) -> ExponentialTableau:
        return (EULER, DPMSolver2().tableau, DPMSolver3().tableau)[order - 1]


@dataclass(frozen=True)
class RES2S(ExponentialRungeKutta):
    """The refined exponential solver with two stages, of order 2: the second at ``lambda_a + c2 h``.

    Zhang et al. 2023, "Improved order analysis and design of exponential integrator for diffusion models sampling". It
    meets the stiff order conditions, which DPM-Solver++(2S) misses by phi_1/2 in the place of phi_2. With c2 = 1 it
    is ETDRK2.
    """

    order: ClassVar[int] = 2
    c2: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("RES2S", "c2", self.c2)

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
        _within("RES3S", "c2", self.c2)
        _within("RES3S", "c3", self.c3)
        if self.c2 in (self.c3, 2 / 3):
            raise ValueError(f"RES3S: c2={self.c2!r} must be neither c3={self.c3!r} nor 2/3; 1/2 and 1 are usual")

    @property
    def tableau(self) -> ExponentialTableau:
        """The family's, with its parameter gamma eliminated."""
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
    """Five stages of stiff order 4: the order stays where that of ETDRK4 falls, on stiff problems.

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
