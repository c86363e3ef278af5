"""Two-step methods that are their own inverse: of three neighbouring states, either outer one from the other two."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from solvers.arguments import as_number
from solvers.exponential import DDIM
from solvers.lattice import WIDE, Lattice
from solvers.lines import Data, Line, Noise, Rotation, require_line
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node, PathODE
from solvers.real import Real, native
from solvers.reversible import (
    Companion,
    ReversibleSolver,
    companion_at,
    meets_singular,
    require_companion,
    starts,
)
from solvers.runge_kutta import RK4
from solvers.solver import Past, Solver, Step, require_path
from solvers.sums import combine, per_row


@dataclass(frozen=True)
class TwoStep(ReversibleSolver):
    """A method ``z_b = r z_p + w_a`` over neighbours p, a, b: the state at b from those at p and a, one call at a.

    Solved for z_p it is itself with p and b exchanged, and r replaced by 1/r. The companion is the state at p. A run
    that turns round finds it at its first target, and takes it as it is, without a call.
    """

    @property
    def reads_past(self) -> bool:
        """True: the previous state is the companion."""
        return True

    def start(
        self,
        ode: ODE,
        nodes: Sequence[Node],
        x: Tensor,
        *,
        stream: NoiseStream | None = None,
        past: Past = (),
        state: Companion | None = None,
    ) -> Companion | None:
        """The companion of an earlier run, or the newest exact state."""
        require_path(self, ode)
        require_companion(self, state)
        if state is not None and len(past):
            raise ValueError("past, state: both carry a history; give one of them")
        if past:
            (node, partner), scale = past[0], self.scale(nodes[0])
            if len(nodes) > 1 and (node.t - nodes[0].t) * (nodes[1].t - nodes[0].t) >= 0:
                raise ValueError(f"past: its node t={node.t} does not lie behind the first of the grid, t={nodes[0].t}")
            if not self.reverses(node, nodes[0]):
                return None  # a singular node has no finite z on the line, and no method reads it
            other = self.lattice.digits(self.scale(node), partner, None)
            return companion_at(self, self.lattice, scale, nodes[0], x, None)._replace(other=other, node=node)
        return state

    def step(self, ode: Any, a: Node, b: Node, x: Tensor, state: Companion | None = None) -> Step:
        """Take the companion if it is at b; else go on from it, or start."""
        return self._step(ode, a, b, x, state, back=False)

    def unstep(self, ode: Any, a: Node, b: Node, x: Tensor, state: Companion | None = None) -> Step:
        """`step`, with the companion on the other side."""
        return self._step(ode, a, b, x, state, back=True)

    def _step(self, ode: Any, a: Node, b: Node, x: Tensor, state: Companion | None, back: bool) -> Step:
        if not self.reverses(a, b):
            return Step(DDIM().step(ode, a, b, x).x)
        scale = self.scale(b)
        pair = companion_at(self, self.lattice, self.scale(a), a, x, state)
        if pair.other is None or pair.node is None:
            there = self.lattice.digits(scale, self.begin(ode, a, b, x), None)
        elif np.array_equal(pair.node.t, b.t):
            there = pair.other
        else:
            there = self._advance(ode, pair.node, a, b, pair.other, pair.z, x, back)
        return pair.moved(self.lattice, scale, b, x, z=there, other=pair.z, node=a)

    def _advance(
        self, ode: Any, p: Node, a: Node, b: Node, partner: Tensor, here: Tensor, x: Tensor, back: bool
    ) -> Tensor:
        """The expanding direction is computed as written, the other as its inverse: together they are exact."""
        expands, snap = self.expands(p, a, b, back), self.lattice.snap
        slope = self.slope_at(ode, a, x)
        direct = inverse = partner
        if np.any(expands):
            r, added = self.parts(p, a, b, here, slope, back)
            direct = self.lattice.grow(partner, r) + snap(added)
        if not np.all(expands):
            r, added = self.parts(b, a, p, here, slope, not back)
            inverse = self.lattice.shrink(partner - snap(added), r)
        if isinstance(expands, np.ndarray):
            return torch.where(per_row(expands, partner) > 0, direct, inverse)
        return direct if expands else inverse

    @property
    @abstractmethod
    def lattice(self) -> Lattice:
        """The lattice of z."""

    @abstractmethod
    def scale(self, node: Node) -> Real:
        """The factor in ``x = scale z``."""

    @abstractmethod
    def begin(self, ode: PathODE, a: Node, b: Node, x: Tensor) -> Tensor:
        """The state at b without a companion."""

    @abstractmethod
    def expands(self, p: Node, a: Node, b: Node, back: bool) -> bool | np.ndarray:
        """Whether r >= 1; the opposite holds with p and b exchanged, unless r = 1."""

    @abstractmethod
    def slope_at(self, ode: PathODE, a: Node, x: Tensor) -> Any:
        """The network's prediction at a, in the form that `parts` reads."""

    @abstractmethod
    def parts(self, p: Node, a: Node, b: Node, here: Tensor, slope: Any, back: bool) -> tuple[Real, Tensor]:
        """The factor r and w_a; ``back`` is True in an inverse step."""


