"""Every exported solver does what it declares; and `solvers.testing.check` finds out those that do not."""

import math
from dataclasses import dataclass, field, replace
from inspect import isabstract
from typing import Any, ClassVar

import pytest
import torch

import solvers
from solvers import DDIM, Euler, Heun, Node, NoiseStream, Solver, Step, combine
from solvers.exponential import direction, posterior_std
from solvers.runge_kutta import Tableau
from solvers.testing import (
    CHECKPOINTS,
    CHECKS,
    SPAN,
    check,
    check_alternating_steps,
    check_answers_stay,
    check_both_ends,
    check_calls,
    check_carry_on,
    check_dtype,
    check_gradient,
    check_independence,
    check_inverse,
    check_law,
    check_noise,
    check_path,
    check_runs_apart,
    check_settings,
    check_shape,
    departures,
    measured_order,
    mild_mixture,
    reference,
    uneven_times,
)

CLASSES = [getattr(solvers, name) for name in solvers.__all__]
CLASSES = [one for one in CLASSES if isinstance(one, type) and issubclass(one, Solver) and not isabstract(one)]
CLASSES = [one for one in CLASSES if one is not solvers.RungeKutta]
SOLVERS = [solver for one in CLASSES for solver in one.variants()]


KNOWN = {
    (
        solvers.LMS(),
        check_both_ends,
    ): "a cubic in s, extrapolated from s = 3.7 to 7.6, errs by 0.6 instead of 0.5",
}


def measurements():
    """Every part of the check for every solver; the known exceptions have to fail."""
    for solver in SOLVERS:
        for part in CHECKS:
            reason = KNOWN.get((solver, part))
            marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
            yield pytest.param(solver, part, marks=marks, id=f"{solver}-{part.__name__.removeprefix('check_')}")


@pytest.mark.parametrize(("solver", "part"), list(measurements()))
def test_a_solver_does_what_it_declares(solver, part):
    part(solver)


def test_every_exported_solver_is_measured():
    assert {type(solver) for solver in SOLVERS} == set(CLASSES)
    assert {"DDIM", "DDPM", "Euler", "Heun", "RK4", "Dopri5", "Tsit5", "UniPC", "Torchdiffeq", "Scipy"} <= {
        one.__name__ for one in CLASSES
    }


def test_check_runs_every_part():
    check(DDIM())
    check(DDIM(eta=1.0))


def test_check_wants_an_instance():
    with pytest.raises(TypeError, match=r"solver=.*solvers\.DDIM\(\)"):
        check(DDIM)


def test_check_wants_an_order():
    class Orderless(Solver):
        def step(self, ode, a, b, x, state=None):
            return DDIM().step(ode, a, b, x)

    with pytest.raises(AssertionError, match="declares no order; give its class one"):
        check(Orderless())


def test_check_finds_a_division_by_alpha():
    @dataclass(frozen=True)
    class Divided(Solver):
        order: ClassVar[int] = 1

        def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
            eps = ode.predict(a, x).eps
            return Step(solvers.combine((b.alpha / a.alpha, x), (b.sigma - a.sigma * b.alpha / a.alpha, eps)))

    with pytest.raises(AssertionError, match="Divided.*divides by alpha = 0 at pure noise"):
        check(Divided())


def test_check_finds_a_logarithm_of_sigma():
    @dataclass(frozen=True)
    class Logarithmic(Solver):
        order: ClassVar[int] = 1

        def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
            ratio = math.exp(math.log(b.sigma) - math.log(a.sigma))
            return Step(combine((ratio, x), (b.alpha - a.alpha * ratio, ode.predict(a, x).x0)))

    with pytest.raises(AssertionError, match=r"Logarithmic\(\): ValueError between alpha = 0 .*use a DDIM step"):
        check(Logarithmic())


# The measuring itself


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 6])
def test_the_measured_order_is_that_of_a_power_law(order):
    assert measured_order(lambda steps: (0.3 / steps) ** order) == pytest.approx(order, abs=1e-12)


def test_no_order_is_measured_in_round_off():
    with pytest.raises(AssertionError, match="only 2 errors above round-off"):
        measured_order(lambda steps: (0.5 / steps) ** 10)


