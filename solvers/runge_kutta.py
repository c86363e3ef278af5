"""Explicit Runge-Kutta methods: tableaux as data, one step function."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from scipy import integrate

from solvers.lines import Data, Noise, Rotation, followed
from solvers.ode import ODE, Node
from solvers.solver import Solver
from solvers.staged import Stage, Staged


class Tableau(NamedTuple):
    """Butcher's array of an explicit method: stage times ``c``, rows ``a`` below the diagonal, weights ``b``.

    Only the stages that the weights use are listed: without an error estimate, the last stage of a
    first-same-as-last pair is never evaluated.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


class Extension(NamedTuple):
    """The solution inside a step: ``z_a + h sum_i k_i sum_j weights_ij u^j`` at ``q_a + u h``, j from 1.

    The slopes are those of the stages, the one at the end of the step, and those of further stages with times ``c`` and
    rows ``a``. ``order`` is the order of the solution between its steps.
    """

    order: int
    weights: tuple[tuple[float, ...], ...]
    c: tuple[float, ...] = ()
    a: tuple[tuple[float, ...], ...] = ()


class Embedded(NamedTuple):
    """The error estimate of a pair: ``h sum_i error_i k_i``, where the last slope is the one at the end of the step.

    It decreases like ``h^power``. ``coarse``, if there is one, is a second estimate that damps the first. Without an
    ``extension``, the cubic through states and slopes has the method's order.
    """

    error: tuple[float, ...]
    power: int
    coarse: tuple[float, ...] = ()
    extension: Extension | None = None


@dataclass(frozen=True)
class RungeKutta(Staged):
    """An explicit Runge-Kutta method, on x(t) as written (``line=None``) or along a line.

    On a line (z = x/scale, dz/dq = slope), with h = q_b - q_a and stage nodes at ``q_a + c_i h``:

        x_i = (scale_i/scale_a) x_a + scale_i h sum_j a_ij k_j,     k_i = slope(x_i)
        x_b = (scale_b/scale_a) x_a + scale_b h sum_i b_i k_i

    On x(t) the same holds with scale = 1, q = t and k = dx/dt. A step that leaves or reaches a singular node of its
    line (for x(t) of a path: sigma = 0) is a DDIM step, which is regular everywhere.
    """

    tableau: ClassVar[Tableau]
    embedded: ClassVar[Embedded | None] = None

    def __post_init__(self) -> None:
        if not hasattr(self, "tableau"):
            raise TypeError(
                f"{type(self).__name__} has no tableau; use a method such as RK4(), or set one in a subclass"
            )
        super().__post_init__()
        _require_shape(type(self).__name__, self.tableau, self.embedded)

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """x(t) and the three lines."""
        return [cls(line) for line in (None, Noise(), Data(), Rotation(), Rotation(0.5))]

    @property
    def calls_per_step(self) -> int:
        """The number of stages."""
        return len(self.tableau.c)

    def stages(self, ode: ODE, a: Node, b: Node) -> tuple[Stage, ...]:
        """The tableau's stages, at ``q_a + c_i h``."""
        line, tableau = followed(self.line), self.tableau
        q_a, q_b = line.q(a), line.q(b)
        # The ends are the nodes themselves: a round trip through q would move them by round-off.
        ends, stages = {0.0: a, 1.0: b}, []
        for c, row in zip((*tableau.c, 1.0), (*tableau.a, tableau.b), strict=True):
            node = ends[c] if c in ends else line.node(ode, q_a + c * (q_b - q_a))  # type: ignore[arg-type]
            scale = line.scale(node)
            h = scale * (q_b - q_a)
            stages.append(Stage(node, scale / line.scale(a), tuple((i, h * w) for i, w in enumerate(row) if w)))
        return tuple(stages)


