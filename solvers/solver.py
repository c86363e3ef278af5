"""The contract between a method and the loop that runs it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from solvers.noise import NoiseStream
from solvers.ode import ODE, Node, PathODE

Law = Literal["order", "weak", "tolerance", "bounded"]
Past = Sequence[tuple[Node, Tensor]]
"""Exact states at earlier nodes, newest first."""


class Step(NamedTuple):
    """What one step returns: the state at ``b``, and the run's state.

    A method that can lose single samples reports them in ``status``, int64 ``(B,)`` with the values of `Status`.
    """

    x: Tensor
    state: Any = None
    status: Tensor | None = None


@dataclass(frozen=True)
class Solver(ABC):
    """A method for ``dx/dt = f(t, x)``. Writing one takes four decisions.

    1. **Make it a frozen dataclass.** Its fields are its settings; nothing of a run is stored on it.

    2. **Write** `step` **from node a to node b.** On a path it may call ``ode.predict(a, x)``, which gives ``x0`` and
       ``eps`` (one network call), and put them together with `combine`; on any ODE it may call ``ode(t, x)``. It may
       read its arguments and whatever the ODE returns, but must not modify them in place. ``b`` may lie after or before
       ``a``: never negate a time, never assume a direction, nor that alpha^2 + sigma^2 = 1. ``x`` is ``(B, ...)``: what
       is reduced is reduced over all components of a sample. Either node may be pure noise (alpha = 0) or the data
       (sigma = 0): where a formula divides by one of them, fall back on the DDIM step below, which is regular at both
       ends::

            @dataclass(frozen=True)
            class MyDDIM(Solver):
                order: ClassVar[int] = 1

                def step(self, ode, a, b, x, state=None):
                    prediction = ode.predict(a, x)
                    return Step(combine((b.alpha, prediction.x0), (b.sigma, prediction.eps)))

    3. **Declare** `order` (with exact history), `own_start_order` if its own start is less accurate, the `law` when
       there is no integer order, `deterministic`, and `calls` when a step costs more than one.

    4. **History** (multistep methods), a second state (reversible ones) or a noise stream (stochastic ones) goes into
       the ``state`` that `start` makes and `step` takes and returns; a method with history declares that `one_step` is
       False. `start` is always called, with every node of the grid, except the last if a closing step leads there:
       compute there, once, whatever depends on the nodes alone.

    A method that owns its stepping (adaptive methods, those of other libraries) overrides `solve` instead, and declares
    whether it `carries_on`; it reports samples that fail by the status in the `Step`. Finally,
    ``solvers.testing.check(MySolver())`` measures everything that was declared.
    """

    order: ClassVar[int]
    law: ClassVar[Law] = "order"
    """What the declared order means: "order", a deterministic order of convergence; "weak", the order in which moments
    converge; "tolerance", an error that follows the requested tolerance; "bounded", an error without an order."""

    @property
    def own_start_order(self) -> int:
        """The order without exact history."""
        return self.order

    @property
    def deterministic(self) -> bool:
        """Whether a solve is a function of the initial state alone, without a noise stream. Inversion requires it."""
        return True

    @property
    def one_step(self) -> bool:
        """Whether a step reads nothing that earlier steps left behind, so that it may be taken by itself."""
        return True

    @property
    def reads_past(self) -> bool:
        """Whether `start` uses exact states at earlier nodes, as methods with a history do."""
        return not self.one_step

    @property
    def carries_on(self) -> bool:
        """Whether two solves joined by `Solution.state` equal one solve, bit for bit."""
        return True

    @property
    def differentiable(self) -> bool:
        """Whether autograd can differentiate through the steps.

        If not, the solve is run without gradients, since the closing step alone would yield a partial one.
        """
        return True

    @property
    def extrapolates(self) -> bool:
        """Whether a method that owns its stepping can go from the last node but one to the data without a call."""
        return False

    @property
    def closes(self) -> bool:
        """Whether its own last step to the data is at least as accurate as denoising, at no extra cost."""
        return False

    @classmethod
    def variants(cls) -> "Sequence[Solver]":
        """The settings that differ in kind: tests measure them and benchmarks compare them."""
        return [cls()]

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
        """Return the state of a run over ``nodes``; ``state`` continues an earlier run, ``past`` is exact history."""
        return state

    @abstractmethod
    def step(self, ode: Any, a: Node, b: Node, x: Tensor, state: Any = None) -> Step:
        """Move ``x`` from node ``a`` to node ``b``."""

    def solve(self, ode: ODE, nodes: Sequence[Node], x: Tensor, state: Any) -> Iterator[Step]:
        """Yield one `Step` for every node after the first."""
        for a, b in pairwise(nodes):
            step = self.step(ode, a, b, x, state)
            yield step
            x, state = step.x, step.state

    def calls(self, n_steps: int) -> int:
        """Evaluations that ``n_steps`` steps cost; an upper bound where that depends on the problem."""
        return n_steps

    def calls_over(self, ode: ODE, nodes: Sequence[Node]) -> int:
        """Evaluations that a solve over ``nodes`` costs: `calls`, unless some of these steps are cheaper."""
        return self.calls(len(nodes) - 1)


def require_solver(solver: object) -> None:
    """Raise `TypeError` unless ``solver`` is a `Solver`."""
    if not isinstance(solver, Solver):
        if isinstance(solver, type):
            ours = "solvers." if solver.__module__.startswith("solvers.") else ""
            remedy = f"an instance, {ours}{solver.__name__}()"
        elif hasattr(solver, "embedded") or hasattr(solver, "trial"):
            remedy = f"solvers.Adaptive({solver})"
        else:
            remedy = "an instance such as solvers.DDIM()"
        raise TypeError(f"solver={solver!r} must be a solvers.Solver; pass {remedy}")


def require_past(solver: Solver, past: object, x: Tensor) -> None:
    """Raise unless ``past`` holds (node, state) pairs, with states in the shape of x, and is empty if not read."""
    if not isinstance(past, Sequence):
        raise TypeError(f"past={past!r} must be a sequence of (node, state) pairs, newest first; leave it out for none")
    if past and not solver.reads_past:
        raise ValueError(f"past: {solver} reads no exact states at earlier nodes; leave it out")
    for i, pair in enumerate(past):
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], Node)):
            raise TypeError(f"past[{i}] must be a pair (node, state), newest first; ode.node(t) is the node of a time")
        known = pair[1]
        if not isinstance(known, Tensor) or known.shape != x.shape:
            got = tuple(known.shape) if isinstance(known, Tensor) else type(known).__name__
            raise ValueError(f"past[{i}] has the state {got} for x of {tuple(x.shape)}; pass those of its samples")


def require_rows(state: Any, x: Tensor) -> None:
    """Raise `ValueError` if a run's ``state`` holds states of other samples than those of ``x``."""
    if isinstance(state, Tensor):
        if state.is_floating_point() and state.ndim == x.ndim and len(state) != len(x):
            raise ValueError(
                f"state: its history has the shape {tuple(state.shape)}, but x has {tuple(x.shape)}; carry on the "
                "samples that it was made with"
            )
    elif isinstance(state, tuple | list):
        for part in state:
            require_rows(part, x)


def require_run(solver: Solver, state: object, kind: type, name: str = "state") -> None:
    """Raise `TypeError` unless ``state``, which the message calls ``name``, is a ``kind`` or None."""
    if not isinstance(state, kind | None):
        raise TypeError(f"state: a {type(state).__name__} is not a {name} of {solver}; pass its own Solution.state")


def require_path(solver: Solver, ode: ODE) -> None:
    """Raise `TypeError` unless ``ode`` splits a state into data and noise."""
    if not isinstance(ode, PathODE):
        # Within a solve the problem is wrapped by the counter: the message names what the user passed.
        name = type(getattr(ode, "ode", ode)).__name__
        raise TypeError(
            f"{solver} needs predictions of data and noise, but ode={name} is not a PathODE; "
            "use a Runge-Kutta method with line=None, or derive the problem from solvers.PathODE"
        )