def test_the_order_of_nan_is_refused():
    @dataclass(frozen=True)
    class Nan(DDIM):
        def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
            return Step(math.nan * super().step(ode, a, b, x, state).x)

    with pytest.raises((AssertionError, solvers.SolveError)):
        check_law(Nan())


def test_an_error_that_grows_without_bound_has_no_order():
    with pytest.raises(AssertionError, match="grows with the number of steps until it is infinite"):
        measured_order(lambda steps: math.inf if steps > 600 else 1.0)


@pytest.mark.parametrize("span", [SPAN, SPAN[::-1]])
def test_the_reference_agrees_with_a_method_of_another_library_at_another_tolerance(span):
    x = departures(*span)
    times = uneven_times(*span, CHECKPOINTS)
    # LSODA's multistep formulas share nothing with the Runge-Kutta pair behind the reference.
    found = solvers.solve(mild_mixture(), solvers.Scipy("LSODA", rtol=1e-12), x, times, trajectory=True)
    assert (found.trajectory[1:] - reference(*span)).abs().max() < 1e-9
    # And the flow is one: there and back.
    if span == SPAN:
        torch.testing.assert_close(reference(*span[::-1])[-1], x, rtol=0, atol=2e-14)


def test_the_test_grid_is_uneven_exact_at_its_ends_and_nested():
    times = uneven_times(*SPAN, 20)
    assert (times[0], times[-1]) == SPAN
    assert torch.equal(times.flip(0), uneven_times(*SPAN[::-1], 20))
    torch.testing.assert_close(uneven_times(*SPAN, 40)[::2], times, rtol=0, atol=1e-15)
    steps = -times.diff()
    assert (steps > 0).all()
    assert steps.max() > 1.2 * steps.min()


# Solvers that do not do what they declare


@dataclass(frozen=True)
class WrongCoefficient(Heun):
    """The weights sum to 1, and the second order is lost."""

    tableau: ClassVar[Tableau] = Tableau((0.0, 1.0), ((), (1.0,)), (0.45, 0.55))


@dataclass(frozen=True)
class Inconsistent(Euler):
    """The weights do not sum to 1: the error stays."""

    tableau: ClassVar[Tableau] = Tableau((0.0,), ((),), (0.99,))


@dataclass(frozen=True)
class TooAmbitious(Euler):
    """Order 1, declared as 2."""

    order: ClassVar[int] = 2


@dataclass(frozen=True)
class TooModest(Heun):
    """Order 2, declared as 1."""

    order: ClassVar[int] = 1


@dataclass(frozen=True)
class OneWay(Solver):
    """The steps of Heun downwards, of Euler upwards."""

    order: ClassVar[int] = 2

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        method = Heun() if b.t < a.t else Euler()
        return method.step(ode, a, b, x)


@dataclass(frozen=True)
class Amnesiac(solvers.DPMpp):
    """Order 3 from exact history is declared, and the history is thrown away."""

    def start(self, ode: Any, nodes: Any, x: torch.Tensor, *, past: Any = (), **options: Any) -> Any:
        return super().start(ode, nodes, x, **options)


@dataclass(frozen=True)
class TooModestStart(Heun):
    """Order 2 from its own start, declared as 1."""

    own_start_order: ClassVar[int] = 1


@dataclass(frozen=True)
class Unread(solvers.DPMpp):
    """A multistep method that does not declare its history."""

    one_step: ClassVar[bool] = True
    reads_past: ClassVar[bool] = False


@dataclass(frozen=True)
class NotWeak(DDIM):
    """The noise is too loud for its direction: the variance converges to another one."""

    eta: float = 1.0

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        found = super().step(ode, a, b, x, state)
        calm = DDIM().step(ode, a, b, x).x
        return found._replace(x=calm + 1.2 * (found.x - calm))


@pytest.mark.parametrize("solver", [WrongCoefficient(), Inconsistent(), TooAmbitious(), TooModest(), OneWay()], ids=str)
def test_a_wrong_order_is_found(solver):
    with pytest.raises(AssertionError, match="measured order"):
        check_law(solver)


def test_a_wrong_order_against_the_usual_direction_is_found_there():
    with pytest.raises(AssertionError, match=r"measured order 1\.\d\d from t=0\.4 to t=1\.35, declared 2"):
        check_law(OneWay())


