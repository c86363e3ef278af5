"""Exact inverses of methods without an algebraic one: each step is solved for the state that it would carry here."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from solvers.arguments import as_number, require_whole
from solvers.counting import affording, evaluations_left
from solvers.exponential import DDIM
from solvers.krylov import anderson, dot, gmres, largest
from solvers.lines import Data, Noise
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node
from solvers.real import Real, native
from solvers.reversible import ReversibleSolver, fresh_step, law_of_steps, meets_singular, require_steps
from solvers.solution import Status
from solvers.solver import Law, Past, Solver, Step
from solvers.sums import combine
from solvers.transfer import as_array, index_on


def require_digits(solver: Any, x: Tensor) -> None:
    """Raise `ValueError` if no tolerance is given and the rounding of x is too coarse to derive one."""
    if solver.tolerance is None and solver.max_iterations and torch.finfo(x.dtype).eps > torch.finfo(torch.float32).eps:
        raise ValueError(
            f"x has dtype {x.dtype}, whose rounding is too coarse for {type(solver).__name__} to converge; pass states "
            "in float32 or float64 (the network keeps its own precision)"
        )


class Effort(NamedTuple):
    """What an implicit inverse did for each sample, ``(B,)``: the record in its `Solution.state`.

    ``residual`` is the largest one accepted in any step, or the last one reached if a step failed (NaN where its calls
    were spent): the max-norm of the difference between the method's step from the state found and the given state,
    divided by the larger of 1 and the max-norm of the latter. ``iterations`` counts those of all steps; ``status`` is
    `Status.NOT_CONVERGED` for samples for which a step could not be solved, which are NaN from there on, and
    `Status.BUDGET` for those that could not afford it, which stay where they were.
    """

    residual: Tensor
    iterations: Tensor
    status: Tensor


@dataclass(frozen=True)
class ImplicitInverse(ReversibleSolver):
    """A one-step method whose steps are undone by iteration.

    `unstep` from a to b finds the z at b with

        G(z) = base(b->a, z) - x = 0,

    sample by sample: each stops by its own residual. ``tolerance`` bounds the residual relative to the larger of 1 and
    the state's max-norm; None means 100 times the rounding of the state's dtype. With a network in float32 it cannot be
    met much below 1e-6, whatever the dtype of the state. It is the tolerance of a step: near the noise, where the state
    may be 100 times as large as the data, a relative 1e-5 there is 1e-3 in image units. Trained networks usually
    contract this error when decoding; if a round trip fails, lower ``tolerance``.

    The iterations start from z = x and use ``P = min(alpha_b/alpha_a, sigma_b/sigma_a)`` for the inverse of the step's
    Jacobian J. If the Jacobian of the predicted noise lies between 0 and 1/sigma, as an exact posterior's does, that of
    a DDIM step lies between the inverses of these two ratios: the eigenvalues of ``1 - P J`` lie between 0 and 1, and
    the iteration contracts for every step. Guidance leaves that range, and for long steps the iteration may diverge.

    A step that leaves or reaches alpha = 0 or sigma = 0 is a DDIM step, which nothing undoes: denoising merges states,
    so that the origin is not unique. Every step of ``base`` starts afresh: a method with history loses its order here;
    `TrajectoryInverse` keeps it. Under ``max_nfe`` a sample iterates as long as it can afford the most evaluations that
    a step of ``base`` may cost.
    """

    fewest_iterations: ClassVar[int] = 1
    """The smallest ``max_iterations`` that makes sense."""
    base: Solver = field(default_factory=DDIM)
    tolerance: float | None = None
    max_iterations: int = 100

    def __post_init__(self) -> None:
        require_steps(self, self.base)
        name = type(self).__name__
        if self.tolerance is not None and not as_number(self.tolerance) > 0:
            raise ValueError(f"{name}: tolerance={self.tolerance!r} must be positive, or None for round-off")
        require_whole(f"{name}: max_iterations", self.max_iterations, self.fewest_iterations)

    @property
    def order(self) -> int:  # type: ignore[override]
        """The base method's order."""
        return self.base.order

    @property
    def law(self) -> Law:  # type: ignore[override]
        """The law of the base method's steps, each by itself."""
        return law_of_steps(self.base)

    def calls(self, n_steps: int) -> int:
        """The calls of the base method."""
        return self.base.calls(n_steps)

    def calls_over(self, ode: ODE, nodes: Sequence[Node]) -> int:
        """The calls of the base method."""
        return sum(self.base.calls_over(ode, pair) for pair in pairwise(nodes))

    def uncalls_over(self, ode: ODE, nodes: Sequence[Node]) -> int:
        """At most ``uncalls(1)`` for each step, one for a DDIM step."""
        return sum(self.uncalls(1) if self.reverses(a, b) else 1 for a, b in pairwise(nodes))

    @property
    def one_step(self) -> bool:
        """True: every step of the base method starts afresh."""
        return True

    def reverses(self, a: Node, b: Node) -> bool:
        """Whether neither node is the data (sigma = 0) or pure noise (alpha below 1e-3)."""
        return not (meets_singular(Noise(), a, b) or meets_singular(Data(), a, b))

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
        """No state: every step starts afresh, because its inverse does."""
        return None

    def step(self, ode: Any, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """One step of the base method, without a history."""
        return Step(fresh_step(self.base, ode, a, b, x))

    def unstart(self, ode: ODE, nodes: Sequence[Node], x: Tensor, state: Any = None) -> Effort:
        """The effort of an earlier run, or none yet.

        Raises:
            ValueError: the states are of half precision, and no tolerance is given.
        """
        if isinstance(state, Effort):
            return state
        require_digits(self, x)
        none = torch.zeros(len(x), dtype=torch.int64, device="cpu")
        return Effort(torch.zeros(len(x), dtype=torch.float64, device="cpu"), none, none)

    def unstep(self, ode: Any, a: Node, b: Node, x: Tensor, state: Effort | None = None) -> Step:
        """Solve for the state at b; a sample that was lost costs no further calls."""
        effort = state or self.unstart(ode, (a, b), x)
        known = as_array(effort.status).copy()
        regular = self.reverses(a, b)
        left = np.flatnonzero(known == Status.SUCCESS)
        left = affording(ode, left, self.base.calls(1) if regular else 1, known)
        status = torch.from_numpy(known)
        if not len(left):
            return Step(x, state=effort._replace(status=status), status=status)
        index, rows = torch.from_numpy(left), index_on(x.device, left)
        part, given = _rows(ode, rows, len(x)), x[rows]
        if not regular:
            end = x.index_copy(0, rows, DDIM().step(part, a, b, given).x)
            return Step(end, state=effort._replace(status=status), status=status)
        found, residual, iterations, converged = self.invert(part, a, b, given)
        spent = torch.from_numpy(evaluations_left(part, np.arange(len(left))) < self.base.calls(1)) & ~converged
        lost = torch.where(spent, int(Status.BUDGET), int(Status.NOT_CONVERGED))
        status[index] = torch.where(converged, int(Status.SUCCESS), lost)
        nowhere = torch.where(column(spent, x), given, float("nan"))
        effort = Effort(
            effort.residual.index_copy(0, index, torch.maximum(effort.residual[index], residual)),
            effort.iterations.index_add(0, index, iterations),
            status,
        )
        end = x.index_copy(0, rows, torch.where(column(converged, x), found, nowhere))
        return Step(end, state=effort, status=status)

    @abstractmethod
    def invert(self, ode: Any, a: Node, b: Node, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The states at b, their residuals, iterations and whether they converged, a row for each of ``x``."""

    def bound(self, x: Tensor) -> float:
        """The tolerance for states like ``x``."""
        return 100 * torch.finfo(x.dtype).eps if self.tolerance is None else self.tolerance

    def defect(self, ode: Any, a: Node, b: Node, x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """``-P G(z)`` for some of the samples, a function of z and their rows; NaN for those that cannot afford it."""
        ratio = _preconditioner(a, b)

        def of_all(z: Tensor, rows: Tensor) -> Tensor:
            there, here = _node_rows(b, rows, len(x)), _node_rows(a, rows, len(x))
            scale = ratio if isinstance(ratio, float) else ratio[as_array(rows.cpu())]
            return combine((scale, x[rows] - fresh_step(self.base, _rows(ode, rows, len(x)), there, here, z)))

        def function(z: Tensor, rows: Tensor) -> Tensor:
            affordable = evaluations_left(ode, rows) >= self.base.calls(1)
            if affordable.all():
                return of_all(z, rows)
            keep = index_on(z.device, np.flatnonzero(affordable))
            found = of_all(z[keep], rows[keep]) if len(keep) else z[keep]
            return (z * float("nan")).index_copy(0, keep, found)

        return function

    def relative(self, a: Node, b: Node, x: Tensor) -> Tensor:
        """The factor from the max-norm of ``-P G`` to the relative residual, ``(B,)`` in float64."""
        ratio = torch.as_tensor(_preconditioner(a, b), dtype=torch.float64, device="cpu")
        return 1 / (ratio * largest(x).clamp(min=1))


@dataclass(frozen=True)
class FixedPoint(ImplicitInverse):
    """Undo a step by ``z <- z + damping * P (x - base(b->a, z))``, with Anderson's acceleration for ``history > 0``.

    For DDIM towards the noise, where P = 1/r, this is ``z = (x - k eps(z))/r`` with ``base(z) = r z + k eps(z)``:
    fixed-point DDIM inversion (Pan et al. 2023, "AIDI", with ``history`` its Anderson acceleration; Garibi et al. 2024,
    "ReNoise"). ``damping`` below 1 helps where guidance makes the plain iteration overshoot.

    ``max_iterations=0`` is not an inverse but the iteration's first value, at one call: DDIM inversion with the network
    evaluated at the time of the target node (Hertz et al. 2022, "Prompt-to-prompt").
    """

    fewest_iterations: ClassVar[int] = 0
    damping: float = 1.0
    history: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < as_number(self.damping) <= 1:
            raise ValueError(f"FixedPoint: damping={self.damping!r} must lie in (0, 1]; 1 is the plain iteration")
        require_whole("FixedPoint: history", self.history, 0, 20, hint="; 0 is none")

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """One: the base method adds nothing to measure, and the inverse is measured as `Inverse`."""
        return [cls()]

    def uncalls(self, n_steps: int) -> int:
        """The base method's calls for each iteration allowed, and once at the start."""
        return self.base.calls(n_steps) * (self.max_iterations + 1)

    def invert(self, ode: Any, a: Node, b: Node, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Iterate; each sample stops by its own residual."""
        defect, relative, bound = self.defect(ode, a, b, x), self.relative(a, b, x), self.bound(x)
        if self.max_iterations == 0:
            everyone = torch.arange(len(x), device=x.device)
            unknown = torch.full((len(x),), float("nan"), dtype=torch.float64, device="cpu")
            first = x + defect(x, everyone)
            return (
                first,
                unknown,
                torch.zeros(len(x), dtype=torch.int64, device="cpu"),
                torch.ones(len(x), dtype=torch.bool, device="cpu"),
            )
        return anderson(defect, x, relative, bound, self.max_iterations, self.damping, self.history)


@dataclass(frozen=True)
class NewtonKrylov(ImplicitInverse):
    """Undo a step by Newton's method, each linear system solved by GMRES with Jacobian-vector products alone.

    ``z <- z + d`` with ``P J d = -P G(z)`` to the residual ``0.01 |P G|`` at least, in at most ``krylov`` products by
    forward-mode differentiation (Knoll & Keyes 2004, "Jacobian-free Newton-Krylov methods"). A step that does not
    lower the defect's norm is halved, up to five times. It converges where the fixed point does not contract, as under
    guidance, and costs a product, about two calls, for each Krylov vector.
    """

    max_iterations: int = 20
    krylov: int = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("NewtonKrylov: krylov", self.krylov, 1)

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """One: the base method adds nothing to measure, and the inverse is measured as `Inverse`."""
        return [cls()]

    def unstart(self, ode: ODE, nodes: Sequence[Node], x: Tensor, state: Any = None) -> Effort:
        """The effort of an earlier run, or none yet.

        Raises:
            ValueError: the states are of half precision, and no tolerance is given.
            RuntimeError: torch.inference_mode() is on, which disables derivatives.
        """
        if torch.is_inference_mode_enabled():
            raise RuntimeError(f"{self} needs derivatives, and torch.inference_mode() is on; use torch.no_grad()")
        return super().unstart(ode, nodes, x, state)

    def uncalls(self, n_steps: int) -> int:
        """The residuals, including those of halved steps, and the products that the iterations allow."""
        return self.base.calls(n_steps) * (1 + self.max_iterations * (self.krylov + HALVINGS + 1))

    def invert(self, ode: Any, a: Node, b: Node, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Iterate; each sample stops by its own residual."""
        defect, relative, bound = self.defect(ode, a, b, x), self.relative(a, b, x), self.bound(x)
        z = x.clone()
        rows = torch.arange(len(x), device=x.device)
        value = defect(z, rows)
        residual = largest(value) * relative
        iterations = torch.zeros(len(x), dtype=torch.int64, device="cpu")
        stuck = torch.zeros(len(x), dtype=torch.bool, device="cpu")
        while True:
            active = torch.nonzero((residual > bound) & ~stuck & (iterations < self.max_iterations)).ravel()
            if not len(active):
                # A NaN is not above the bound, but has not converged either.
                return z, residual, iterations, residual <= bound
            rows = active.to(x.device)
            step = gmres(_product(defect, z[rows], rows), value[rows], self.krylov)
            iterations[active] += 1
            stuck[active] = ~self._search(defect, z, value, step, active)
            residual[active] = largest(value[rows]) * relative[active]

    def _search(
        self,
        defect: Callable[[Tensor, Tensor], Tensor],
        z: Tensor,
        value: Tensor,
        step: Tensor,
        active: Tensor,
    ) -> Tensor:
        """Take each sample's step in place, halved until it lowers the defect's norm; return whether one was found."""
        taken = torch.zeros(len(active), dtype=torch.bool, device="cpu")
        for halving in range(HALVINGS + 1):
            left = torch.nonzero(~taken).ravel()
            if not len(left):
                break
            index = active[left]
            rows = index.to(z.device)
            trial = z[rows] + step[left.to(z.device)] * 0.5**halving
            there = defect(trial, rows)
            keep = dot(there, there) < dot(value[rows], value[rows])
            better = rows[keep]
            z[better], value[better] = trial[keep], there[keep]
            taken[left[keep.cpu()]] = True
        return taken


HALVINGS = 5


def column(values: Tensor, like: Tensor) -> Tensor:
    """One value per sample, shaped to broadcast over the components of ``like``."""
    return values.to(like.device).reshape(-1, *(1,) * (like.ndim - 1))


def _preconditioner(a: Node, b: Node) -> Real:
    return native(np.minimum(np.divide(b.alpha, a.alpha), np.divide(b.sigma, a.sigma)))


def _product(defect: Callable[[Tensor, Tensor], Tensor], z: Tensor, rows: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """``P J v`` at z for some samples: the derivative of ``P G`` along v, by forward-mode differentiation."""

    def product(v: Tensor, some: Tensor) -> Tensor:
        at = some.to(z.device)
        # Dual numbers rather than torch.func.jvp, inside which no new tensor shares its memory with NumPy.
        # Of torch's kernels of attention, one alone has a forward derivative.
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            image = forward_ad.unpack_dual(defect(forward_ad.make_dual(z[at], v), rows[at]))
        assert image.tangent is not None, "the state at the start of a step moves its end"
        return -image.tangent

    return product


def _rows(ode: Any, rows: Tensor, batch: int) -> Any:
    """The problem for those samples; the problem itself if they are the whole batch."""
    return ode if len(rows) == batch else ode.rows(rows)


def _node_rows(node: Node, rows: Tensor, batch: int) -> Node:
    """The node for those samples, where samples keep their own times."""
    if isinstance(node.t, float) or len(rows) == batch:
        return node
    index = as_array(rows.cpu())
    return Node(*(value if isinstance(value, float) else value[index] for value in node))
