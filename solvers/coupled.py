"""Reversible one-step methods: the state and a companion are advanced alternately, each using the other.

All of them work on a `Lattice`, to which a state is rounded first. The remainder is added again when the run returns:
encoding data and decoding them restores every bit. In the opposite order, from the noise to the data and back, methods
that contract towards the data lose digits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor

from solvers.arguments import as_number
from solvers.exponential import DDIM
from solvers.lattice import FINE, WIDE, Lattice
from solvers.lines import Data, Line, Noise, Rotation, require_line
from solvers.noise import NoiseStream
from solvers.ode import ODE, Node
from solvers.real import Real
from solvers.reversible import (
    Companion,
    ReversibleSolver,
    companion_at,
    fresh_step,
    law_of_steps,
    meets_singular,
    require_companion,
    require_steps,
    starts,
)
from solvers.runge_kutta import RK4, Heun
from solvers.solver import Law, Past, Solver, Step, require_path
from solvers.sums import combine


@dataclass(frozen=True)
class Pair(ReversibleSolver):
    """A method that advances a pair along a line; at singular nodes it makes DDIM steps, which nothing undoes."""

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
        """The companion of an earlier run; otherwise the first regular step makes one."""
        require_path(self, ode)
        require_companion(self, state)
        return state

    def reverses(self, a: Node, b: Node) -> bool:
        """Whether neither node is singular on the line."""
        return not meets_singular(self.along, a, b)

    @property
    def along(self) -> Line:
        """The line."""
        return Noise()

    def companion(self, a: Node, x: Tensor, state: Companion | None) -> Companion:
        """The state in the line's coordinates, and what is carried with it."""
        return companion_at(self, WIDE, self.along.scale(a), a, x, state)

    def slope(self, ode: Any, node: Node, z: Tensor, like: Tensor, scale: Real | None = None) -> Tensor:
        """The line's slope at z, on the lattice; the network receives the dtype of ``like``."""
        x = combine((self.along.scale(node) if scale is None else scale, z)).to(like.dtype)
        return WIDE.snap(self.along.slope(node, ode.predict(node, x)))

    def landed(self, pair: Companion, b: Node, like: Tensor, **companion: Tensor) -> Step:
        """The step that ends at b with these lattice states."""
        return pair.moved(WIDE, self.along.scale(b), b, like, **companion)


@dataclass(frozen=True)
class EDICT(Pair):
    """Exact inversion via coupled transformations (Wallace, Gokul & Naik 2023, "EDICT", eqs. 11 to 14).

    With ``M(x; y) = (alpha_b/alpha_a) x + (sigma_b - sigma_a alpha_b/alpha_a) eps(y)``, the DDIM step of x with the
    noise predicted from y at node a:

        x' = M(x; y),  y' = M(y; x'),  x_b = p x' + (1 - p) y',  y_b = p y' + (1 - p) x_b

    It starts with y = x and makes two calls. Averaging contracts the pair's difference, and the inverse expands it by
    ``p^-2`` in every step: 1e3 in 50 steps, and 2e6 in 100, where the latent is no longer noise; 4e12 in 200, where it
    is useless. From large noise levels, as on variance-exploding paths, long steps amplify too: at 20 calls the result
    may be far from DDIM's.
    """

    order: ClassVar[int] = 1
    p: float = 0.93

    def __post_init__(self) -> None:
        if not 0 < as_number(self.p) <= 1:
            raise ValueError(f"EDICT: p={self.p!r} must lie in (0, 1]; the paper's is 0.93")

    def calls(self, n_steps: int) -> int:
        """Two for each step."""
        return 2 * n_steps

    def calls_over(self, ode: ODE, nodes: Sequence[Node]) -> int:
        """Two for each step, one for a DDIM step."""
        return sum(2 if self.reverses(a, b) else 1 for a, b in pairwise(nodes))

    def step(self, ode: Any, a: Node, b: Node, x: Tensor, state: Companion | None = None) -> Step:
        """Move x by y, y by the new x, and average."""
        if not self.reverses(a, b):
            return Step(DDIM().step(ode, a, b, x).x)
        pair, z, y = self._pair(a, x, state)
        snap, h = WIDE.snap, b.s - a.s
        z = z + snap(combine((h, self.slope(ode, a, y, x))))
        y = y + snap(combine((h, self.slope(ode, a, z, x, b.alpha))))
        z = y + WIDE.shrink(z - y, 1 / self.p)
        return self.landed(pair, b, x, z=z, other=z + WIDE.shrink(y - z, 1 / self.p))

    def unstep(self, ode: Any, a: Node, b: Node, x: Tensor, state: Companion | None = None) -> Step:
        """Undo the average, then move y back by x, and x back by y."""
        if not self.reverses(a, b):
            return Step(DDIM().step(ode, a, b, x).x)
        pair, z, y = self._pair(a, x, state)
        snap, h = WIDE.snap, a.s - b.s
        y = z + WIDE.grow(y - z, 1 / self.p)
        z = y + WIDE.grow(z - y, 1 / self.p)
        y = y - snap(combine((h, self.slope(ode, b, z, x, a.alpha))))
        z = z - snap(combine((h, self.slope(ode, b, y, x))))
        return self.landed(pair, b, x, z=z, other=y)

    def _pair(self, a: Node, x: Tensor, state: Companion | None) -> tuple[Companion, Tensor, Tensor]:
        pair = self.companion(a, x, state)
        return pair, pair.z, pair.z if pair.other is None else pair.other