def test_a_wrong_order_with_exact_history_is_found():
    with pytest.raises(AssertionError, match=r"measured order [12]\.\d\d from .* with exact history, declared 3"):
        check_law(Amnesiac())


def test_a_wrong_order_from_the_own_start_is_found():
    with pytest.raises(AssertionError, match=r"measured order .* declared 1 from its own start, 2 with exact history"):
        check_law(TooModestStart())


def test_an_order_with_a_history_that_is_not_declared_is_found():
    with pytest.raises(AssertionError, match="3 with exact history, but it reads no exact history; declare .*one_step"):
        check(Unread())


def test_a_wrong_weak_order_is_found():
    with pytest.raises(AssertionError, match="measured weak order"):
        check_law(NotWeak())


@dataclass(frozen=True)
class TwoDraws(DDIM):
    """DDPM with the sum of two draws as its noise: more draws than calls."""

    eta: float = 1.0

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        mean = ode.predict(a, x).mix(b.alpha, direction(a, b, self.eta))
        first, stream = state.draw(x)
        second, stream = stream.draw(x)
        std = posterior_std(a, b) / math.sqrt(2)
        return Step(combine((1.0, mean), (std, first), (std, second)), state=stream)


def test_a_method_may_draw_more_often_than_it_calls():
    check(TwoDraws())


@dataclass(frozen=True)
class Secretive(DDIM):
    """It draws noise and declares none."""

    eta: float = 1.0
    law: ClassVar[str] = "weak"
    deterministic: ClassVar[bool] = True

    def start(
        self, ode: Any, nodes: Any, x: torch.Tensor, *, stream: Any = None, past: Any = (), state: Any = None
    ) -> Any:
        return stream if state is None else state


@dataclass(frozen=True)
class Lawless(DDIM):
    """It draws noise, and keeps the law of solvers that draw none."""

    eta: float = 1.0
    law: ClassVar[str] = "order"


@dataclass(frozen=True)
class Outlaw(DDIM):
    """A law that there is not."""

    law: ClassVar[str] = "strong"


@dataclass(frozen=True)
class Careless(DDIM):
    """More calls than it declares."""

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        ode.predict(a, x)
        return super().step(ode, a, b, x, state)


@dataclass(frozen=True)
class Coupled(DDIM):
    """Every sample feels the mean of the batch."""

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        return Step(super().step(ode, a, b, x, state).x + 1e-12 * x.mean())


@dataclass(frozen=True)
class Positional(DDIM):
    """A sample's noise depends on its place in the batch."""

    eta: float = 0.5

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        return super().step(ode, a, b, x, state and replace(state, samples=None))


@dataclass(frozen=True)
class Widening(DDIM):
    """float64 arithmetic leaks into the state."""

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        return Step(super().step(ode, a, b, x.double(), state).x)


@dataclass(frozen=True)
class WideningAtTheEnd(DDIM):
    """The field always sees the right dtype; only the result does not have it."""

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        end = super().step(ode, a, b, x, state).x
        return Step(end.double() if b.t == min(SPAN) else end)


@dataclass(frozen=True)
class Coarse(DDIM):
    """The state passes through half precision, whatever its dtype."""

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        return Step(super().step(ode, a, b, x.half().to(x), state).x if x.dtype == torch.float32 else x)


@dataclass(frozen=True)
class Overstepping(Solver):
    """Looks half a step beyond its target."""

    order: ClassVar[int] = 1

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        beyond = ode.predict(ode.node(b.t + (b.t - a.t) / 2), x)
        return Step(combine((b.alpha, beyond.x0), (b.sigma, beyond.eps)))


@dataclass(frozen=True)
class Singular(Solver):
    """DDIM with divisions: exact inside, infinite at the two ends."""

    order: ClassVar[int] = 1

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        eps = ode.predict(a, x).eps
        tiny = 1e-300
        h = b.log_snr - a.log_snr
        return Step(combine((b.alpha / max(a.alpha, tiny), x), (-b.sigma * math.expm1(min(h, 700.0)), eps)))