@dataclass(frozen=True)
class BDIA(TwoStep):
    """Bidirectional integration approximation.

    Zhang, Lewis & Kleijn 2023, "Exact diffusion inversion via bi-directional integration approximation":

        x_b = D(a->b, x_a) + gamma (x_p - D(a->p, x_a))

    where D is the DDIM step: the error of a DDIM step from a back to p is compensated. For gamma = 1, the default, this
    is the explicit midpoint rule over two intervals, in x: of order 2 on smooth grids and 1 on irregular ones. A
    smaller gamma damps its second root, which the inverse then amplifies by 1/gamma in every step: gamma = 0.5 exhausts
    float64 in 50 steps.

    It starts with a DDIM step, divides by nothing, and is regular at both ends.
    """

    order: ClassVar[int] = 2
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < as_number(self.gamma) <= 1:
            raise ValueError(f"BDIA: gamma={self.gamma!r} must lie in (0, 1]; 1 inverts without loss")

    @property
    def lattice(self) -> Lattice:
        """The lattice of x, which may be as large as sigma."""
        return WIDE

    def scale(self, node: Node) -> Real:
        """1: the method works on x."""
        return 1.0

    def begin(self, ode: PathODE, a: Node, b: Node, x: Tensor) -> Tensor:
        """A DDIM step."""
        return DDIM().step(ode, a, b, x).x

    def expands(self, p: Node, a: Node, b: Node, back: bool) -> bool:
        """Whether r >= 1: in inverse steps, and for gamma = 1 in all."""
        return back or self.gamma == 1

    def slope_at(self, ode: PathODE, a: Node, x: Tensor) -> Any:
        """The prediction."""
        return ode.predict(a, x)

    def parts(self, p: Node, a: Node, b: Node, here: Tensor, slope: Any, back: bool) -> tuple[Real, Tensor]:
        """``gamma`` and ``D(a->b) - gamma D(a->p)`` as one sum; inverse steps have 1/gamma instead."""
        gamma = 1 / self.gamma if back else self.gamma
        data, noise = (native(np.subtract(to, gamma * of)) for to, of in ((b.alpha, p.alpha), (b.sigma, p.sigma)))
        return gamma, slope.mix(data, noise)