@dataclass(frozen=True)
class LinePair(Pair):
    """A method that, with the sign of the step reversed, is its own inverse: `unstep` is `step`.

    It carries a slope from step to step: the start costs one call, and so does every step.
    """

    order: ClassVar[int] = 2
    line: Line = field(default_factory=Noise)

    def __post_init__(self) -> None:
        require_line(self, self.line)

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """The three lines."""
        return [cls(line) for line in (Noise(), Data(), Rotation())]

    @property
    def along(self) -> Line:
        """The line."""
        return self.line

    def calls(self, n_steps: int) -> int:
        """One for each step, and one for the start."""
        return n_steps + 1

    def calls_over(self, ode: ODE, nodes: Sequence[Node]) -> int:
        """One for each step, and one for the start after every DDIM step."""
        return len(nodes) - 1 + starts(self, nodes)

    def unstep(self, ode: Any, a: Node, b: Node, x: Tensor, state: Companion | None = None) -> Step:
        """The step."""
        return self.step(ode, a, b, x, state)


@dataclass(frozen=True)
class AsynchronousLeapfrog(LinePair):
    """Asynchronous leapfrog (Mutze 2013; Zhuang et al. 2021, "MALI", algorithm 2), with a slope v beside z.

    With ``h = q_b - q_a``:

        m = z_a + h/2 v_a,  u = slope(m) at (q_a + q_b)/2,  v_b = 2 u - v_a,  z_b = m + h/2 v_b

    The middle is in the line's variable. It starts with the slope at the first node.
    """

    def step(self, ode: Any, a: Node, b: Node, x: Tensor, state: Companion | None = None) -> Step:
        """Half a step by the old slope, half by the new one."""
        if not self.reverses(a, b):
            return Step(DDIM().step(ode, a, b, x).x)
        pair, snap = self.companion(a, x, state), WIDE.snap
        z = pair.z
        slope = self.slope(ode, a, z, x) if pair.slope is None else pair.slope
        q_a, q_b = self.line.q(a), self.line.q(b)
        half = (q_b - q_a) / 2
        # The same middle from either side, to the last bit: q_a + half is not.
        middle = self.line.node(ode, (q_a + q_b) / 2)
        z = z + snap(combine((half, slope)))
        slope = 2 * self.slope(ode, middle, z, x) - slope
        return self.landed(pair, b, x, z=z + snap(combine((half, slope))), slope=slope)


@dataclass(frozen=True)
class ReversibleHeun(LinePair):
    """The reversible Heun method (Kidger et al. 2021, "Efficient and accurate gradients for neural SDEs", algorithm 1).

    Beside z it has a second state Z, the only one at which the network is called; with ``h = q_b - q_a`` and
    ``v = slope(Z)``:

        Z_b = 2 z_a - Z_a + h v_a,  z_b = z_a + h/2 (v_a + v_b)

    It starts with Z = z. The difference of the two changes its sign in every step without damping: it grows like the
    exponential of the field's Lipschitz constant times the distance, faster than in the other pairs.
    """

    def step(self, ode: Any, a: Node, b: Node, x: Tensor, state: Companion | None = None) -> Step:
        """Reflect the second state, and integrate the first by the trapezoidal rule over the second's slopes."""
        if not self.reverses(a, b):
            return Step(DDIM().step(ode, a, b, x).x)
        pair, snap = self.companion(a, x, state), WIDE.snap
        z = pair.z
        if pair.other is None or pair.slope is None:
            other, slope = z, self.slope(ode, a, z, x)
        else:
            other, slope = pair.other, pair.slope
        half = (self.line.q(b) - self.line.q(a)) / 2
        before = snap(combine((half, slope)))
        other = 2 * (z + before) - other
        slope = self.slope(ode, b, other, x)
        return self.landed(pair, b, x, z=z + before + snap(combine((half, slope))), other=other, slope=slope)