@dataclass(frozen=True)
class Forgetful(DDIM):
    """Its noise starts anew in every solve, whatever state it is given."""

    eta: float = 0.5

    def start(
        self, ode: Any, nodes: Any, x: torch.Tensor, *, stream: Any = None, past: Any = (), state: Any = None
    ) -> Any:
        return super().start(ode, nodes, x, stream=stream or solvers.NoiseStream(0), past=past)


@dataclass(frozen=True)
class Irreversible(solvers.AsynchronousLeapfrog):
    """Its inverse is a step of Heun back, which is as accurate and undoes nothing."""

    def unstep(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        return Step(Heun().step(ode, a, b, x).x, state=state)


@dataclass(frozen=True)
class Detached(DDIM):
    """The graph ends at its prediction."""

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        prediction = ode.predict(a, x)
        return Step(combine((b.alpha, prediction.x0.detach()), (b.sigma, prediction.eps)))


@dataclass(frozen=True)
class Promising(DDIM):
    """It declares five calls a step and makes one."""

    def calls(self, n_steps: int) -> int:
        return 5 * n_steps


@dataclass(frozen=True)
class Unaware(Heun):
    """It declares the cheaper steps of a line that is singular at both ends, and is on one that is not."""

    line: solvers.Line = solvers.Rotation()

    def calls_over(self, ode: Any, nodes: Any) -> int:
        return self.calls(len(nodes) - 1) - 2


@dataclass(frozen=True)
class Equal(Solver):
    """Adams-Bashforth on the noise line with the weights of equal steps, whatever the nodes are."""

    order: ClassVar[int] = 2

    @property
    def one_step(self) -> bool:
        return False

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        eps = ode.predict(a, x).eps
        if a.alpha == 0 or b.sigma == 0:
            return Step(DDIM().step(ode, a, b, x).x)
        h, before = b.s - a.s, eps if state is None else state
        return Step(combine((b.alpha / a.alpha, x), (1.5 * b.alpha * h, eps), (-0.5 * b.alpha * h, before)), state=eps)


@dataclass(frozen=True)
class Remembering(Equal):
    """Its history lives on the instance; a new solve clears it."""

    memory: dict = field(default_factory=dict, hash=False, compare=False, repr=False)

    @property
    def carries_on(self) -> bool:
        return False

    def start(self, ode: Any, nodes: Any, x: torch.Tensor, **history: Any) -> None:
        self.memory.clear()

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        step = super().step(ode, a, b, x, self.memory.get("eps"))
        self.memory["eps"] = step.state
        return Step(step.x)


@dataclass(frozen=True)
class Appending(Equal):
    """Its state is a list that it appends to."""

    def start(self, ode: Any, nodes: Any, x: torch.Tensor, *, stream: Any = None, past: Any = (), state: Any = None):
        return [] if state is None else state

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        step = super().step(ode, a, b, x, state[-1] if state else None)
        state.append(step.state)
        return Step(step.x, state=state)


@dataclass(frozen=True)
class Overwriting(Solver):
    """DDIM in the memory of a prediction."""

    order: ClassVar[int] = 1

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        prediction = ode.predict(a, x)
        return Step(prediction.x0.mul_(b.alpha).add_(prediction.eps, alpha=b.sigma))


@dataclass(frozen=True)
class OverwritingSlopes(Solver):
    """Euler in the memory of the slope."""

    order: ClassVar[int] = 1

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        return Step(ode(a.t, x).mul_(b.t - a.t).add_(x))


@dataclass(frozen=True)
class Ending(DDIM):
    """Its own stepping misses the last interval."""

    def solve(self, ode: Any, nodes: Any, x: torch.Tensor, state: Any):
        yield from super().solve(ode, nodes[:-1], x, state)


@dataclass(frozen=True)
class GoingOn(DDIM):
    """Its own stepping yields the end twice."""

    def solve(self, ode: Any, nodes: Any, x: torch.Tensor, state: Any):
        for step in super().solve(ode, nodes, x, state):
            yield step
        yield step


@dataclass(frozen=True)
class InPlace(DDIM):
    """Its own stepping writes to what it is given."""

    def solve(self, ode: Any, nodes: Any, x: torch.Tensor, state: Any):
        for step in super().solve(ode, nodes, x.clone(), state):
            x.copy_(step.x)
            yield step


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (Ending(), r"Ending\(eta=0.0\).solve ended after 4 of 5 steps"),
        (GoingOn(), r"GoingOn\(eta=0.0\).solve goes on after 5 steps"),
        (InPlace(), r"InPlace\(eta=0.0\).solve writes to the state x"),
    ],
    ids=str,
)
def test_stepping_of_its_own_that_breaks_the_contract_is_refused(solver, message):
    x = departures(*SPAN).clone()
    with pytest.raises(ValueError, match=message):
        solvers.solve(mild_mixture(), solver, x, uneven_times(*SPAN, 5))
    with pytest.raises(ValueError, match=message.replace("5 steps", r"\d+ steps").replace("4 of", r"\d+ of")):
        check(solver)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8, 1e-10])