@dataclass(frozen=True)
class LineTwoStep(TwoStep):
    """A two-step method along a line ``z = x/scale, dz/dq = slope``, which starts with one step of RK4.

    Starting with a DDIM step would add an error as large as that of all following steps. Steps that leave or reach a
    singular node of the line are DDIM steps, which nothing undoes.
    """

    line: Line = field(default_factory=Noise)

    def __post_init__(self) -> None:
        require_line(self, self.line)

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """The three lines."""
        return [cls(line) for line in (Noise(), Data(), Rotation())]

    @property
    def lattice(self) -> Lattice:
        """The lattice of the lines."""
        return WIDE

    def start(
        self,
        ode: ODE,
        nodes: Sequence[Node],
        x: Tensor,
        *,
        stream: NoiseStream | None = None,
        past: Past = (),
        state: Companion | None = None,
    ) -> Companion | None:
        """The companion of every two-step method; raises for states in half precision."""
        if x.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"x has dtype {x.dtype}, whose rounding the second root of {self} keeps or amplifies; use a float32 "
                "state, and let the network compute in half precision"
            )
        return super().start(ode, nodes, x, stream=stream, past=past, state=state)

    def calls(self, n_steps: int) -> int:
        """One for each step, and three more for the start."""
        return n_steps + 3

    def calls_over(self, ode: ODE, nodes: Sequence[Node]) -> int:
        """One for each step, and three more for the start after every DDIM step."""
        return len(nodes) - 1 + 3 * starts(self, nodes)

    def scale(self, node: Node) -> Real:
        """The line's scale."""
        return self.line.scale(node)

    def reverses(self, a: Node, b: Node) -> bool:
        """Whether neither node is singular on the line."""
        return not meets_singular(self.line, a, b)

    def begin(self, ode: PathODE, a: Node, b: Node, x: Tensor) -> Tensor:
        """One step of RK4."""
        return RK4(self.line).step(ode, a, b, x).x

    def slope_at(self, ode: PathODE, a: Node, x: Tensor) -> Tensor:
        """The line's slope."""
        return self.line.slope(a, ode.predict(a, x)).double()


@dataclass(frozen=True)
class Leapfrog(LineTwoStep):
    """The explicit midpoint rule over two intervals: ``z_b = z_p + (q_b - q_p) slope_a``.

    Nystrom's (Hairer, Norsett & Wanner 1993, "Solving ordinary differential equations I", section III.1). Of order 2
    where neighbouring steps differ by O(h^2), as on every smooth grid, and 1 on irregular ones. The second root, -1,
    preserves the errors of rounding and of the start.
    """

    order: ClassVar[int] = 2

    def expands(self, p: Node, a: Node, b: Node, back: bool) -> bool:
        """True: r = 1 in both directions."""
        return True

    def parts(self, p: Node, a: Node, b: Node, here: Tensor, slope: Tensor, back: bool) -> tuple[Real, Tensor]:
        """``1`` and ``(q_b - q_p) slope_a``."""
        return 1.0, combine((self.line.q(b) - self.line.q(p), slope))


@dataclass(frozen=True)
class OBELM(LineTwoStep):
    """O-BELM (Wang et al. 2024, "BELM: bidirectional explicit linear multi-step samplers", eq. 18).

    With ``h = q_b - q_a``, ``g = q_a - q_p`` and ``r = (h/g)^2``

        z_b = r z_p + (1 - r) z_a + h (g + h)/g slope_a

    is the explicit two-step formula with one slope and the least error: exact for parabolas, whatever the steps. Its
    second root is -r: over a solve the product is the square of the ratio of the last step to the first. On DDPM's
    table and the noise line, towards the noise, that is 1.7e5 over 50 nodes uniform in t and 1.7e8 over 50 uniform in
    log-SNR. Alternating or jittered steps keep order 2; between random nodes, where r may be large, errors grow with
    the number of steps. Where steps shrink towards the noise, as on the data line, encoding contracts, and decoding
    amplifies the rounding to the lattice by the same product.
    """

    order: ClassVar[int] = 2

    def expands(self, p: Node, a: Node, b: Node, back: bool) -> bool | np.ndarray:
        """Whether steps grow."""
        q_p, q_a, q_b = (self.line.q(node) for node in (p, a, b))
        grows = np.abs(np.subtract(q_b, q_a)) >= np.abs(np.subtract(q_a, q_p))
        return grows if grows.ndim else bool(grows)

    def parts(self, p: Node, a: Node, b: Node, here: Tensor, slope: Tensor, back: bool) -> tuple[Real, Tensor]:
        """The factor ``r`` and ``(1 - r) z_a + h (g + h)/g slope_a``."""
        h, g = self.line.q(b) - self.line.q(a), self.line.q(a) - self.line.q(p)
        ratio = h / g
        return ratio**2, combine((1 - ratio**2, here), (ratio * (g + h), slope))
