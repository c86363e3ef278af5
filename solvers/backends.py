"""Methods of other libraries, torchdiffeq and scipy.integrate, behind the contract of a `Solver`."""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torchdiffeq import odeint

from solvers.arguments import require_switch
from solvers.counting import BudgetSpent
from solvers.exponential import DDIM
from solvers.lines import Line, followed, singular_step, singular_steps
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node
from solvers.own_steps import OwnSteps
from solvers.solution import Status
from solvers.solver import Law, Past, Solver, Step, require_path
from solvers.sums import combine

SMALLEST_RTOL = 100 * np.finfo(np.float64).eps
"""The smallest rtol that double precision can meet; scipy would raise a smaller one to this, with a warning."""
MOST_IMPLICIT = 4096
"""The most components for a dense Jacobian: 134 MB here, and as many field evaluations as components."""


class Method(NamedTuple):
    """The properties of a library's method.

    ``order`` is the order of the propagated solution, the highest for methods that vary it. The ``starting`` steps cost
    4 calls each (Runge-Kutta), the others ``calls``. ``jacobian``: whether a dense one is stored. ``couples``: whether
    a norm over the whole state decides anything. ``time_eps``: the library's rounding of times beyond that of float64.
    """

    order: int
    law: Law = "tolerance"
    calls: int = 0
    starting: int = 0
    jacobian: bool = False
    couples: bool = True
    time_eps: float = 0.0


class NonFinite(Exception):
    """The field returned an infinity or a NaN."""


class Overstep(Exception):
    """A library evaluated the field outside the span of the integration."""


class Field:
    """``dz/dq`` along a line from the first of ``nodes`` to the last, in float64: a library's only access to the ODE.

    The ODE receives the true node and the user's dtype, and is never called outside the span.
    """

    def __init__(self, ode: Any, line: Line | None, nodes: Sequence[Node], x: Tensor, method: Method) -> None:
        self.ode, self.line, self.nodes, self.dtype, self.method = ode, followed(line), nodes, x.dtype, method
        self.q = np.array([self.line.q(node) for node in nodes], dtype=np.float64)
        self.start = combine((1 / self.scale(nodes[0]), x.double()))
        # A step to the end arrives there up to the rounding of t + h.
        self.rounding = 4 * (np.spacing(np.abs(self.q).max()) + method.time_eps * np.abs(self.q[[0, -1]]))

    def __call__(self, q: float, z: Tensor) -> Tensor:
        node = self.node(q)
        x = combine((self.scale(node), z)).to(self.dtype)
        slope = self.line.slope_at(self.ode, node, x)
        if self.method.couples and not torch.isfinite(slope).all():
            raise NonFinite
        return slope.double()

    def scale(self, node: Node) -> float:
        """The factor in ``x = scale z``."""
        return float(self.line.scale(node))

    def node(self, q: float) -> Node:
        """The node at ``q``; the ends of the span are the nodes themselves."""
        first, last = self.nodes[0], self.nodes[-1]
        for end, q_end, rounding in zip((first, last), self.q[[0, -1]], self.rounding, strict=True):
            if abs(q - q_end) <= rounding:
                return end
        if not min(self.q[0], self.q[-1]) < q < max(self.q[0], self.q[-1]):
            raise Overstep(q)
        node = self.line.node(self.ode, q)
        # Inside the span in q but outside it in t: the inverse of q(t) is rounded too.
        if (node.t - first.t) * (node.t - last.t) > 0:
            return min(first, last, key=lambda end: abs(float(end.t) - float(node.t)))
        return node