def test_a_method_that_iterates_declares_a_bound(tolerance):
    check_calls(solvers.GaussLegendre(tolerance=tolerance))


@dataclass(frozen=True)
class Returning(DDIM):
    """Its own stepping returns a list, which is as good as a generator."""

    def solve(self, ode: Any, nodes: Any, x: torch.Tensor, state: Any):
        return list(super().solve(ode, nodes, x, state))


@dataclass(frozen=True)
class Forgetting(DDIM):
    """Its step returns nothing."""

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None):
        super().step(ode, a, b, x)


@dataclass(frozen=True)
class Silent(DDIM):
    """Its own stepping yields nothing."""

    def solve(self, ode: Any, nodes: Any, x: torch.Tensor, state: Any):
        return None


@dataclass(frozen=True)
class Stateless(DDIM):
    """Its step has no state."""

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None):
        return Step(None)


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (Forgetting(), r"Forgetting.*step returned a NoneType; let it return solvers.Step\(x\)"),
        (Silent(), r"Silent.*solve returned a NoneType; let it yield solvers.Step\(x\)"),
        (Stateless(), r"Stateless.*step: the state is a NoneType; let it be a torch.Tensor"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_step_is_named_with_its_solver(solver, message):
    with pytest.raises(TypeError, match=message):
        check(solver)


def test_steps_in_a_list_are_steps():
    check(Returning())


@dataclass(frozen=True)
class Lost(DDIM):
    """Its steps are not finite."""

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        return Step(super().step(ode, a, b, x).x * math.inf)


class Undecorated(DDIM):
    """Its setting is no field."""

    def __init__(self, damping: float = 0.0):
        self.damping = damping
        super().__init__()


@dataclass(frozen=True)
class Random(DDIM):
    """Its noise is that of the whole program."""

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        return Step(super().step(ode, a, b, x).x + 1e-3 * torch.randn_like(x))


@dataclass(frozen=True)
class Columns(DDIM):
    """It limits vectors by their norm, and images column by column."""

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        prediction = ode.predict(a, x)
        x0 = prediction.x0 * (prediction.x0.norm(dim=1, keepdim=True) / 10).cos()
        return Step(combine((b.alpha, x0), (b.sigma, prediction.eps)))


@dataclass(frozen=True)
class Vectors(DDIM):
    """Its states are vectors."""

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        return Step(super().step(ode, a, b, x @ torch.eye(2, dtype=x.dtype), state).x)


@dataclass(frozen=True)
class VariancePreserving(DDIM):
    """It takes sigma to be what alpha leaves of 1."""

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        a, b = (node._replace(sigma=math.sqrt(max(0.0, 1 - node.alpha**2))) for node in (a, b))
        return super().step(ode, a, b, x, state)


@dataclass(frozen=True)
class Angular(DDIM):
    """It takes the time to be the angle."""

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        a, b = (Node(node.t, math.cos(node.t), math.sin(node.t)) for node in (a, b))
        return super().step(ode, a, b, x, state)


def test_noise_of_the_whole_program_is_not_taken_for_a_wrong_order():
    with pytest.raises(AssertionError, match="in the midst of another ends elsewhere.*draw noise from the stream"):
        check(Random())


def test_a_failure_in_the_midst_of_a_check_names_the_solver():
    with pytest.raises(AssertionError, match=r"^Lost\(eta=0.0\): SolveError: .*NON_FINITE"):
        check(Lost())


@pytest.mark.parametrize(
    "part, solver, message",
    [
        (check_settings, Undecorated(), "damping: no field, so that .* count as equal; decorate Undecorated with"),
        (check_settings, solvers.Reversible(Undecorated()), "damping: no field, so that .*; decorate Undecorated with"),
        (check_noise, Secretive(), "its end depends on the noise stream; declare that deterministic is False"),
        (check_noise, Lawless(), "law='order' is measured without noise, but deterministic is False; declare .*weak"),
        (check_law, Outlaw(), "law='strong' is unknown; declare one of order, weak, tolerance, bounded"),
        (check_calls, Careless(), "6 steps made 12 calls, declared 6"),
        (check_calls, Promising(), "6 steps made 6 calls, declared 30; nfe= would take fewer"),
        (check_both_ends, Unaware(), "12 steps .* made 24 calls, calls_over declares 22; let it count every step"),
        (check_alternating_steps, Equal(), "order 1.0.* distances alternate, declared 2; let the weights follow"),
        (check_runs_apart, Remembering(), "in the midst of another ends elsewhere.*never on the instance"),
        (check_runs_apart, Appending(), "changes the state that it is given; let it return a new one"),
        (check_answers_stay, Overwriting(), "writes to a prediction"),
        (check_answers_stay, OverwritingSlopes(), "writes to the slope that the ODE returned"),
        (check_independence, Coupled(), "apart from the others"),
        (check_independence, Positional(), "apart from the others"),
        (check_dtype, Widening(), "float64"),
        (check_dtype, WideningAtTheEnd(), "a torch.float32 state came back as torch.float64"),
        (check_dtype, Coarse(), "float32 and float64 differ by"),
        (check_shape, Columns(), r"samples of shape \(1, 2, 1\) end elsewhere.*reduce over all of them"),
        (check_shape, Vectors(), r"samples of shape \(1, 2, 1\): RuntimeError: "),
        (check_path, VariancePreserving(), r"error .* on the path alpha = 1 - t.*without supposing that alpha\^2"),
        (check_path, Angular(), r"error .* on the path alpha = 1 - t.*or what t is"),
        (check_path, VariancePreserving(eta=0.5), r"error .* on the path alpha = 1 - t"),
        (check_law, Overstepping(), "outside the span"),
        (check_inverse, Irreversible(), r"unstep does not undo step: 6 steps .* end \d.\de-\d+ beside their start"),
        (check_gradient, Detached(), r"autograd gives the derivative .*, finite differences .*; detach nothing"),
        (check_carry_on, Forgetful(), "differs from solving at once"),
    ],
    ids=lambda value: str(value) if isinstance(value, Solver) else "",
)
def test_each_part_finds_what_it_is_for(part, solver, message):
    with pytest.raises(AssertionError, match=message):
        part(solver)
    with pytest.raises(AssertionError):
        check(solver)


@dataclass(frozen=True)
class Dividing(Solver):
    """DDIM with a floor under the alpha that it divides by: huge at pure noise, but finite."""

    order: ClassVar[int] = 1

    def step(self, ode: Any, a: Node, b: Node, x: torch.Tensor, state: Any = None) -> Step:
        eps = ode.predict(a, x).eps
        data = combine((1 / max(a.alpha, 1e-9), x), (-a.sigma / max(a.alpha, 1e-9), eps))
        return Step(combine((b.alpha, data + 1e-6 / max(a.alpha, 1e-9)), (b.sigma, eps)))


def test_a_large_error_at_the_ends_says_what_is_special_there():
    with pytest.raises(AssertionError, match=r"to 0\.00; alpha = 0 .* sigma = 0 .*divide by neither; line=.*Rotation"):
        check_both_ends(Dividing())


def test_a_solver_that_breaks_at_an_end_is_found():
    with pytest.raises((AssertionError, solvers.SolveError, ArithmeticError)):
        check_both_ends(Singular())
    for part in (check_law, check_calls, check_independence, check_dtype):
        part(Singular())


@pytest.mark.parametrize("solver", [one.variants()[0] for one in CLASSES], ids=str)
def test_an_empty_batch_is_solved_like_any_other(solver):
    found = solvers.solve(mild_mixture(), solver, torch.zeros(0, 2), uneven_times(*SPAN, 4), stream=NoiseStream(0))
    assert found.x.shape == (0, 2) and found.success
