"""What ``rtol=`` means for models and lines of all kinds."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import odediff
import solvers
from odediff import Model, RectifiedFlow, SubVP, VPCosine, VPLinear
from odediff.problems import exact_model
from solvers.testing import Gaussian

DATA = Gaussian(0.3, 0.5)
PATHS = [RectifiedFlow(), VPLinear(), odediff.VE(), SubVP(), VPCosine()]


def noise(count):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(
    ("path", "form"),
    # At the start of a rectified flow an epsilon network would see pure noise, and tell nothing.
    [*((path, "x0") for path in PATHS), *((path, "epsilon") for path in PATHS[1:])],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_network_is_asked_no_nearer_to_the_data_than_it_was_declared_for(path, form):
    exact, asked = exact_model(DATA, path, form), []

    def rough(x, time):
        # No extrapolation holds before the end of the path: the ripple is as large as the tolerance asked for.
        asked.append(float(time.min()))
        return exact.network(x, time) + 1e-2 * torch.sin(40 * torch.log(time.double() + 1e-9))[:, None]

    model = Model(rough, path, form, network_time=lambda t: t)
    x = noise(4) * odediff.sampling.initial_deviation(path.node(path.start))
    found = odediff.sample(model, noise=x, rtol=1e-2, return_solution=True)
    assert found.success and min(asked) >= path.end * (1 - 1e-9)


@pytest.mark.parametrize(
    ("solver", "atol"),
    [(None, 1e-4), (solvers.Adaptive(solvers.Tsit5(), line=solvers.Rotation()), 3e-4)],
    ids=["extrapolated", "denoised"],
)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_a_continuous_model_of_the_data_is_followed_without_asking_at_the_data(path, solver, atol):
    x = noise(4) * odediff.sampling.initial_deviation(path.node(path.start))
    found = odediff.sample(exact_model(DATA, path, "x0"), noise=x, rtol=1e-5, solver=solver)
    exact = DATA.flow(path.node(path.start), path.node(0.0), x)
    torch.testing.assert_close(found, exact, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("solver", "path"),
    [
        (solvers.Adaptive(solvers.DPM23()), RectifiedFlow()),
        (solvers.AdaptiveAdams(line=solvers.Noise()), RectifiedFlow()),
        (solvers.Scipy("RK45", line=solvers.Noise()), VPCosine(start=1.0)),
    ],
    ids=str,
)
def test_a_way_that_would_be_one_ddim_step_is_refused(solver, path):
    model = exact_model(DATA, path, "flow")
    with pytest.raises(ValueError, match=re.escape("Rotation()")):
        odediff.sample(model, noise=noise(2), solver=solver)
    grid = torch.tensor([path.start, 0.9, 0.3, 0.0], dtype=torch.float64)
    assert odediff.sample(model, noise=noise(2), solver=solver, grid=grid).isfinite().all()


def test_a_grid_does_not_hide_a_ddim_step():
    path, solver = RectifiedFlow(), solvers.AdaptiveAdams(line=solvers.Noise())
    model, message = exact_model(DATA, path, "v"), "a single DDIM step would join them, whatever the tolerance"
    grid = torch.tensor([1.0, 0.5, 0.001, 0.0], dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        odediff.sample(model, noise=noise(4), solver=solver, rtol=1e-6, grid=grid)
    with pytest.raises(ValueError, match=message):
        odediff.encode(model, noise(4), solver=solver, rtol=1e-6, grid=grid)


def test_a_pair_that_cannot_go_to_the_data_itself_is_told_of_the_closing_step():
    model, grid = exact_model(DATA, VPLinear(), "v"), torch.tensor([1.0, 0.5, 0.001, 0.0], dtype=torch.float64)
    pair = solvers.Adaptive(solvers.Dopri5())
    with pytest.raises(ValueError, match='give closing="denoise", or use a solver on a line'):
        odediff.sample(model, noise=noise(2), solver=pair, rtol=1e-3, grid=grid, closing=None)
    assert odediff.sample(model, noise=noise(2), solver=pair, rtol=1e-3, grid=grid, closing="denoise").isfinite().all()


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("solver", [solvers.Adaptive(solvers.Tsit5()), solvers.AdaptiveAdams()], ids=str)
def test_a_tolerance_holds_where_a_grid_ends_in_a_long_step(solver, continuous):
    model = replace(exact_model(DATA, VPLinear(), "v"), continuous=continuous)
    x, whole = noise(4), torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    found = odediff.sample(model, noise=x, solver=solver, rtol=1e-6, grid=whole, return_solution=True)
    without = odediff.sample(model, noise=x, solver=solver, rtol=1e-6)
    assert float((found.x - without).abs().max()) < 1e-5
    assert 0.5 in [node.t for node in found.nodes]


def test_lost_samples_change_nothing_for_the_others_on_the_last_interval():
    path = VPLinear()
    exact, times, x = exact_model(DATA, path, "v"), [*np.geomspace(1, 0.03, 15), 0.0], noise(5)

    def found(bad):
        def network(x, time, bad):
            return torch.where((bad & (time < 0.1))[:, None], math.nan, exact.network(x, time))

        model = Model(network, path, "v", conditions={"bad": torch.tensor(bad)}, network_time=lambda t: t)
        solver = solvers.GaussLegendre(solvers.Rotation())
        return solvers.solve(odediff.probability_flow(model), solver, x, times, closing="extrapolate", throw=False)

    whole, part = found([False] * 5), found([False, True, False, False, False])
    left = [0, 2, 3, 4]
    torch.testing.assert_close(part.x[left], whole.x[left], rtol=0, atol=1e-9)
    assert part.x[1].isnan().all() and not part.success
    assert (whole.x - DATA.flow(path.node(1.0), path.node(0.0), x)).abs().max() < 2e-3


def test_a_budget_may_be_spent_on_the_history():
    path = VPLinear()
    ode, x = odediff.probability_flow(exact_model(DATA, path)), noise(3)
    past = [(path.node(t), DATA.flow(path.node(1.0), path.node(t), x)) for t in (0.8, 0.9)]
    state = DATA.flow(path.node(1.0), path.node(0.6), x)
    found = solvers.solve(ode, solvers.DPMpp(3), state, [0.6, 0.3, 0.1], past=past, max_nfe=1, throw=False)
    assert found.status.tolist() == [solvers.Status.BUDGET] * 3 and found.stats.nfe == 1


def test_a_grid_that_begins_at_infinity_needs_an_end_below_its_first_node():
    with pytest.raises(ValueError, match="end = 0.99 has sigma/alpha = 99.*smaller end"):
        odediff.grid.plateau(RectifiedFlow(), 5, end=0.99)


def test_parameters_that_want_a_gradient_do_not_disturb_an_adaptive_solve():
    layer = torch.nn.Linear(3, 3).double()
    ode = odediff.probability_flow(Model(lambda x, time: layer(x), VPLinear()))
    for solver in (solvers.AdaptiveAdams(), solvers.Adaptive(solvers.Tsit5(), line=solvers.Rotation())):
        assert solvers.solve(ode, solver, noise(2), [1.0, 0.5]).success


@pytest.mark.parametrize("arguments", [{"rtol": 1e-2}, {"solver": solvers.AdaptiveAdams()}], ids=["rtol", "solver"])
def test_a_function_that_places_steps_is_refused_where_none_are_placed(arguments):
    model = exact_model(DATA, VPLinear(), "epsilon")
    for run in (
        lambda: odediff.sample(model, noise=noise(1), grid=odediff.grid.karras, **arguments),
        lambda: odediff.encode(model, noise(1), grid=odediff.grid.karras, **arguments),
    ):
        with pytest.raises(ValueError, match="grid: .*chooses its own steps"):
            run()
    fixed = odediff.sample(model, noise=noise(1), grid=odediff.grid.karras, solver=solvers.AdaptiveAdams(), steps=3)
    assert fixed.isfinite().all()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_a_pair_on_a_line_that_is_regular_at_the_data_is_followed_there(path):
    x = noise(4) * odediff.sampling.initial_deviation(path.node(path.start))
    solver = solvers.Adaptive(solvers.Tsit5(), line=solvers.Rotation(0.5))
    found = odediff.sample(exact_model(DATA, path, "v"), noise=x, solver=solver, rtol=1e-7)
    exact = DATA.flow(path.node(path.start), path.node(0.0), x)
    torch.testing.assert_close(found, exact, rtol=0, atol=3e-6)