@dataclass(frozen=True)
class Backend(OwnSteps):
    """A library's method, on x(t) as written (``line=None``) or along a line ``z = x/scale, dz/dq = slope``.

    The library integrates z in float64 from the first node to the last; the field is called with the dtype of the
    state, at nodes in the span only. Steps that leave or reach a singular node of the line are DDIM steps, as for
    `RungeKutta`. Adaptive methods choose their steps from ``rtol`` and ``atol`` (the error of z; ``atol=None`` is
    ``rtol``) and report the nodes between the ends by the library's interpolation.

    Samples are solved one by one where a norm over the state controls steps or iterations, so that none depends on its
    batch mates; ``batched=True`` solves all at once, which is faster but couples them: the steps of each follow the
    error of all. A sample that fails is NaN from the first node that it did not reach, and has its own `Status`.
    """

    methods: ClassVar[Mapping[str, Method]]
    method: str
    rtol: float = 1e-5
    atol: float | None = None
    line: Line | None = None
    batched: bool = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.method not in self.methods:
            raise ValueError(f"{name}: method={self.method!r} is unknown; use one of {', '.join(self.methods)}")
        self.require_settings("1e-5")
        require_switch(f"{name}: batched", self.batched)
        if self.rtol < SMALLEST_RTOL:
            raise ValueError(f"{name}: rtol={self.rtol!r} is below round-off; use at least {SMALLEST_RTOL:.1e}")

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """Every method."""
        return [cls(method) for method in cls.methods]

    @property
    def order(self) -> int:  # type: ignore[override]
        """The method's order; the highest of a method that varies it."""
        return self.methods[self.method].order

    @property
    def law(self) -> Law:  # type: ignore[override]
        """The method's law."""
        return self.methods[self.method].law

    @property
    def one_step(self) -> bool:
        """Whether the method is a one-step method on a fixed grid."""
        return self.law == "order"

    def calls(self, n_steps: int) -> int:
        """The most evaluations on a fixed grid.

        Raises:
            ValueError: the method is adaptive.
        """
        method = self.methods[self.method]
        if method.law == "tolerance":
            return super().calls(n_steps)
        starting = min(n_steps, method.starting)
        return 4 * starting + method.calls * (n_steps - starting)

    def calls_over(self, ode: ODE, nodes: Sequence[Node]) -> int:
        """`calls`, with one for each DDIM step."""
        short = singular_steps(self.line, ode, nodes)
        return self.calls(len(nodes) - 1 - short) + short

    def start(
        self,
        ode: ODE,
        nodes: Sequence[Node],
        x: Tensor,
        *,
        stream: NoiseStream | None = None,
        past: Past = (),
        state: Any = None,
    ) -> None:
        """Raise for problems that the method cannot solve; a run has no state."""
        if self.line is not None:
            require_path(self, ode)
        components = x.numel() if self.batched else math.prod(x.shape[1:])
        if self.methods[self.method].jacobian and components > MOST_IMPLICIT:
            raise ValueError(
                f"method={self.method!r} stores the Jacobian of all {components:,} components"
                f"{' of the batch' if self.batched else ''}, {8e-9 * components**2:,.1f} GB of memory, and computes it "
                f"by as many calls; use at most {MOST_IMPLICIT:,} components or an explicit method"
            )

    def solve(self, ode: ODE, nodes: Sequence[Node], x: Tensor, state: Any) -> Iterator[Step]:
        """Solve each part of the batch over all nodes, then yield the states node by node."""
        together = self.batched or not self.methods[self.method].couples
        if not len(x):
            yield from (Step(x, status=torch.zeros(0, dtype=torch.int64, device="cpu")) for _ in nodes[1:])
            return
        rows = torch.arange(len(x), device=x.device)
        parts = (rows,) if together else rows.split(1)
        solved = [self._solve_part(ode if together else ode.rows(part), nodes, x[part]) for part in parts]
        failed = torch.tensor(
            [status for part, (_, status) in zip(parts, solved, strict=True) for _ in part], device="cpu"
        )
        for states in zip(*(states for states, _ in solved), strict=True):
            yield Step(torch.cat(states), status=failed)

    def _solve_part(self, ode: ODE, nodes: Sequence[Node], x: Tensor) -> tuple[list[Tensor], Status]:
        """The states at all nodes after the first, NaN where none was reached."""
        states = [x]
        status = Status.SUCCESS
        try:
            for singular, pairs in groupby(pairwise(nodes), key=lambda pair: singular_step(self.line, ode, *pair)):
                steps = list(pairs)
                if singular:
                    for a, b in steps:
                        states.append(DDIM().step(ode, a, b, states[-1]).x)  # type: ignore[arg-type]
                else:
                    reached = self._follow(ode, [steps[0][0], *(b for _, b in steps)], states[-1])
                    states += reached
                    if len(reached) < len(steps):
                        status = Status.STEP_UNDERFLOW
                        break
        except NonFinite:
            status = Status.NON_FINITE
        except BudgetSpent:
            status = Status.BUDGET
        missing = len(nodes) - len(states)
        return states[1:] + [torch.full_like(x, math.nan)] * missing, status

    def _follow(self, ode: ODE, nodes: Sequence[Node], x: Tensor) -> list[Tensor]:
        """The states at those nodes after the first that the library reaches."""
        if self.methods[self.method].couples and not torch.isfinite(x).all():
            raise NonFinite  # before the library refuses to begin
        field = Field(ode, self.line, nodes, x, self.methods[self.method])
        try:
            z = self.integrate(field, None)
        except Overstep:
            # A library may probe the field to choose its first step, and leave the span if the field is slow.
            z = self.integrate(field, float(abs(field.q[-1] - field.q[0])))
        return [combine((field.scale(node), row)).to(x.dtype) for node, row in zip(nodes[1:], z, strict=False)]

    @abstractmethod
    def integrate(self, field: Field, first_step: float | None) -> Tensor:
        """``z`` at ``field.q[1:]``, or at the first of them if the step size underflows.

        With ``first_step=None`` the library chooses the first step.
        """