def _require_shape(name: str, tableau: Tableau, embedded: Embedded | None) -> None:
    """Raise `ValueError` unless there is a weight for every slope that a step or its error estimate reads."""
    stages = len(tableau.c)
    if [len(row) for row in tableau.a] != list(range(stages)) or len(tableau.b) != stages:
        raise ValueError(
            f"{name}: tableau={tableau} has {stages} stages; give rows of 0 to {stages - 1} entries and {stages} "
            "weights b"
        )
    for part in ("error", "coarse") if embedded is not None else ():
        weights = getattr(embedded, part)
        if len(weights) != stages + 1 and (weights or part == "error"):
            raise ValueError(
                f"{name}: embedded.{part} has {len(weights)} of {stages + 1} weights; give one for each stage and the "
                "last for the slope at the end of the step, which may be 0"
            )


@dataclass(frozen=True)
class Euler(RungeKutta):
    """Order 1 (Euler 1768). It is DDIM on the noise line, and on x(t) of a rectified flow without a shift."""

    order: ClassVar[int] = 1
    tableau: ClassVar[Tableau] = Tableau((0.0,), ((),), (1.0,))


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """The explicit midpoint rule, order 2 (Runge 1895)."""

    order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = Tableau((0.0, 1 / 2), ((), (1 / 2,)), (0.0, 1.0))


@dataclass(frozen=True)
class Heun(RungeKutta):
    """The explicit trapezoidal rule, order 2; on the noise line EDM's sampler (Karras et al. 2022, algorithm 1)."""

    order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = Tableau((0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2))


@dataclass(frozen=True)
class Ralston(RungeKutta):
    """Order 2 with the least bound on the truncation error (Ralston 1962)."""

    order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = Tableau((0.0, 2 / 3), ((), (2 / 3,)), (1 / 4, 3 / 4))


@dataclass(frozen=True)
class SSPRK3(RungeKutta):
    """The strong-stability-preserving method of order 3 (Shu & Osher 1988)."""

    order: ClassVar[int] = 3
    tableau: ClassVar[Tableau] = Tableau((0.0, 1.0, 1 / 2), ((), (1.0,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3))


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical method of order 4 (Kutta 1901)."""

    order: ClassVar[int] = 4
    tableau: ClassVar[Tableau] = Tableau(
        (0.0, 1 / 2, 1 / 2, 1.0), ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    )


@dataclass(frozen=True)
class Bosh3(RungeKutta):
    """The order-3 method of Bogacki & Shampine (1989), fixed-grid."""

    order: ClassVar[int] = 3
    tableau: ClassVar[Tableau] = Tableau((0.0, 1 / 2, 3 / 4), ((), (1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9))
    embedded: ClassVar[Embedded | None] = Embedded((-5 / 72, 1 / 12, 1 / 9, -1 / 8), 3)


@dataclass(frozen=True)
class Dopri5(RungeKutta):
    """The order-5 method of Dormand & Prince (1980), fixed-grid; dense output of Shampine (1986), as in scipy."""

    order: ClassVar[int] = 5
    tableau: ClassVar[Tableau] = Tableau(
        (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    )
    embedded: ClassVar[Embedded | None] = Embedded(
        (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
        5,
        extension=Extension(4, tuple(map(tuple, integrate.RK45.P.tolist()))),
    )


@dataclass(frozen=True)
class Tsit5(RungeKutta):
    """The order-5 method of Tsitouras (2011), "Runge-Kutta pairs of order 5(4)", table 1, fixed-grid."""

    order: ClassVar[int] = 5
    tableau: ClassVar[Tableau] = Tableau(
        (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0),
        (
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        ),
        (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
    )
    embedded: ClassVar[Embedded | None] = Embedded(
        (
            -0.00178001105222577714,
            -0.0008164344596567469,
            0.007880878010261995,
            -0.1447110071732629,
            0.5823571654525552,
            -0.45808210592918697,
            1 / 66,
        ),
        5,
        extension=Extension(
            4,
            (
                (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
                (0.0, 0.1317, -0.2234, 0.1017),
                (0.0, 3.930296236894751, -5.941033872131505, 2.490627285651253),
                (0.0, -12.411077166933676, 30.338188630282318, -16.548102889244902),
                (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
                (0.0, -27.896526289197286, 65.09189467479368, -34.87065786149661),
                (0.0, 1.5, -4.0, 2.5),
            ),
        ),
    )