@dataclass(frozen=True)
class Reversible(ReversibleSolver):
    """Any one-step method, made reversible (McCallum & Foster 2024, "Efficient, accurate and stable gradients ...").

    With ``Psi(a->b, x)`` the increment of ``base`` and c the ``coupling``:

        y_b = c y_a + (1 - c) z_a + Psi(a->b, z_a),     z_b = z_a - Psi(b->a, y_b)
        z_a = z_b + Psi(b->a, y_b),     y_a = z_a + (y_b - z_a - Psi(a->b, z_a)) / c

    The result is y, its companion z; it starts with z = y, keeps the order of ``base`` and costs twice its calls. In x
    it divides by nothing and is reversible wherever ``base`` is finite; in x/alpha over sigma/alpha it is known as Rex.
    Where the field contracts, the difference of y and z grows: on ``dx/dt = -L x`` by ``c e^{L h}`` in every step. A
    smaller c makes the method more stable, but its inverse amplifies more: by 1/c in every step.

    Its lattice is fine, for the accuracy of ``base``, and exact for states up to 16. On paths with larger states, such
    as variance-exploding ones, set ``spacing`` to 2^-38, which is exact up to 32,768 and rounds to 4e-12.
    """

    base: Solver = field(default_factory=lambda: RK4(Noise()))
    coupling: float = 0.999
    spacing: float = FINE.spacing

    def __post_init__(self) -> None:
        require_steps(self, self.base)
        if not 0 < (spacing := as_number(self.spacing)) < 1 or math.frexp(spacing)[0] != 0.5:
            raise ValueError(f"Reversible: spacing={self.spacing!r} must be a power of two below 1, such as 2**-38")
        if not 0 < as_number(self.coupling) <= 1:
            raise ValueError(f"Reversible: coupling={self.coupling!r} must lie in (0, 1]; the paper's is 0.999")

    @property
    def order(self) -> int:  # type: ignore[override]
        """The base method's order."""
        return self.base.order

    @property
    def law(self) -> Law:  # type: ignore[override]
        """The law of the base method's steps, each by itself."""
        return law_of_steps(self.base)

    @property
    def lattice(self) -> Lattice:
        """The lattice of its states."""
        return Lattice(self.spacing)

    @classmethod
    def variants(cls) -> Sequence[Solver]:
        """Around methods of order 2 and 4."""
        return [cls(Heun(Rotation())), cls()]

    def calls(self, n_steps: int) -> int:
        """Twice the calls of the base method."""
        return 2 * self.base.calls(n_steps)

    def calls_over(self, ode: ODE, nodes: Sequence[Node]) -> int:
        """The calls of the base method, forwards and backwards."""
        return sum(self.base.calls_over(ode, pair) for a, b in pairwise(nodes) for pair in ((a, b), (b, a)))

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
        """The companion of an earlier run; otherwise the first step makes one."""
        require_companion(self, state)
        return state

    def step(self, ode: Any, a: Node, b: Node, x: Tensor, state: Companion | None = None) -> Step:
        """Move y by z, then z by the new y."""
        pair, y, z = self._pair(a, x, state)
        y = z + self._increment(ode, a, b, z, x) + self.lattice.shrink(y - z, 1 / self.coupling)
        return pair.moved(self.lattice, 1.0, b, x, z=y, other=z - self._increment(ode, b, a, y, x))

    def unstep(self, ode: Any, a: Node, b: Node, x: Tensor, state: Companion | None = None) -> Step:
        """Move z back by y, then y by the old z."""
        pair, y, z = self._pair(a, x, state)
        z = z + self._increment(ode, a, b, y, x)
        y = z + self.lattice.grow(y - z - self._increment(ode, b, a, z, x), 1 / self.coupling)
        return pair.moved(self.lattice, 1.0, b, x, z=y, other=z)

    def _pair(self, a: Node, x: Tensor, state: Companion | None) -> tuple[Companion, Tensor, Tensor]:
        pair = companion_at(self, self.lattice, 1.0, a, x, state)
        return pair, pair.z, pair.z if pair.other is None else pair.other

    def _increment(self, ode: Any, a: Node, b: Node, z: Tensor, like: Tensor) -> Tensor:
        x = z.to(like.dtype)
        return self.lattice.snap(fresh_step(self.base, ode, a, b, x).double() - x.double())