@dataclass(frozen=True)
class Torchdiffeq(Backend):
    """The methods of torchdiffeq (Chen 2018), by their names there.

    The fixed-grid ones step on the given nodes. The adaptive ones stop at the last node, while the library by default
    would step over it and interpolate back. The Adams methods have the weights of an even grid: on an uneven one they
    have at most order 1, or 2 where neighbouring steps differ by O(h^2). ``scipy_solver`` is LSODA with times rounded
    to float32, so that it cannot meet tolerances below 1e-7; ``Scipy("LSODA")`` can.
    """

    methods: ClassVar[Mapping[str, Method]] = {
        "dopri8": Method(8),
        "dopri5": Method(5),
        "bosh3": Method(3),
        "fehlberg2": Method(2),
        "adaptive_heun": Method(2),
        "euler": Method(1, "order", calls=1, couples=False),
        "midpoint": Method(2, "order", calls=2, couples=False),
        "heun2": Method(2, "order", calls=2, couples=False),
        "heun3": Method(3, "order", calls=3, couples=False),
        "rk4": Method(4, "order", calls=4, couples=False),
        "explicit_adams": Method(11, "bounded", calls=1, starting=2, couples=False),
        "implicit_adams": Method(12, "bounded", calls=5, starting=2),
        "fixed_adams": Method(12, "bounded", calls=5, starting=2),
        "scipy_solver": Method(12, jacobian=True, time_eps=float(np.finfo(np.float32).eps)),
    }
    method: str = "dopri5"

    @property
    def differentiable(self) -> bool:
        """Whether torch computes the steps, not SciPy."""
        return self.method != "scipy_solver"

    def integrate(self, field: Field, first_step: float | None) -> Tensor:
        """One call of ``odeint``."""
        q = torch.as_tensor(field.q, device=field.start.device)
        adaptive = self.law == "tolerance" and self.method != "scipy_solver"
        options = {"step_t": q[-1:], "first_step": first_step, "norm": _root_mean_square} if adaptive else {}
        rtol, atol = self.tolerances
        try:
            z = odeint(
                lambda q, z: field(float(q), z),
                field.start,
                q,
                rtol=rtol,
                atol=atol,
                method=self.method,
                options=options,
            )
        except AssertionError as error:
            # The library's own errors, distinguished by their texts from those that the field raises.
            if str(error).startswith("non-finite values in state"):
                raise NonFinite from error
            if not str(error).startswith("underflow in dt"):
                raise
            return field.start.new_empty((0, *field.start.shape))
        return z[1:]


@dataclass(frozen=True)
class Scipy(Backend):
    """The methods of ``scipy.integrate.solve_ivp`` (Virtanen et al. 2020), by their names there.

    The state is copied to the CPU and back in every evaluation. Gradients do not pass through.
    """

    methods: ClassVar[Mapping[str, Method]] = {
        "RK23": Method(3),
        "RK45": Method(5),
        "DOP853": Method(8),
        "Radau": Method(5, jacobian=True),
        "BDF": Method(5, jacobian=True),
        "LSODA": Method(12, jacobian=True),
    }
    method: str = "RK45"

    @property
    def differentiable(self) -> bool:
        """False: SciPy computes the steps."""
        return False

    def integrate(self, field: Field, first_step: float | None) -> Tensor:
        """One call of ``solve_ivp``, on the flattened state."""
        start = field.start

        def slope(q: float, flat: np.ndarray) -> np.ndarray:
            # A copy: the library may reuse its buffer.
            z = torch.tensor(flat, device=start.device).reshape(start.shape)
            return field(float(q), z).detach().cpu().numpy().ravel()

        rtol, atol = self.tolerances
        try:
            found = solve_ivp(
                slope,
                (field.q[0], field.q[-1]),
                start.detach().cpu().numpy().ravel(),
                method=self.method,
                t_eval=field.q[1:],
                rtol=rtol,
                atol=atol,
                first_step=first_step,
            )
        except ValueError as error:
            # Raised by the factorisation of a Jacobian that overflowed.
            if "infs or NaNs" not in str(error):
                raise
            raise NonFinite from error
        z = np.asarray(found.y, dtype=np.float64).reshape(start.numel(), len(found.t)).T
        return torch.tensor(z, device=start.device).reshape(len(z), *start.shape)


def _root_mean_square(z: Tensor) -> Tensor:
    """The library's own norm without a gradient: step sizes are constants, like the times of the field's calls."""
    return z.detach().square().mean().sqrt()
