"""The field's multistep samplers: settings of `ExponentialAdams`, and the published forms that differ from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from solvers.arguments import require_whole
from solvers.lines import Data, Line, Noise
from solvers.multistep import MOST_POINTS, ExponentialAdams
from solvers.ode import Node, PathODE
from solvers.quadrature import Array, Variable, adams_weights, lagrange
from solvers.real import log
from solvers.solver import Solver

LOWER_ORDER_BELOW = 15
"""The default number of steps below which a grid ends in lower orders, as in diffusers."""


def half_weights(line: Line, a: Node, b: Node, nodes: Sequence[Node], measure: Array) -> list[Array]:
    """Two-point weights with the coefficient 1/2, which the exact one approaches for small steps.

        integral slope dq = (q_b - q_a) slope_a + measure / (2 r) (slope_other - slope_a)

    for the other node at ``r = (lambda_other - lambda_a) / (lambda_b - lambda_a)``. ``nodes`` are newest first.
    """
    change = np.asarray(line.q(b)) - np.asarray(line.q(a))
    if nodes[0] is b:
        return [measure / 2, change - measure / 2]
    log_snr = [np.asarray(node.log_snr) for node in (nodes[1], a, b)]
    weight = measure * (log_snr[2] - log_snr[1]) / (log_snr[0] - log_snr[1]) / 2
    return [change - weight, weight]


def half_curvature(v: Array, nodes: Sequence[Array]) -> list[Array]:
    """The Lagrange polynomials of three nodes, newest first, with half of the second divided difference."""
    missing = (v - nodes[0]) ** 2 / 2
    spread = (np.prod([own - other for other in nodes if other is not own], axis=0) for own in nodes)
    return [one - missing / apart for one, apart in zip(lagrange(v, nodes), spread, strict=True)]


@dataclass(frozen=True)
class DPMSolver(ExponentialAdams):
    """DPM-Solver, multistep: the noise as a polynomial in log-SNR (Lu et al. 2022, "DPM-Solver", eq. 3.4).

    The default is the consistent form, the exponential Adams method of its order. Two published forms differ, and
    diffusers has both:

    Args:
        order: 1 to 3, the number of predictions, except with ``halved``.
        form: the form of steps with two predictions. "heun" is consistent; "midpoint", diffusers' default, replaces the
            coefficient phi_2/phi_1 of the linear term's integral by 1/2.
        halved: in steps with three predictions, take half of the second difference, as diffusers does: a method of
            ``order=2`` that is called 3M.
        lower_order_below: grids shorter than this end in lower orders, see `ExponentialAdams`. The default, 15, is that
            of diffusers (the reference code has 10): on few steps in log-SNR the last is too long to extrapolate over.
            With 0 the order is kept, and one solve can carry on another.
    """

    order: int = 3  # type: ignore[misc]
    line: Line = field(default=Noise(), init=False, repr=False)
    variable: Variable = field(default="log_snr", init=False, repr=False)
    corrector: bool = field(default=False, init=False, repr=False)
    lower_order_below: float = field(default=LOWER_ORDER_BELOW, kw_only=True)
    form: Literal["heun", "midpoint"] = "heun"
    halved: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        require_whole(f"{type(self).__name__}: order", self.order, 1, 3)
        if self.form not in ("heun", "midpoint"):
            raise ValueError(f'{name}: form={self.form!r} is unknown; use "heun", which is consistent, or "midpoint"')
        if self.halved and self.order != 2:
            raise ValueError(
                f"{name}: halved=True reads three predictions and is of order 2, not order={self.order}; pass order=2, "
                "or leave out halved for the method of order 3"
            )
        if self.form == "midpoint" and self.order != 2:
            raise ValueError(f'{name}: form="midpoint" is of order 2, not order={self.order}; pass order=2')

    @property
    def points(self) -> int:
        """The order, or three with ``halved``."""
        return 3 if self.halved else self.order

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """The consistent orders, the published forms, and the order kept to the end."""
        published = [cls(2, form="midpoint"), cls(2, halved=True)]
        return [*(cls(order) for order in (1, 2, 3)), *published, cls(3, lower_order_below=0)]

    def weights(self, ode: PathODE, a: Node, b: Node, nodes: Sequence[Node]) -> list[Array]:
        """The weights of exponential Adams, or those of the published forms."""
        if len(nodes) == 2 and self.form == "midpoint":
            change = np.asarray(self.line.q(b)) - np.asarray(self.line.q(a))
            return half_weights(self.line, a, b, nodes, change)
        basis = half_curvature if len(nodes) == 3 and self.halved else lagrange
        return adams_weights(ode, self.line, self.variable, a, b, nodes, basis)


@dataclass(frozen=True)
class DPMpp(DPMSolver):
    """DPM-Solver++, multistep: the data as a polynomial in log-SNR (Lu et al. 2022, "DPM-Solver++", eq. 9).

    ``order=1`` is DDIM. The published 2M (algorithm 2 of the paper) is ``DPMpp(2, form="midpoint")``; the 3M of its
    reference code and of diffusers is ``DPMpp(2, halved=True)``, which has order 2. The consistent forms of 2M and 3M
    are the default. See `DPMSolver` for the settings.
    """

    line: Line = field(default=Data(), init=False, repr=False)


@dataclass(frozen=True)
class UniPC(ExponentialAdams):
    """UniPC-p (Zhao et al. 2023, "UniPC", algorithms 1 and 2): p predictions, then a correction without another call.

    The predictor UniP-p is exponential Adams through p predictions; the corrector UniC-p also passes through the new
    one, which raises the order to p + 1; from its own start it is at most 3. If the coefficients rho solve their linear
    system, the default, the method does not depend on the function B(h) at all. The reference code and diffusers set
    rho = 1/2 wherever there are two points, in UniP-2 and UniC-1, and there B(h) matters: ``"bh1"`` is B(h) = h,
    ``"bh2"`` is B(h) = e^h - 1, where h is the change of log-SNR on the noise line and its negative on the data line.

    Args:
        p: the number of predictions that the predictor reads, 1 to 6; ``order`` is p + 1.
        rho: "solved", "bh1" or "bh2".
        line: `Data`, or `Noise` for UniPC on the predicted noise.
        lower_order_below: see `DPMSolver`. The reference code and diffusers lower the order at the end of every grid:
            that is math.inf, and leaves a method of order 2.
        uncorrected: the number of first states of a grid that keep their prediction, ``disable_corrector=[0, ...,
            uncorrected - 1]`` in diffusers: under strong guidance, corrections between the first, long steps may do
            harm. From its own start the method then has order 2; without any correction it is UniP-p, of order p.
    """

    order: int = field(init=False, repr=False)  # type: ignore[misc]
    line: Line = field(default=Data(), kw_only=True)
    variable: Variable = field(default="log_snr", init=False, repr=False)
    corrector: bool = field(default=True, init=False, repr=False)
    lower_order_below: float = field(default=LOWER_ORDER_BELOW, kw_only=True)
    uncorrected: int = field(default=0, kw_only=True)  # type: ignore[misc]
    p: int = 3
    rho: Literal["solved", "bh1", "bh2"] = "solved"

    def __post_init__(self) -> None:
        require_whole(f"{type(self).__name__}: p", self.p, 1, MOST_POINTS)
        require_whole(f"{type(self).__name__}: uncorrected", self.uncorrected, 0)
        object.__setattr__(self, "order", self.p + 1)
        super().__post_init__()
        if self.rho not in ("solved", "bh1", "bh2"):
            raise ValueError(f'UniPC: rho={self.rho!r} is unknown; use "solved", "bh1" or "bh2"')
        if self.rho != "solved" and not isinstance(self.line, Noise | Data):
            raise ValueError(f'UniPC: rho={self.rho!r} is defined on the noise and data lines; use rho="solved"')

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """Both lines, the orders, the hard-coded coefficients where they matter most, and the order kept to the end."""
        solved = [cls(p, line=line) for line in (Data(), Noise()) for p in (1, 2, 3)]
        halves = [cls(p, rho) for rho in ("bh1", "bh2") for p in (1, 2)]
        return [*solved, *halves, cls(3, lower_order_below=0), cls(2, uncorrected=2)]

    def weights(self, ode: PathODE, a: Node, b: Node, nodes: Sequence[Node]) -> list[Array]:
        """The weights of exponential Adams, or those with rho = 1/2 for two points."""
        if self.rho == "solved" or len(nodes) != 2:
            return super().weights(ode, a, b, nodes)
        q_a, q_b = (np.asarray(self.line.q(node)) for node in (a, b))
        # scale_b B(h) is scale_b q_b log(q_b/q_a) for B(h) = h, on either line, and scale_b (q_b - q_a) for e^h - 1.
        measure = q_b * np.asarray(log(q_b / q_a)) if self.rho == "bh1" else q_b - q_a
        return half_weights(self.line, a, b, nodes, measure)


@dataclass(frozen=True)
class DEIS(ExponentialAdams):
    """DEIS, the Adams-Bashforth variants (Zhang & Chen 2023, "Fast sampling ... with exponential integrator", eq. 15).

    The noise as a polynomial along the noise line: in t, the paper's tAB, or in log s, which is what diffusers calls
    DEIS and which is `DPMSolver`. The paper's tAB-r passes through r + 1 predictions: tAB3 is ``order=4``.

    Args:
        order: the number of predictions, 1 to 6.
        variable: "t", or "log_snr", whose polynomials are those in log s.
        lower_order_below: see `ExponentialAdams`; diffusers has 15 for its polynomials in log s.
    """

    order: int = 4  # type: ignore[misc]
    line: Line = field(default=Noise(), init=False, repr=False)
    variable: Variable = "t"
    corrector: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variable not in ("t", "log_snr"):
            raise ValueError(
                f'DEIS: variable={self.variable!r} must be "t" or "log_snr"; ExponentialAdams takes any other'
            )

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """Both variables."""
        return [cls(), cls(3, variable="log_snr")]


@dataclass(frozen=True)
class LMS(ExponentialAdams):
    """The linear multistep method of k-diffusion (Crowson 2022): the noise as a polynomial in s = sigma/alpha.

    Plain Adams-Bashforth of variable step on dy/ds = eps. iPNDM_v (Zhou et al. 2024, "Fast ODE-based sampling", iPNDM
    of variable step) is meant to be the same: its authors' published code has the same weights on even grids and for
    two predictions; with three or more, a misplaced bracket gives it other weights on uneven grids, which are not
    consistent beyond the second order.
    """

    order: int = 4  # type: ignore[misc]
    line: Line = field(default=Noise(), init=False, repr=False)
    variable: Variable = field(default="q", init=False, repr=False)
    corrector: bool = field(default=False, init=False, repr=False)

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """The usual order and the lowest one with a history."""
        return [cls(), cls(2)]


@dataclass(frozen=True)
class IPNDM(ExponentialAdams):
    """iPNDM (Zhang & Chen 2023; its constant weights from Liu et al. 2022, "PNDM", eq. 12): Adams of an even grid.

    The noise line with the weights (3, -1)/2, (23, -16, 5)/12, (55, -59, 37, -9)/24, whatever the spacing of the nodes.
    On uneven nodes they are not consistent beyond the first order, yet at few calls they often beat weights that are.
    """

    order: int = 4  # type: ignore[misc]
    line: Line = field(default=Noise(), init=False, repr=False)
    variable: Variable = field(default="index", init=False, repr=False)
    corrector: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(f"{type(self).__name__}: order", self.order, 1, 4)

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """The usual order."""
        return [cls()]
