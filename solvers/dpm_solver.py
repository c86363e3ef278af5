"""Single-step DPM-Solver: exponential Runge-Kutta methods; DPM-Solver++ is the same on the data line."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np

from solvers.exponential_runge_kutta import (
    ExponentialRungeKutta,
    ExponentialTableau,
    exponential_stages,
    phi_,
    require_exponential,
    within_step,
)
from solvers.lines import Data, Line, Noise, singular_log_snr
from solvers.ode import ODE, Node
from solvers.solver import Solver
from solvers.staged import Plan, Stage, Staged

EULER = ExponentialTableau((0.0,), ((),), (phi_(1),))
"""The tableau that freezes the slope apart from its exponential factor: DDIM."""


@dataclass(frozen=True)
class DPMSolver2(ExponentialRungeKutta):
    """DPM-Solver-2, of order 2 (Lu et al. 2022, "DPM-Solver", algorithm 1): one stage at ``lambda_a + r1 h``.

    On the data line it is DPM-Solver++(2S) (Lu et al. 2022, "DPM-Solver++", algorithm 1). With r1 = 1/2 on the noise
    line it is the midpoint rule with the middle in log s, known as DPM-2 or KDPM2 (Karras et al. 2022, in the code of
    k-diffusion); on the same line `Midpoint` takes the middle in s.
    """

    order: ClassVar[int] = 2
    line: Line = Noise()
    r1: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        within_step("DPMSolver2", "r1", self.r1)

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """Both lines, and the stage at the end."""
        return [cls(), cls(line=Data()), cls(r1=1.0)]

    @property
    def tableau(self) -> ExponentialTableau:
        """Stages and weights, multiples of phi_1 alone."""
        r, half = self.r1, 1 / (2 * self.r1)
        first = phi_(1, 1 - half) if half != 1 else ()
        return ExponentialTableau((0.0, r), ((), (phi_(1, r, r),)), (first, phi_(1, half)))


@dataclass(frozen=True)
class DPMSolver3(ExponentialRungeKutta):
    """DPM-Solver-3 (Lu et al. 2022, "DPM-Solver", algorithm 2): stages at ``lambda_a + r1 h`` and ``lambda_a + r2 h``.

    ``form="published"`` is the paper's. ``form="taylor"`` ends with both differences of the stages (so named in the
    authors' code; ``solver_type="heun"`` in diffusers). ``form="diffusers"`` is the default of diffusers' singlestep
    scheduler, ``solver_type="midpoint"``: the paper's end, and a second stage with phi_1/2 instead of phi_2. Because of
    the second stage each form has order 3 for r2 = 2/3 and order 2 for any other r2, whatever r1. `RES3S` has order 3
    with other stages too.
    """

    line: Line = Noise()
    r1: float = 1 / 3
    r2: float = 2 / 3
    form: Literal["published", "taylor", "diffusers"] = "published"

    def __post_init__(self) -> None:
        super().__post_init__()
        within_step("DPMSolver3", "r1", self.r1)
        within_step("DPMSolver3", "r2", self.r2)
        if self.r1 == self.r2:
            raise ValueError(f"DPMSolver3: r1={self.r1!r} and r2={self.r2!r} must differ; 1/3 and 2/3 are usual")
        if self.form not in ("published", "taylor", "diffusers"):
            raise ValueError(f'DPMSolver3: form={self.form!r} is unknown; use "published", "taylor" or "diffusers"')

    @property
    def order(self) -> int:  # type: ignore[override]
        """3 for r2 = 2/3, where ``a_32 b_3 r1 = r2/4`` is the 1/6 that order 3 requires; otherwise 2."""
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
    """DPM-Solver-fast (Lu et al. 2022, "DPM-Solver"): steps of DPM-Solver-3, then steps of the ``last`` orders.

    The paper, and k-diffusion following it, spend a given number of calls: with ``last=(2, 1)``, ``(1,)`` or ``(2,)``
    n steps cost 3n - 3, 3n - 2 or 3n - 1. It is meant for grids uniform in log-SNR. One last step of order k has a
    local error of order k + 1, which is the order of the whole.
    """

    line: Line = Noise()
    last: tuple[int, ...] = (2, 1)

    def __post_init__(self) -> None:
        require_exponential(self, self.line)
        whole = isinstance(self.last, Sequence) and all(type(order) is int for order in self.last)
        if not (whole and set(self.last) <= {1, 2, 3}):
            raise ValueError(f"DPMFast: last={self.last!r} must hold orders of 1, 2 or 3, such as (2, 1)")
        # A configuration file gives a list.
        object.__setattr__(self, "last", tuple(self.last))

    @property
    def order(self) -> int:  # type: ignore[override]
        """3, or less if the last steps limit it."""
        return min((3, *(order + 1 for order in self.last)))

    @property
    def one_step(self) -> bool:
        """Whether the order of a step is independent of its place in the grid."""
        return not self.last

    @property
    def reads_past(self) -> bool:
        """False: the orders depend on the place in the grid, and no step reads an earlier one."""
        return False

    @property
    def carries_on(self) -> bool:
        """Whether the last steps have no orders of their own."""
        return not self.last

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """Endings that leave order 2 and order 3."""
        return [cls(), cls(last=(2,), line=Data())]

    @property
    def calls_per_step(self) -> int:
        """Evaluations of all but the last steps."""
        return 3

    def calls(self, n_steps: int) -> int:
        """The sum of the orders."""
        return sum(self._orders(n_steps))

    def singular(self, ode: ODE, a: Node, b: Node) -> bool | np.ndarray:
        """Whether log-SNR degenerates at a or b, as for every exponential Runge-Kutta method."""
        return singular_log_snr(a, b)

    def plan(self, ode: ODE, nodes: Sequence[Node]) -> Plan:
        """Each step by the method of its order."""
        steps = []
        for order, (a, b) in zip(self._orders(len(nodes) - 1), pairwise(nodes), strict=True):
            singular = np.any(self.singular(ode, a, b))
            steps.append(None if singular else exponential_stages(self.line, self._tableau(order), ode, a, b))
        return Plan(tuple(steps), 0)

    def stages(self, ode: ODE, a: Node, b: Node) -> tuple[Stage, ...]:
        """The stages of a single step: those of DPM-Solver-3."""
        return exponential_stages(self.line, self._tableau(3), ode, a, b)

    def _orders(self, n_steps: int) -> tuple[int, ...]:
        return (*(3,) * (n_steps - len(self.last)), *self.last)[max(0, len(self.last) - n_steps) :]

    def _tableau(self, order: int) -> ExponentialTableau:
        return (EULER, DPMSolver2().tableau, DPMSolver3().tableau)[order - 1]
