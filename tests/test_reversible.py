"""Reversible methods return, to the last digit of their lattice; the formulas are those of their papers."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import odediff
import solvers
from odediff import metrics
from odediff.problems import exact_model
from solvers import (
    BDIA,
    DDIM,
    EDICT,
    OBELM,
    RK4,
    AsynchronousLeapfrog,
    Data,
    Heun,
    Inverse,
    Leapfrog,
    Noise,
    Reversible,
    ReversibleHeun,
    Rotation,
    solve,
)
from solvers.testing import SPAN, Gaussian, mild_mixture, starting_points, uneven_times

PAIRS = [
    BDIA(),
    BDIA(gamma=0.95),
    EDICT(),
    OBELM(),
    *(kind(line) for kind in (Leapfrog, AsynchronousLeapfrog, ReversibleHeun) for line in (Noise(), Rotation())),
    Reversible(),
    Reversible(RK4(Rotation()), coupling=0.99),
]


class RandomNetwork(torch.nn.Module):
    """Two random layers, nothing like a score: an inverse that holds for it holds for any network."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.nn.Parameter(torch.randn(6, 16, generator=generator, dtype=torch.float64).to(dtype))
        self.second = torch.nn.Parameter(0.1 * torch.randn(16, 6, generator=generator, dtype=torch.float64).to(dtype))

    def forward(self, x: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        shift = (time / 1000 + label).reshape(-1, 1).to(x.dtype)
        # Row-wise products: a sample's bits do not depend on its batch mates.
        hidden = torch.tanh((x.flatten(1)[:, :, None] * self.first).sum(1) + shift)
        return (hidden[:, :, None] * self.second).sum(1).reshape(x.shape)


def random_model(dtype: torch.dtype, guidance: float = 1.0) -> odediff.Model:
    network = RandomNetwork(dtype).requires_grad_(False)
    conditions = {"label": 1}
    return odediff.Model(network, odediff.VPTable.linear(), conditions=conditions, null={"label": 0}, guidance=guidance)


def pictures(dtype: torch.dtype, batch: int = 5) -> torch.Tensor:
    values = torch.randn(batch, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    # As those of latents are: some have digits far below those of any lattice.
    values[0] *= 1e-7
    values[1, 0, 0] = 1e-30
    return values


def returned(model: odediff.Model, images: torch.Tensor, code: odediff.Code) -> bool:
    """Whether decoding gives every bit of the images back."""
    return torch.equal(odediff.decode(model, code), images)


def adaptive_times(path: odediff.Schedule) -> torch.Tensor:
    """The steps that an adaptive method of another library takes on the way to the data, replayed as a grid."""
    law, ode = Gaussian(), odediff.probability_flow(exact_model(Gaussian(), path))
    start, end = path.start, path.end
    field = lambda t, x: ode(float(t), torch.as_tensor(x).reshape(1, -1)).numpy().ravel()  # noqa: E731
    times = solve_ivp(field, (start, end), [1.0, law.mean], rtol=1e-2, atol=1e-2).t
    return torch.as_tensor(times)


GRIDS = {
    "even": lambda path: odediff.grid.uniform_t(path, steps=20),
    "odd": lambda path: odediff.grid.log_snr(path, steps=21),
    "uneven": lambda path: torch.tensor([1.0, 0.93, 0.9, 0.6, 0.59, 0.3, 0.11, 0.02], dtype=torch.float64),
    "adaptive": adaptive_times,
    "one step": lambda path: torch.tensor([0.7, 0.3], dtype=torch.float64),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("solver", PAIRS, ids=repr)
def test_a_random_network_is_inverted(solver, dtype):
    model, images = random_model(dtype, guidance=3.0), pictures(dtype)
    code = odediff.encode(model, images, solver=solver, grid=odediff.grid.uniform_t, steps=21)
    assert code.x.dtype == dtype
    assert float((code.x - images).abs().max()) > 0.1
    assert returned(model, images, code)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("solver", [BDIA(), EDICT(), AsynchronousLeapfrog(), ReversibleHeun(), Reversible()], ids=repr)
def test_every_grid_is_inverted(solver, grid):
    model, images = random_model(torch.float32), pictures(torch.float64)
    times = GRIDS[grid](odediff.VPTable.linear())
    assert returned(model, images, odediff.encode(model, images, solver=solver, grid=times))


def test_the_lattice_is_what_makes_it_exact(monkeypatch):
    # The same methods in plain float64, around a float32 network: a rounding boundary is crossed sooner or later.
    model, images = random_model(torch.float32, guidance=7.5), pictures(torch.float64, batch=20_000)
    errors = []
    for _ in range(2):
        code = odediff.encode(model, images, solver=ReversibleHeun(), grid=odediff.grid.uniform_t, steps=51)
        errors.append(float((odediff.decode(model, code) - images).abs().max()))
        monkeypatch.setattr(solvers.lattice.Lattice, "snap", lambda self, z: z.double())
    assert errors[0] == 0 < 1e-9 < errors[1]


@pytest.mark.parametrize("grid", GRIDS)
def test_obelm_loses_bits_only_where_steps_shrink_towards_the_noise(grid):
    # Its factor (h/g)^2 is below 1 there: what contracts on the way up expands on the way down.
    model, images = random_model(torch.float64), pictures(torch.float64)
    times = GRIDS[grid](odediff.VPTable.linear())
    error = (odediff.decode(model, odediff.encode(model, images, solver=OBELM(), grid=times)) - images).abs().max()
    assert error <= (0 if grid in ("even", "odd", "one step") else 1e-8)


@pytest.mark.parametrize("solver", PAIRS, ids=repr)
def test_the_other_way_round_too(solver):
    # From the noise down by the method, and up by its inverse: to rounding, since the way down contracts.
    ode, times, x = mild_mixture(), uneven_times(*SPAN, 7), starting_points()
    down = solve(ode, solver, x, times)
    up = solve(ode, Inverse(solver), down.x, times.flip(0), state=down.state)
    assert float((up.x - x).abs().max()) < 1e-8


def test_without_its_companion_a_method_returns_to_its_own_accuracy_only():
    model, images = random_model(torch.float64), pictures(torch.float64)
    for solver in PAIRS:
        code = odediff.encode(model, images, solver=solver, grid=odediff.grid.uniform_t, steps=21)
        bare = odediff.decode(model, replace(code, state=None, digest=""))
        assert float((bare - images).abs().max()) > 1e-10


def test_a_state_that_was_changed_is_not_overruled_by_the_digits_that_were_carried():
    solver, ode, times = AsynchronousLeapfrog(), mild_mixture(), uneven_times(*SPAN, 6)
    half = solve(ode, solver, starting_points(), times[:4])
    moved = half.x + 0.25
    end = solve(ode, solver, moved, times[3:], state=half.state).x
    expected = solve(ode, solver, moved, times[3:], state=half.state._replace(z=moved / math.cos(float(times[3])))).x
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-10)


# --- the formulas -------------------------------------------------------------------------------------------------


def noise_line(ode, times):
    """Nodes with eps as a function of y = x/alpha there."""
    nodes = ode.nodes(times.tolist())
    return nodes, [node.s for node in nodes], lambda node, y: ode.predict(node, node.alpha * y).eps


class Decay(solvers.ODE):
    """dx/dt = -50 x."""

    def __call__(self, t, x):
        return -50 * x


@pytest.mark.parametrize("coupling", [0.999, 0.95])
def test_the_difference_of_a_pair_grows_where_the_field_contracts(coupling):
    solver, h = Reversible(RK4(), coupling=coupling), 2**-9
    gaps = []
    for steps in (200, 300):
        found = solve(Decay(), solver, torch.ones(1, 1, dtype=torch.float64), h * np.arange(steps + 1))
        gaps.append(float((found.state.other - found.state.z).abs()))
    assert (gaps[1] / gaps[0]) ** (1 / 100) == pytest.approx(coupling * math.exp(50 * h), rel=1e-2)


def test_bdia_is_its_paper():
    ode, times, x = mild_mixture(), uneven_times(*SPAN, 6), starting_points()
    nodes = ode.nodes(times.tolist())

    def ddim(a, b, x):
        prediction = ode.predict(a, x)
        return b.alpha * prediction.x0 + b.sigma * prediction.eps

    states = [x, ddim(nodes[0], nodes[1], x)]
    for p, a, b in zip(nodes, nodes[1:], nodes[2:], strict=False):
        states.append(ddim(a, b, states[-1]) + 0.8 * (states[-2] - ddim(a, p, states[-1])))
    torch.testing.assert_close(solve(ode, BDIA(0.8), x, times).x, states[-1], rtol=0, atol=1e-11)


def test_edict_is_its_paper():
    ode, times, x = mild_mixture(), uneven_times(*SPAN, 6), starting_points()
    y, p = x, 0.93
    for a, b in pairwise(ode.nodes(times.tolist())):
        of_x, of_eps = b.alpha / a.alpha, b.sigma - a.sigma * b.alpha / a.alpha
        x1 = of_x * x + of_eps * ode.predict(a, y).eps
        y1 = of_x * y + of_eps * ode.predict(a, x1).eps
        x = p * x1 + (1 - p) * y1
        y = p * y1 + (1 - p) * x
    torch.testing.assert_close(solve(ode, EDICT(p), starting_points(), times).x, x, rtol=0, atol=1e-10)


def test_obelm_and_leapfrog_are_their_formulas():
    ode, times = mild_mixture(), uneven_times(*SPAN, 6)
    nodes, s, eps = noise_line(ode, times)
    first = solve(ode, RK4(Noise()), starting_points(), times[:2]).x
    for solver in (OBELM(), Leapfrog()):
        y = [starting_points() / nodes[0].alpha, first / nodes[1].alpha]
        for i in range(1, len(nodes) - 1):
            h, g = s[i] - s[i + 1], s[i - 1] - s[i]
            slope = eps(nodes[i], y[i])
            if isinstance(solver, OBELM):
                r = (h / g) ** 2
                y.append(r * y[i - 1] + (1 - r) * y[i] - h * (h + g) / g * slope)
            else:
                y.append(y[i - 1] - (h + g) * slope)
        found = solve(ode, solver, starting_points(), times).x
        torch.testing.assert_close(found, nodes[-1].alpha * y[-1], rtol=0, atol=1e-10)


def test_asynchronous_leapfrog_and_reversible_heun_are_their_formulas():
    ode, times = mild_mixture(), uneven_times(*SPAN, 6)
    nodes, s, eps = noise_line(ode, times)
    y = other = starting_points() / nodes[0].alpha
    z, v = y, eps(nodes[0], y)
    w = v
    for i, b in enumerate(nodes[1:]):
        h = s[i + 1] - s[i]
        middle = ode.node(math.atan((s[i] + s[i + 1]) / 2))
        m = y + h / 2 * v
        v = 2 * eps(middle, m) - v
        y = m + h / 2 * v
        other = 2 * z - other + h * w
        w, before = eps(b, other), w
        z = z + h / 2 * (before + w)
    for solver, expected in ((AsynchronousLeapfrog(), y), (ReversibleHeun(), z)):
        found = solve(ode, solver, starting_points(), times).x
        torch.testing.assert_close(found, nodes[-1].alpha * expected, rtol=0, atol=1e-10)


def test_mccallum_and_foster_is_its_paper():
    ode, times, c = mild_mixture(), uneven_times(*SPAN, 6), 0.9
    y = z = starting_points()

    def increment(a, b, x):
        return Heun(Noise()).step(ode, a, b, x).x - x

    for a, b in pairwise(ode.nodes(times.tolist())):
        y = c * y + (1 - c) * z + increment(a, b, z)
        z = z - increment(b, a, y)
    found = solve(ode, Reversible(Heun(Noise()), c), starting_points(), times).x
    torch.testing.assert_close(found, y, rtol=0, atol=1e-12)


def test_nodes_of_single_samples_are_stepped_row_by_row():
    ode, x = mild_mixture(), starting_points()
    times = np.array([[1.3, 1.1, 0.8, 0.5], [1.2, 1.15, 0.9, 0.4], [1.3, 0.9, 0.85, 0.5], [1.0, 0.8, 0.7, 0.6]])
    for solver in PAIRS:
        state, together = None, x
        for a, b in pairwise(times.T):
            step = solver.step(ode, ode.node(a), ode.node(b), together, state)
            together, state = step.x, step.state
        for i in range(len(x)):
            alone = solve(ode, solver, x[i : i + 1], times[i]).x
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-10)


def test_rows_return_whether_their_steps_grow_or_shrink():
    ode, solver = mild_mixture(), OBELM()
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, a, b = (ode.node(np.repeat(column, 100)) for column in ([0.5, 1.3], [0.6, 0.9], [0.9, 0.85]))
    step = solver.step(ode, p, a, x)
    step = solver.step(ode, a, b, step.x, step.state)
    step = solver.unstep(ode, b, a, step.x, step.state)
    step = solver.unstep(ode, a, p, step.x, step.state)
    assert torch.equal(step.x[:100], x[:100])
    torch.testing.assert_close(step.x[100:], x[100:], rtol=0, atol=1e-9)


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BDIA(0.0), r"gamma=0.0 must lie in \(0, 1\]"),
        (lambda: EDICT(1.2), r"p=1.2 must lie in"),
        (lambda: Reversible(coupling=0), "coupling=0 must lie in"),
        (lambda: Reversible(DDIM(0.5)), "base=DDIM.* is stochastic"),
        (lambda: Reversible(solvers.Scipy("RK45")), "chooses its own steps"),
        (lambda: Reversible("rk4"), "base='rk4' must be a solvers.Solver"),
        (lambda: Inverse(DDIM()), "has no exact inverse.*FixedPoint"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize("solver", [Leapfrog(), OBELM(Data())], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_step_methods_refuse_states_in_half_precision(solver, dtype):
    with pytest.raises(TypeError, match=rf"x has dtype {dtype}, .*use a float32 state"):
        solver.start(mild_mixture(), [mild_mixture().node(t) for t in (1.2, 0.8)], starting_points().to(dtype))


@pytest.mark.parametrize("solver", [EDICT(), OBELM(), AsynchronousLeapfrog(), ReversibleHeun()], ids=repr)
def test_a_grid_that_nothing_undoes_is_refused_before_anything_is_computed(solver):
    path = odediff.RectifiedFlow()

    def network(x, time):
        raise AssertionError("the network was asked")

    with pytest.raises(ValueError, match=r"the step of .* t=1 \(alpha=0, .*cannot be undone.*Rotation"):
        odediff.encode(odediff.Model(network, path, "flow"), pictures(torch.float64), solver=solver, steps=5)


@pytest.mark.parametrize(
    "solver", [BDIA(), AsynchronousLeapfrog(Rotation()), Leapfrog(Rotation()), Reversible()], ids=repr
)
def test_pure_noise_is_reached_and_left_again_where_the_method_is_regular(solver):
    model, images = exact_model(Gaussian(), odediff.RectifiedFlow(), "flow"), pictures(torch.float64)
    code = odediff.encode(model, images, solver=solver, steps=12)
    assert code.times[-1] == 1.0
    assert float((odediff.decode(model, code) - images).abs().max()) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("solver", PAIRS, ids=repr)
def test_wide_paths_are_inverted_too(solver, dtype):
    model = odediff.Model(lambda x, time: 0.5 * torch.tanh(x), odediff.VE())
    images = pictures(dtype)
    wide = replace(solver, spacing=2.0**-38) if isinstance(solver, Reversible) else solver
    code = odediff.encode(model, images, solver=wide, steps=12)
    assert returned(model, images, code)


@pytest.mark.parametrize("solver", PAIRS, ids=repr)
def test_a_way_in_two_parts_is_one_way_on_wide_paths_too(solver):
    model, x = odediff.Model(lambda x, time: 0.5 * torch.tanh(x), odediff.VE()), pictures(torch.float64)
    ode, times = odediff.probability_flow(model), odediff.grid.log_snr(model.path, 12)[:-1].flip(0)
    whole = solve(ode, Inverse(solver), x, times)
    half = solve(ode, Inverse(solver), x, times[:5])
    rest = solve(ode, Inverse(solver), half.x, times[4:], state=half.state)
    assert torch.equal(rest.x, whole.x)


@pytest.mark.parametrize("spacing", [0.0, 1.0, 3e-12, math.nan, "fine", -(2.0**-38)])
def test_a_spacing_that_is_no_power_of_two_is_named(spacing):
    with pytest.raises(ValueError, match="spacing=.*must be a power of two below 1"):
        Reversible(spacing=spacing)


# --- real images, the trained network -----------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_real_images_return_at_any_guidance_where_ddim_does_not(dtype, guidance):
    images, labels = odediff.zoo.test_images()
    images, model = images[:2].to(dtype), odediff.zoo.fashion_mnist().condition(label=labels[:2], guidance=guidance)
    for solver in (BDIA(), EDICT(), OBELM(), Leapfrog(), AsynchronousLeapfrog(), ReversibleHeun()):
        code = odediff.encode(model, images, solver=solver, grid=odediff.grid.uniform_t, steps=21)
        assert returned(model, images, code), solver
    code = odediff.encode(model, images, solver=DDIM(), grid=odediff.grid.uniform_t, steps=21)
    assert float((odediff.decode(model, code) - images).abs().max()) > 0.05
    assert metrics.psnr(images, odediff.decode(model, code)).max() < 40


@pytest.mark.parametrize("solver", PAIRS, ids=str)
def test_rounding_to_the_lattice_leaves_derivatives_as_they_are(solver):
    def end(x):
        return solve(mild_mixture(), solver, x, [1.2, 0.9, 0.6, 0.3], closing=None).x

    # A difference over 1e-3 of values on the lattice is good to its spacing over that.
    x = starting_points()[:2].requires_grad_()
    assert torch.autograd.gradcheck(end, x, eps=1e-3, atol=1e-4, rtol=1e-4, check_forward_ad=True)
