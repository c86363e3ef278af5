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

from solvers.arguments import require_positive, require_switch
from solvers.counting import BudgetSpent
from solvers.exponential import DDIM
from solvers.lines import Line, require_line, singular_step, singular_steps
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node
from solvers.solution import Status
from solvers.solver import Law, Past, Solver, Step, require_path
from solvers.sums import combine

SMALLEST_RTOL = 100 * np.finfo(np.float64).eps
"""Double precision cannot meet less; scipy would raise it to this, with a warning."""
MOST_IMPLICIT = 4096
"""Components above which a dense Jacobian is refused: 134 MB here, and as many field evaluations as components."""


class Method(NamedTuple):
    """What is known of a library's method.

    ``order`` is the order of the solution that is carried on, the highest for methods that vary it. ``starting`` steps
    cost 4 calls each (Runge-Kutta), the others ``calls``. ``jacobian``: whether a dense one is stored. ``couples``:
    whether a norm over the whole state decides anything. ``time_eps``: the rounding of times that the library adds to
    that of float64.
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
    """A library asked for the field outside the span of the integration."""


class Field:
    """``dz/dq`` along a line from the first of ``nodes`` to the last, in float64: a library's only way to the ODE.

    The ODE sees the true node and the user's dtype, and is never called outside the span.
    """

    def __init__(self, ode: Any, line: Line | None, nodes: Sequence[Node], x: Tensor, method: Method) -> None:
        self.ode, self.line, self.nodes, self.dtype, self.method = ode, line, nodes, x.dtype, method
        self.q = np.array([node.t if line is None else line.q(node) for node in nodes], dtype=np.float64)
        self.start = combine((1 / self.scale(nodes[0]), x.double()))
        # A step to the end arrives there up to the rounding of t + h.
        self.rounding = 4 * (np.spacing(np.abs(self.q).max()) + method.time_eps * np.abs(self.q[[0, -1]]))

    def __call__(self, q: float, z: Tensor) -> Tensor:
        node = self.node(q)
        x = combine((self.scale(node), z)).to(self.dtype)
        slope = self.ode(node.t, x) if self.line is None else self.line.slope(node, self.ode.predict(node, x))
        if self.method.couples and not torch.isfinite(slope).all():
            raise NonFinite
        return slope.double()

    def scale(self, node: Node) -> float:
        """The factor in ``x = scale z``."""
        return 1.0 if self.line is None else float(self.line.scale(node))

    def node(self, q: float) -> Node:
        """The node at ``q``; the ends of the span are the nodes themselves."""
        first, last = self.nodes[0], self.nodes[-1]
        for end, q_end, rounding in zip((first, last), self.q[[0, -1]], self.rounding, strict=True):
            if abs(q - q_end) <= rounding:
                return end
        if not min(self.q[0], self.q[-1]) < q < max(self.q[0], self.q[-1]):
            raise Overstep(q)
        node = self.ode.node(q) if self.line is None else self.line.node(self.ode, q)
        # Inside the span in q and outside it in t: the inverse of q(t) rounds too.
        if (node.t - first.t) * (node.t - last.t) > 0:
            return min(first, last, key=lambda end: abs(end.t - node.t))
        return node


@dataclass(frozen=True)
class Backend(Solver):
    """A library's method, on x(t) as written (``line=None``) or along a line ``z = x/scale, dz/dq = slope``.

    The library integrates z in float64 from the first node to the last; the field is called with the dtype of the
    state, at nodes in the span only. Steps that leave or reach a singular node of the line are DDIM steps, as for
    `RungeKutta`. Adaptive methods choose their steps from ``rtol`` and ``atol`` (the error of z; ``atol=None`` is
    ``rtol``) and report the nodes between the ends by the library's interpolation.

    Samples are solved one by one where a norm over the state decides about steps or iterations, so that none depends
    on its batch mates; ``batched=True`` solves all at once, faster and coupled: the steps of each follow the error of
    all. A sample that cannot be solved is NaN from the first node that it did not reach, and has its `Status`.
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
        for argument, value in (("rtol", self.rtol), ("atol", self.tolerances[1])):
            require_positive(f"{name}: {argument}", value, "1e-5")
        require_switch(f"{name}: batched", self.batched)
        if self.line is not None:
            require_line(self, self.line)
        if self.rtol < SMALLEST_RTOL:
            raise ValueError(f"{name}: rtol={self.rtol!r} is below round-off; use at least {SMALLEST_RTOL:.1e}")

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """Every method."""
        return [cls(method) for method in cls.methods]

    @property
    def tolerances(self) -> tuple[float, float]:
        """``rtol`` and ``atol``."""
        return self.rtol, self.rtol if self.atol is None else self.atol

    @property
    def order(self) -> int:  # type: ignore[override]
        """The method's order; the highest of a method that varies it."""
        return self.methods[self.method].order

    @property
    def law(self) -> Law:  # type: ignore[override]
        """The method's law."""
        return self.methods[self.method].law

    @property
    def way(self) -> Line | None:
        """The line that is followed."""
        return self.line

    @property
    def reads_past(self) -> bool:
        """Not: history stays in the library."""
        return False

    @property
    def one_step(self) -> bool:
        """Only methods of that kind on a fixed grid."""
        return self.law == "order"

    @property
    def carries_on(self) -> bool:
        """Not: z is float64 in the library and rounded at the end, and step sizes and history stay there."""
        return False

    def calls(self, n_steps: int) -> int:
        """Evaluations on a fixed grid, at most.

        Raises:
            ValueError: the method is adaptive.
        """
        method = self.methods[self.method]
        if method.law == "tolerance":
            raise ValueError(
                f"{self} chooses its own steps, so that no number of calls is known before the solve; "
                "instead of nfe= or steps= ask for an accuracy, rtol=1e-3"
            )
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
        """Refuse problems that the method cannot solve; a run has no state."""
        if self.line is not None:
            require_path(self, ode)
        components = x.numel() if self.batched else math.prod(x.shape[1:])
        if self.methods[self.method].jacobian and components > MOST_IMPLICIT:
            raise ValueError(
                f"method={self.method!r} stores the Jacobian of all {components:,} components"
                f"{' of the batch' if self.batched else ''}, {8e-9 * components**2:,.1f} GB of memory, and forms it by "
                f"as many calls; use at most {MOST_IMPLICIT:,} components or an explicit method"
            )

    def step(self, ode: Any, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """A solve of one interval."""
        (step,) = self.solve(ode, (a, b), x, state)
        return step

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
            # A library may probe the field to choose its first step, and leaves the span where the field is slow.
            z = self.integrate(field, float(abs(field.q[-1] - field.q[0])))
        return [combine((field.scale(node), row)).to(x.dtype) for node, row in zip(nodes[1:], z, strict=False)]

    @abstractmethod
    def integrate(self, field: Field, first_step: float | None) -> Tensor:
        """``z`` at ``field.q[1:]``, or at the first few of them if the step size underflows; None: own first step."""


@dataclass(frozen=True)
class Torchdiffeq(Backend):
    """The methods of torchdiffeq (Chen 2018), by their names there.

    The fixed-grid ones step on the given nodes. The adaptive ones stop at the last node, where the library by itself
    would step over it and interpolate back. The Adams methods have the weights of an even grid: on an uneven one they
    are of order 1 at most, 2 where neighbouring steps differ by O(h^2). ``scipy_solver`` is LSODA with times rounded to
    float32, so that tolerances below 1e-7 are out of its reach; ``Scipy("LSODA")`` meets them.
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
        """Not where SciPy computes."""
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
            # The library's own, told by their texts from those that the field raises.
            if str(error).startswith("non-finite values in state"):
                raise NonFinite from error
            if not str(error).startswith("underflow in dt"):
                raise
            return field.start.new_empty((0, *field.start.shape))
        return z[1:]


@dataclass(frozen=True)
class Scipy(Backend):
    """The methods of ``scipy.integrate.solve_ivp`` (Virtanen et al. 2020), by their names there.

    The state visits the CPU for every step. Gradients do not pass.
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
        """Not: it computes outside of torch."""
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
            # From the factorisation of a Jacobian that overflowed.
            if "infs or NaNs" not in str(error):
                raise
            raise NonFinite from error
        z = np.asarray(found.y, dtype=np.float64).reshape(start.numel(), len(found.t)).T
        return torch.tensor(z, device=start.device).reshape(len(z), *start.shape)


def _root_mean_square(z: Tensor) -> Tensor:
    """The library's own norm, without a gradient: step sizes are constants, as the times that the field sees."""
    return z.detach().square().mean().sqrt()
