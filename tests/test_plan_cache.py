"""Plans of grids that are kept from solve to solve."""

from dataclasses import InitVar, dataclass, field
from functools import cached_property

import numpy as np
import pytest
import torch

import odediff
import solvers
from solvers.ode import Coordinates
from solvers.plan_cache import _plan
from solvers.settings import is_settled, undeclared
from solvers.testing import ExactODE, Gaussian

TIMES = [0.9, 0.7, 0.5, 0.3, 0.1]
plans: list[solvers.Solver] = []


@dataclass(frozen=True)
class CountedDEIS(solvers.DEIS):
    """DEIS, which says when it plans."""

    def plan(self, *arguments, **options):
        plans.append(self)
        return super().plan(*arguments, **options)


@pytest.fixture(autouse=True)
def nothing_kept():
    _plan.cache_clear()
    plans.clear()


def flow(path):
    return odediff.probability_flow(odediff.Model(lambda x, time: 0.3 * torch.tanh(x), path))


def end(ode, solver):
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return solvers.solve(ode, solver, x, TIMES).x


def test_a_grid_is_planned_once_for_each_path_and_solver():
    ends = [end(flow(odediff.VPTable.linear()), CountedDEIS(3)) for _ in range(3)]
    assert len(plans) == 1
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])
    end(flow(odediff.VPTable.linear()), CountedDEIS(2))
    end(flow(odediff.VPTable.scaled_linear()), CountedDEIS(3))
    assert len(plans) == 3


@pytest.mark.parametrize("solver", [solvers.PNDM(), solvers.RK4(solvers.Noise()), solvers.Ancestral()])
def test_calls_are_counted_on_the_plan_that_a_solve_reads(solver):
    ode = flow(odediff.VPTable.linear())
    solver.calls_over(ode, ode.nodes(TIMES))
    solvers.solve(ode, solver, torch.zeros(3, 5, dtype=torch.float64), TIMES, stream=solvers.NoiseStream(0))
    assert _plan.cache_info().misses == 1


def test_what_lies_between_equal_nodes_decides_as_well():
    """The same five nodes on two paths: polynomials in t differ, since other times lie between them."""
    table = odediff.VPTable.linear(10, 0.01, 0.4)
    levels = [table.node(t) for t in TIMES]

    class Bent(odediff.VPTable):
        """The table's entries, and between them times that lag behind."""

        def node_at(self, log_snr):
            found = super().node_at(log_snr)
            return found._replace(t=found.t - 0.05 * np.sin(np.pi * 10 * found.t) ** 2)

    bent = Bent(table.alphas_cumprod)
    assert [bent.node(t) for t in TIMES] == levels
    solver = CountedDEIS(3)
    assert not torch.equal(end(flow(table), solver), end(flow(bent), solver))
    assert len(plans) == 2


def test_an_ode_that_names_no_path_and_samples_with_times_of_their_own_are_planned_anew():
    for _ in range(2):
        end(ExactODE(Gaussian()), CountedDEIS(3))
    assert len(plans) == 2
    ode = flow(odediff.VPTable.linear())
    nodes = [ode.node(np.array([t, t - 0.02, t - 0.03])) for t in TIMES]
    for _ in range(2):
        CountedDEIS(3).start(ode, nodes, torch.zeros(3, 5, dtype=torch.float64))
    assert len(plans) == 4


def test_a_path_alone_predicts_nothing():
    path = Coordinates(odediff.VPTable.linear())
    assert path.node(0.5) == odediff.VPTable.linear().node(0.5)
    with pytest.raises(TypeError, match="a path alone"):
        path.predict(path.node(0.5), torch.zeros(1, 2))


@dataclass(frozen=True)
class Learned(solvers.RungeKutta):
    """Methods of order 2 with a middle stage that is being learned."""

    order = 2
    middle: torch.Tensor = field(default_factory=lambda: torch.tensor(0.5, dtype=torch.float64))

    @property
    def tableau(self):
        c = float(self.middle)
        return solvers.Tableau((0.0, c), ((), (c,)), (1 - 1 / (2 * c), 1 / (2 * c)))


class Secretive(solvers.RungeKutta):
    """The same with a setting that is no field, which equality leaves out."""

    order = 2

    def __init__(self, middle):
        self.middle = middle
        super().__init__()

    tableau = Learned.tableau


@dataclass(frozen=True)
class Uncompared(Learned):
    """The same with a field that equality leaves out."""

    middle: float = field(default=0.5, compare=False)


def test_a_method_that_holds_what_may_change_is_planned_anew():
    ode, learned = flow(odediff.VPTable.linear()), Learned()
    before = end(ode, learned)
    learned.middle.fill_(0.9)
    after = Learned(middle=torch.tensor(0.9, dtype=torch.float64))
    assert torch.equal(end(ode, learned), end(ode, after)) and not torch.equal(end(ode, learned), before)


@pytest.mark.parametrize("kind", [Secretive, Uncompared])
def test_methods_that_only_count_as_equal_have_plans_of_their_own(kind):
    ode = flow(odediff.VPTable.linear())
    one, other = kind(middle=0.5), kind(middle=0.9)
    assert one == other and not torch.equal(end(ode, one), end(ode, other))


@dataclass(frozen=True)
class Prepared(solvers.DEIS):
    """What it computes once follows from its fields, unless they are not all."""

    more: InitVar[float] = 0.0

    def __post_init__(self, more):
        super().__post_init__()
        object.__setattr__(self, "twice", {"order": (torch.tensor(2.0 * self.order + more), np.zeros(2))})


def test_what_follows_from_the_fields_need_not_be_one():
    assert undeclared(Prepared(3)) == undeclared(type("Same", (Prepared,), {})(3)) == []
    assert undeclared(Prepared(3, more=1.0)) == ["twice"]
    changed = Prepared(3)
    changed.twice["order"][0].add_(1.0)
    assert undeclared(changed) == ["twice"] and not is_settled(changed)


def test_a_method_of_plain_values_is_settled():
    @dataclass(frozen=True)
    class Cached(solvers.DEIS):
        """What it computes once follows from its fields."""

        @cached_property
        def twice(self):
            return 2 * self.order

    for solver in (Cached(3), solvers.DEIS(np.int64(3)), solvers.GPMultistep(), solvers.Heun(solvers.Rotation())):
        assert not hasattr(solver, "twice") or solver.twice == 6
        assert is_settled(solver)
    for value in (solvers.Heun, [1], torch.zeros(1), (1.0, [1]), Learned(), Secretive(0.5), Uncompared()):
        assert not is_settled(value)
