import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import odediff
import solvers
from odediff.defaults import default_grid
from odediff.doctor import diagnose
from odediff.problems import exact_model
from odediff.sampling import Options, steps_within
from solvers import (
    DDIM,
    DDPM,
    EDICT,
    PNDM,
    RK4,
    DPMpp,
    FixedPoint,
    GaussLegendre,
    GPMultistep,
    Heun,
    NewtonKrylov,
    Noise,
    NoiseStream,
    Rotation,
    Solver,
    Status,
    Step,
    Tsit5,
)
from solvers.testing import Gaussian, Mixture

TABLE = odediff.VPTable.linear()
MEAN, DEVIATION = 0.4, 0.5


def gaussian(path: odediff.Schedule = TABLE, form: str = "epsilon") -> odediff.Model:
    return exact_model(Gaussian(MEAN, DEVIATION), path, form)


def mixture() -> odediff.Model:
    means = torch.tensor([[1.0, 0.5], [-0.6, 0.2], [0.1, -0.9]], dtype=torch.float64)
    weights, deviations = (torch.tensor(v, dtype=torch.float64) for v in ([0.2, 0.5, 0.3], [0.1, 0.3, 0.2]))
    return exact_model(Mixture(weights, means, deviations), TABLE)


@dataclass(frozen=True)
class Frugal(Solver):
    """Two calls for the first step and one for every other, as methods with a costly start have it."""

    order: ClassVar[int] = 1

    def calls(self, n_steps: int) -> int:
        return n_steps + (n_steps > 0)

    def start(self, ode: Any, nodes: Any, x: Any, **options: Any) -> Any:
        return True

    def step(self, ode: Any, a: Any, b: Any, x: torch.Tensor, state: Any = None) -> Step:
        if state:
            ode.predict(a, x)
        return Step(ode.predict(a, x).mix(b.alpha, b.sigma), state=False)


# --- what a sample costs ------------------------------------------------------------------------------------------

METHODS = [DDIM(), DDIM(0.5), DDPM(), Heun(Noise()), RK4(Rotation()), Tsit5(Noise()), Frugal()]


def calls_used(solver: Solver, closing: str | None, **budget: int) -> int:
    options = {"solver": solver, "closing": closing, "return_solution": True, "dtype": torch.float64}
    return odediff.sample(gaussian(), (1, 2), **options, **budget).stats.nfe


@pytest.mark.parametrize(
    ("solver", "closing"),
    [(s, c) for s in METHODS for c in ("denoise", "extrapolate", None) if s.deterministic or c != "extrapolate"],
)
@pytest.mark.parametrize("extra", [0, 1, 2, 5, 12])
def test_nfe_is_a_ceiling_that_one_more_step_would_break(solver, closing, extra):
    smallest = solver.calls(1) if closing != "denoise" else 1
    nfe = smallest + extra
    steps = steps_within(solver, nfe, closing)
    assert calls_used(solver, closing, nfe=nfe) == calls_used(solver, closing, steps=steps) <= nfe
    assert calls_used(solver, closing, steps=steps + 1) > nfe


FROM_PURE_NOISE = [odediff.RectifiedFlow(), odediff.VPTable.linear().zero_terminal_snr()]


@pytest.mark.parametrize("path", FROM_PURE_NOISE, ids=["flow", "table"])
@pytest.mark.parametrize("closing", ["denoise", "extrapolate"])
@pytest.mark.parametrize(
    "solver", [DDIM(), Heun(Noise()), Tsit5(), EDICT(), PNDM(), PNDM(warm_up="improved_euler"), DPMpp(3)], ids=str
)
def test_nfe_from_pure_noise_is_neither_exceeded_nor_left_unused(path, closing, solver):
    model = exact_model(Gaussian(0.3, 0.5), path, "v")
    for nfe in (1, 2, 5, 6, 7, 8, 10, 13):
        try:
            used = odediff.sample(
                model, (1, 2), solver=solver, closing=closing, nfe=nfe, return_solution=True, dtype=torch.float64
            ).stats
        except ValueError as error:
            assert "needs at least" in str(error) and "on this grid" not in str(error)
            continue
        options = {"solver": solver, "closing": closing, "steps": used.steps + 1, "return_solution": True}
        assert used.nfe <= nfe < odediff.sample(model, (1, 2), **options).stats.nfe


def test_one_call_of_the_default_is_made_where_it_tells_something():
    model = exact_model(Gaussian(0.3, 0.5), odediff.VE())
    found = odediff.sample(model, (1, 2), nfe=1, return_solution=True)
    assert (found.stats.nfe, found.stats.steps) == (1, 2)


@pytest.mark.parametrize("nfe", [20, 22])
def test_nfe_is_a_ceiling_from_pure_noise_too(nfe):
    options = {"shape": (1, 2), "solver": Heun(Noise()), "return_solution": True}
    model = gaussian(odediff.RectifiedFlow(), "flow")
    used = odediff.sample(model, nfe=nfe, **options).stats
    assert used.nfe <= nfe
    assert odediff.sample(model, steps=used.steps + 1, **options).stats.nfe > nfe


def test_the_calls_of_n_steps_are_those_of_the_readme():
    assert calls_used(DDIM(), "denoise", steps=10) == 10
    assert calls_used(DDIM(), "extrapolate", steps=10) == 9
    assert calls_used(Heun(Noise()), "denoise", steps=10) == 19
    assert calls_used(Heun(Noise()), "extrapolate", steps=10) == 18


@pytest.mark.parametrize(
    ("solver", "closing", "nfe", "smallest"),
    [
        (DDIM(), "denoise", 0, 1),
        (Heun(Noise()), "extrapolate", 1, 2),
        (RK4(Noise()), None, 3, 4),
        (Tsit5(Noise()), "extrapolate", 5, 6),
        (Frugal(), None, 1, 2),
    ],
)
def test_too_small_a_budget_names_the_smallest(solver, closing, nfe, smallest):
    with pytest.raises(ValueError, match=rf"nfe={nfe} is too small .*needs at least {smallest}$"):
        odediff.sample(gaussian(), (1, 2), solver=solver, closing=closing, nfe=nfe)
    assert calls_used(solver, closing, nfe=smallest) <= smallest


def test_default_is_the_gaussian_process_multistep_method_in_twenty_steps():
    found = odediff.sample(gaussian(), (1, 2), return_solution=True)
    # The first step makes no call.
    assert (found.stats.nfe, found.stats.steps) == (19, 20)
    expected = odediff.sample(
        gaussian(), (1, 2), solver=GPMultistep(), grid=odediff.grid.plateau, closing=None, steps=20
    )
    assert torch.equal(found.x, expected)


# --- what is asked for twice, or wrongly --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 5, "nfe": 5}, "steps=5, nfe=5: .*exclude"),
        ({"nfe": 2.5}, "nfe=2.5 must be a whole number"),
        ({"nfe": True}, "nfe=True"),
        ({"nfe": -3}, "nfe=-3 is too small .*needs at least 1"),
        ({"steps": 0}, "steps = 0 .*at least 1"),
        ({"steps": 2000, "grid": odediff.grid.uniform_t}, "steps = 2000 exceeds the 1000 entries"),
        ({"grid": torch.tensor([1.0, 0.5, 0.0]), "steps": 2}, "grid: .*leave out steps"),
        ({"grid": torch.tensor([1.0, 0.5, 0.0]), "nfe": 2}, "grid: .*leave out steps"),
        ({"grid": torch.tensor([0.0, 0.5, 1.0])}, r"times\[1\] = 0.5 is not below"),
        ({"grid": torch.tensor([1.0, math.nan, 0.0])}, r"times\[1\] is not finite"),
        ({"grid": torch.tensor([[1.0, 0.5, 0.0]])}, "times has shape"),
        ({"grid": torch.tensor([1.5, 0.5, 0.0])}, "times run from 1.5"),
        ({"grid": torch.tensor([1.0, 0.0001, 0.0])}, "below the first time that the network knows"),
        ({"closing": "clip"}, "closing='clip' is unknown"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"samples": [0]}, "samples has 1 ids and the batch 2"),
        ({"samples": [0, -4]}, "samples must be whole numbers"),
        ({"device": "gpu"}, "device=gpu is unknown; use cpu"),
        ({"trajectory": True}, "trajectory=True must come with return_solution=True"),
    ],
)
def test_a_wrong_argument_is_refused_before_the_network_is_asked(options, message):
    with pytest.raises(ValueError, match=message):
        odediff.sample(never_asked(), (2, 3), **{"solver": DDIM(), **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": "karras"}, "grid='karras'.*odediff.grid"),
        ({"grid": [1.0, 0.5, 0.0]}, r"grid=\[1.0, 0.5, 0.0\].*(tensor|odediff.grid)"),
        ({"grid": np.array([1.0, 0.5, 0.0])}, "grid=.*(tensor|odediff.grid)"),
        ({"solver": "ddim"}, "solver='ddim' must be a solvers.Solver"),
        ({"solver": DDIM}, "solver=.*pass an instance"),
        ({"steps": 2.5}, "steps = 2.5 is not an integer"),
        ({"dtype": torch.int64}, "dtype=torch.int64 .*torch.float32"),
        ({"dtype": "float32"}, "dtype='float32' .*torch.float32"),
    ],
)
def test_an_argument_of_another_type_is_refused_before_the_network_is_asked(options, message):
    with pytest.raises(TypeError, match=message):
        odediff.sample(never_asked(), (2, 3), **options)


@pytest.mark.parametrize("shape", [(), (0, 3), (2, -1), (2.0, 3), (True, 3)])
def test_a_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"shape=.*\(64, 1, 28, 28\)"):
        odediff.sample(never_asked(), shape)


def test_a_shape_that_is_no_sequence_is_refused():
    with pytest.raises(TypeError, match=r"shape=5 must be \(B, ...\)"):
        odediff.sample(never_asked(), 5)


@pytest.mark.parametrize("options", [{}, {"shape": (2, 3), "noise": torch.zeros(2, 3)}])
def test_shape_and_noise_are_one_or_the_other(options):
    with pytest.raises(ValueError, match="shape, noise: give exactly one"):
        odediff.sample(never_asked(), **options)


@pytest.mark.parametrize(("noise", "error"), [(torch.zeros(2, 3, dtype=torch.int64), TypeError), ([0.0], TypeError)])
def test_noise_that_is_no_floating_point_tensor_is_refused(noise, error):
    with pytest.raises(error, match="floating-point|torch.Tensor"):
        odediff.sample(never_asked(), noise=noise)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="model must be an odediff.Model, not a function; wrap the network"):
        odediff.sample(lambda x, t: x, (2, 3))


@pytest.mark.parametrize(
    "call",
    [
        lambda network: odediff.sample(network, (2, 3)),
        odediff.probability_flow,
        lambda network: diagnose(network, torch.zeros(8, 3)),
    ],
    ids=["sample", "probability_flow", "diagnose"],
)
def test_a_network_that_is_no_model_is_named_by_its_type(call):
    network = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(100)))
    with pytest.raises(
        TypeError, match="^model must be an odediff.Model, not a Sequential; wrap the network: .*$"
    ) as caught:
        call(network)
    assert "\n" not in str(caught.value)


class RawCosine(odediff.VPCosine):
    """The cosine schedule without the division by its value at t = 0: sigma(0) = 0.0125."""

    def _path(self, t):
        speed, offset = self._angles
        return np.cos(speed * t + offset), np.sin(speed * t + offset)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: odediff.sample(model, (2, 3), steps=4),
        lambda model: odediff.sample(model, (2, 3), rtol=1e-2),
        lambda model: odediff.encode(model, torch.zeros(2, 3), steps=4),
        odediff.probability_flow,
    ],
    ids=["sample", "tolerance", "encode", "probability_flow"],
)
def test_a_path_that_does_not_begin_in_the_data_is_refused_before_the_first_call(call):
    with pytest.raises(ValueError, match=r"path=RawCosine.* has alpha=0\.9999\d* and sigma=0\.0124\d* at t = 0"):
        call(replace(never_asked(), path=RawCosine()))


def never_asked() -> odediff.Model:
    def network(x, time):
        raise AssertionError("the network was asked")

    return odediff.Model(network, TABLE)


# --- seeds --------------------------------------------------------------------------------------------------------

SHARDS = [([0, 1, 2, 3, 4, 5],), ([0, 1, 2], [3, 4, 5]), ([4], [2, 0], [5, 3, 1])]


@pytest.mark.parametrize("solver", [Heun(Noise()), DDIM(0.5), DDPM("large")], ids=repr)
@pytest.mark.parametrize("shards", SHARDS, ids=["together", "halves", "scattered"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_is_its_seed_and_its_id_whatever_the_batch(solver, shards, dtype):
    options = {"solver": solver, "steps": 6, "seed": 11, "dtype": dtype}
    together = odediff.sample(mixture(), (6, 2), **options)
    for ids in shards:
        apart = odediff.sample(mixture(), (len(ids), 2), samples=ids, **options)
        assert torch.equal(apart, together[ids])


def test_a_sample_of_the_embedded_network_is_its_seed_and_its_id_when_calls_have_one_size():
    model = replace(odediff.zoo.fashion_mnist(), chunk=4).condition(label=5, guidance=2.0)
    options = {"solver": DDIM(0.5), "steps": 3, "seed": 2}
    together = odediff.sample(model, (5, 1, 28, 28), **options)
    for ids in ([3], [4, 0, 2]):
        assert torch.equal(odediff.sample(model, (len(ids), 1, 28, 28), samples=ids, **options), together[ids])


def test_seeds_and_ids_give_different_samples():
    samples = odediff.sample(mixture(), (3, 2), seed=0, steps=4), odediff.sample(mixture(), (3, 2), seed=1, steps=4)
    assert len(torch.unique(torch.cat(samples), dim=0)) == 6


def test_sampling_leaves_the_generators_of_the_user_alone():
    state = torch.get_rng_state()
    np_state = np.random.get_state()[1].copy()
    odediff.sample(mixture(), (3, 2), solver=DDPM(), steps=4)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], np_state)


def test_noise_that_is_not_finite_is_named_before_the_network_is_called():
    noise = torch.zeros(3, 2).index_fill_(0, torch.tensor([1]), math.nan)
    exact, calls = gaussian(), []
    model = replace(exact, network=lambda x, t: calls.append(t) or exact.network(x, t))
    with pytest.raises(ValueError, match=r"noise: samples \[1\] contain infinities or NaNs"):
        odediff.sample(model, noise=noise)
    assert not calls
    found = odediff.sample(model, noise=noise, throw=False, return_solution=True)
    assert found.status.tolist() == [Status.SUCCESS, Status.NON_FINITE, Status.SUCCESS]


@pytest.mark.parametrize("path", [TABLE, odediff.VE(), odediff.SubVP()], ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("solver", [DDIM(), DDIM(0.5)], ids=repr)
def test_noise_given_is_noise_drawn(path, solver):
    model = gaussian(path)
    options = {"solver": solver, "steps": 5, "seed": 4, "dtype": torch.float64}
    drawn, _ = NoiseStream(4).draw(torch.empty(3, 2, dtype=torch.float64))
    start = path.node(float(default_grid(solver)(path, 5)[0]))
    scale = math.sqrt(start.alpha**2 + start.sigma**2)
    given = odediff.sample(model, noise=scale * drawn, solver=solver, steps=5, seed=4)
    torch.testing.assert_close(given, odediff.sample(model, (3, 2), **options), rtol=0, atol=1e-13)


def test_given_noise_is_not_overwritten():
    noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    kept = noise.clone()
    odediff.sample(mixture(), noise=noise, solver=DDPM(), steps=4)
    assert torch.equal(noise, kept)


# --- what comes back ----------------------------------------------------------------------------------------------


def test_trajectory_and_callback_show_the_states_at_the_nodes():
    seen: list[tuple[float, torch.Tensor]] = []
    found = odediff.sample(
        mixture(),
        (3, 2),
        solver=Heun(Noise()),
        steps=6,
        trajectory=True,
        return_solution=True,
        callback=lambda node, x: seen.append((node.t, x)),
    )
    assert [node.t for node in found.nodes] == odediff.grid.karras(TABLE, 6).tolist()
    assert [t for t, _ in seen] == [node.t for node in found.nodes[1:]]
    assert found.trajectory.shape == (7, 3, 2)
    assert torch.equal(found.trajectory[1:], torch.stack([x for _, x in seen]))
    assert torch.equal(found.trajectory[-1], found.x)
    assert found.success
    assert found.stats.evaluations.tolist() == [found.stats.nfe] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_have_the_dtype_asked_for_and_need_no_gradient(dtype):
    found = odediff.sample(mixture(), (3, 2), steps=4, dtype=dtype)
    assert (found.dtype, found.requires_grad) == (dtype, False)


def test_samples_of_a_network_in_training_need_no_gradient():
    layer = torch.nn.Linear(2, 2)
    model = odediff.Model(lambda x, time: layer(x), TABLE)
    assert not odediff.sample(model, (3, 2), solver=DDIM(), steps=4).requires_grad


def test_the_closing_step_is_the_prediction_at_the_last_node():
    options = {"trajectory": True, "return_solution": True, "dtype": torch.float64}
    found = odediff.sample(gaussian(), (3, 2), solver=DDIM(), steps=6, **options)
    last = found.trajectory[-2]
    a = TABLE.node(0.001)
    posterior = MEAN + a.alpha * DEVIATION**2 / (a.alpha**2 * DEVIATION**2 + a.sigma**2) * (last - a.alpha * MEAN)
    torch.testing.assert_close(found.x, posterior, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("closing", "error"), [("denoise", 2e-4), ("extrapolate", 1e-9)])
def test_closing_by_extrapolation_reaches_the_flow_where_denoising_leaves_its_error(closing, error):
    options = {"solver": RK4(Noise()), "steps": 100, "dtype": torch.float64, "trajectory": True}
    found = odediff.sample(gaussian(), (50, 2), closing=closing, return_solution=True, **options)
    flow = Gaussian(MEAN, DEVIATION).flow(TABLE.node(0.001), TABLE.node(0.0), found.trajectory[-2])
    relative = float(((found.x - flow).abs() / (flow - MEAN).abs()).max())
    # x0 is even in s: denoising is off by s^2 / (2 deviation^2), a parabola in s^2 by the sixth power of s.
    assert error / 3 < relative < 3 * error if closing == "denoise" else relative < error


def test_closing_by_the_solver_itself_reaches_the_flow_of_a_continuous_model():
    path = odediff.VPLinear()
    found = odediff.sample(
        gaussian(path), (50, 2), solver=RK4(Rotation()), steps=100, closing=None, return_solution=True,
        trajectory=True, dtype=torch.float64,
    )  # fmt: skip
    flow = Gaussian(MEAN, DEVIATION).flow(path.node(1.0), path.node(0.0), found.trajectory[0])
    torch.testing.assert_close(found.x, flow, rtol=0, atol=1e-6)


def test_closing_by_the_solver_itself_asks_a_table_model_below_its_table_and_is_refused():
    model = odediff.Model(lambda x, t: x, TABLE)
    with pytest.raises(ValueError, match="below"):
        odediff.sample(model, (2, 3), solver=Heun(Noise()), steps=4, closing=None)


@pytest.mark.parametrize("form", ["v", "flow", "x0"])
def test_a_flow_starts_at_pure_noise(form):
    found = odediff.sample(gaussian(odediff.RectifiedFlow(), form), (2000, 1), steps=40, dtype=torch.float64)
    assert float(found.mean()) == pytest.approx(MEAN, abs=4 * DEVIATION / math.sqrt(2000))
    assert float(found.std()) == pytest.approx(DEVIATION, rel=4 / math.sqrt(4000))


# --- skipping steps -----------------------------------------------------------------------------------------------


def ddim_of_the_paper(indices: list[int], x: torch.Tensor) -> torch.Tensor:
    """Song, Meng & Ermon 2021, eq. 12, on alpha-bars of the table alone, for Gaussian data; alpha-bar_0 := 1."""
    alpha_bars = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    for i, index in reversed(list(enumerate(indices))):
        now, then = alpha_bars[index], alpha_bars[indices[i - 1]] if i else 1.0
        noise = math.sqrt(1 - now) * (x - math.sqrt(now) * MEAN) / (now * DEVIATION**2 + 1 - now)
        data = (x - math.sqrt(1 - now) * noise) / math.sqrt(now)
        x = math.sqrt(then) * data + math.sqrt(1 - then) * noise
    return x


@given(indices=st.sets(st.integers(0, 999), min_size=1, max_size=40).map(sorted))
@settings(max_examples=40, deadline=None)
def test_any_increasing_subsequence_of_the_table_is_a_grid(indices):
    times = odediff.grid.subsequence(TABLE, indices)
    assert times.tolist() == [(i + 1) / 1000 for i in reversed(indices)] + [0.0]
    noise = torch.tensor([[1.3, -0.2], [0.1, -2.0]], dtype=torch.float64)
    found = odediff.sample(gaussian(), noise=noise, solver=DDIM(), grid=times, return_solution=True)
    torch.testing.assert_close(found.x, ddim_of_the_paper(indices, noise), rtol=0, atol=1e-10)
    assert found.stats.nfe == len(indices)


@pytest.mark.parametrize("grid", [odediff.grid.uniform_t, odediff.grid.quadratic_t])
@pytest.mark.parametrize("solver", [DDIM(), DDIM(0.5), DDPM()], ids=repr)
def test_10_20_50_and_100_of_1000_steps_run_and_approach_the_data(grid, solver):
    errors = []
    for steps in (10, 20, 50, 100):
        options = {"solver": solver, "grid": grid, "steps": steps, "dtype": torch.float64, "return_solution": True}
        found = odediff.sample(gaussian(), (4000, 1), **options)
        assert found.stats.nfe == steps
        assert all(abs(1000 * node.t - round(1000 * node.t)) < 1e-9 for node in found.nodes)
        errors.append(abs(float(found.x.std()) / DEVIATION - 1))
    assert errors[3] < errors[0]
    assert errors[3] < 0.1


@pytest.mark.parametrize("grid", [odediff.grid.uniform_t, odediff.grid.quadratic_t])
def test_10_of_1000_steps_of_the_embedded_network_give_images(grid):
    model = odediff.zoo.fashion_mnist().condition(label=torch.tensor([1, 8]))
    images = odediff.sample(model, (2, 1, 28, 28), solver=DDIM(), grid=grid, steps=10)
    assert torch.isfinite(images).all()
    assert 0.3 < float(images.std()) < 1.0


FIXED = odediff.grid.karras(TABLE, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"grid": lambda path, steps: FIXED, "nfe": 20}, ValueError, r"returned times of shape \(6,\) for steps=20"),
        ({"grid": lambda path, steps: FIXED, "nfe": 3}, ValueError, r"returned times of shape \(6,\) for steps=3"),
        ({"grid": lambda path, steps: FIXED.flip(0), "steps": 5}, ValueError, "times"),
        ({"grid": lambda path, steps: FIXED.tolist(), "steps": 5}, TypeError, "returned a list"),
        ({"nfe": 5, "closing": "foo"}, ValueError, "closing='foo' is unknown"),
        ({"steps": 5, "dtype": torch.float64}, ValueError, "noise is torch.float32 on cpu"),
        ({"steps": 5, "device": "meta"}, ValueError, "noise is torch.float32 on cpu"),
        ({"steps": 5, "device": "cuda:7"}, ValueError, "device=cuda:7: noise is torch.float32 on cpu"),
        ({"steps": 5, "device": "nonsense"}, ValueError, "device=nonsense is unknown; use cpu"),
    ],
)
def test_a_grid_or_closing_or_dtype_that_cannot_be_is_named_before_the_first_call(arguments, error, message):
    def network(x, time):
        raise AssertionError("the network was called")

    with pytest.raises(error, match=message):
        odediff.sample(odediff.Model(network, TABLE), noise=torch.ones(1, 3), solver=DDIM(), **arguments)


def test_a_grid_of_ones_own_is_checked_before_the_first_call():
    below = torch.tensor([1.0, 0.5, 1e-4, 0.0])
    with pytest.raises(ValueError, match="below the first time that the network knows"):
        odediff.sample(never_asked(), (2, 3), solver=DDIM(), grid=lambda path, steps: below, steps=3)


def test_sizes_may_be_numpys():
    assert odediff.sample(gaussian(), (np.int64(2), 3), steps=3).shape == (2, 3)


def test_a_network_of_whole_times_is_asked_at_them_unless_a_grid_is_given():
    asked = []

    def network(x, time):
        assert time.dtype == torch.int64
        asked.append(int(time[0]))
        return 0.1 * x

    model = odediff.Model(network, TABLE, integer_time=True)
    assert odediff.sample(model, (1, 3), nfe=6).isfinite().all() and asked[0] == 999 and len(asked) == 6
    code = odediff.encode(model, torch.ones(1, 3), steps=6)
    assert odediff.decode(model, code).isfinite().all() and asked[6] == 0


@pytest.mark.parametrize("entries", [4, 10])
def test_a_short_table_is_sampled_in_as_many_steps_as_it_has_entries(entries):
    path = odediff.VPTable(np.linspace(0.99, 0.05, entries))
    model = odediff.Model(lambda x, time: torch.tanh(x), path, integer_time=True)
    for nfe in (None, entries, entries + 1, 1001):
        found = odediff.sample(model, (2, 3), nfe=nfe, solver=DDIM(), return_solution=True)
        assert found.stats.nfe == entries
    with pytest.raises(ValueError, match=f"{entries} entries"):
        odediff.sample(model, (2, 3), steps=entries + 1, solver=DDIM())


# --- solvers of one's own, and what cannot be used ------------------------------------------------------------------


def _tanh(x, time):
    return torch.tanh(x)


@dataclass(frozen=True)
class Uncounted(Solver):
    """Two calls for each step, of which `calls` does not know."""

    order: ClassVar[int] = 2

    def step(self, ode, a, b, x, state=None):
        ode.predict(a, x)
        return Step(ode.predict(a, x).mix(b.alpha, b.sigma))


def test_a_ceiling_that_a_solver_does_not_keep_is_named():
    with pytest.raises(ValueError, match=r"nfe=7: Uncounted\(\) made 13 calls.*let calls\(n_steps\) return"):
        odediff.sample(odediff.Model(_tanh, TABLE), (2, 3), solver=Uncounted(), nfe=7)


@dataclass(frozen=True)
class Changing(Solver):
    """Steps that end in another shape or dtype."""

    order: ClassVar[int] = 1
    change: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.double

    def step(self, ode, a, b, x, state=None):
        return Step(self.change(ode.predict(a, x).mix(b.alpha, b.sigma)))


@pytest.mark.parametrize("change", [torch.Tensor.double, lambda x: x[:1]])
def test_a_step_that_changes_shape_or_dtype_is_refused(change):
    message = r"\.step: a torch\.float32 state came back as torch\.float(64|32), and \(2, 3\) as \([12], 3\)"
    with pytest.raises(ValueError, match=message):
        odediff.sample(odediff.Model(_tanh, TABLE), (2, 3), solver=Changing(change))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"samples": 3}, TypeError, "samples=3 must be the ids"),
        ({"rtol": "a"}, ValueError, "rtol='a' must be a positive, finite number"),
        ({"shape": None, "noise": [1.0]}, TypeError, "noise must be a torch.Tensor.*not list"),
    ],
)
def test_arguments_of_a_wrong_type_are_named(arguments, error, message):
    model = odediff.Model(_tanh, TABLE)
    with pytest.raises(error, match=message):
        odediff.sample(model, **{"shape": (2, 3), **arguments})


@pytest.mark.parametrize("arguments", [{"rtol": 1e-2}, {"solver": solvers.Scipy()}], ids=["rtol", "solver"])
def test_a_network_of_whole_times_follows_no_tolerance(arguments):
    model = odediff.Model(_tanh, TABLE, integer_time=True)
    with pytest.raises(ValueError, match="integer_time=True.*give steps or nfe"):
        odediff.sample(model, (2, 3), **arguments)


@dataclass(frozen=True)
class Miscounted(Solver):
    """DDIM by an author who took calls for those of one step."""

    order: ClassVar[int] = 1

    def calls(self, n_steps: int) -> int:
        return 1

    def step(self, ode, a, b, x, state=None):
        return DDIM().step(ode, a, b, x)


def test_calls_that_do_not_grow_with_the_steps_are_named():
    model = odediff.Model(lambda x, t: torch.tanh(x), odediff.VPLinear(), "v")
    with pytest.raises(ValueError, match=r"Miscounted\(\) makes \d+ calls in 36 steps; let calls\(n_steps\)"):
        odediff.sample(model, (2, 3), nfe=10, solver=Miscounted())


@pytest.mark.parametrize("loudest", [0.3, 0.5, 1.0, 1.9, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
def test_the_defaults_nodes_descend_on_paths_that_begin_near_the_data(loudest, steps):
    path = odediff.VE(0.01, loudest)
    levels = [path.node(float(t)).s for t in odediff.grid.plateau(path, steps)]
    assert levels == sorted(set(levels), reverse=True)


@pytest.mark.parametrize("deviation", [1e-3, 100.0])
def test_the_default_warns_of_data_that_it_was_not_made_for(deviation):
    path = odediff.RectifiedFlow()
    model = exact_model(Gaussian(0.0, deviation), path, "flow")
    with pytest.warns(UserWarning, match=r"samples have a root mean square of .* assumes data of about 1.*UniPC"):
        odediff.sample(model, (4, 2), nfe=10)
    with pytest.warns(UserWarning, match="images have a root mean square of"):
        odediff.encode(model, deviation * torch.ones(4, 2), steps=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odediff.sample(model, (4, 2), nfe=10, solver=solvers.GPMultistep())
        odediff.sample(model, (4, 2), rtol=1e-2)
        odediff.sample(exact_model(Gaussian(0.0, 5.0), path, "flow"), (4, 2), nfe=10)


def test_the_default_does_not_warn_of_states_above_the_data():
    path = odediff.VE()
    model = exact_model(Gaussian(0.0, 0.5), path)
    times = odediff.grid.karras(path, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        half = odediff.sample(model, (8, 3), grid=times[:3])
        odediff.sample(model, noise=half, grid=times[2:])
    assert half.std() > 30


class Offloaded(torch.nn.Module):
    """A network whose weights are elsewhere between its calls."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3, device="meta")

    def forward(self, x, time):
        return torch.tanh(x)


def test_where_the_state_is_drawn_must_be_said_if_the_weights_are_loaded_for_each_call():
    model = odediff.Model(Offloaded(), odediff.VPTable.linear())
    with pytest.raises(ValueError, match=r"parameters are on meta.*give the device on which it computes"):
        odediff.sample(model, (2, 3), steps=5)
    assert odediff.sample(model, (2, 3), steps=5, solver=DDIM(), device="cpu").shape == (2, 3)


@pytest.mark.parametrize(
    "how", [{}, {"solver": solvers.UniPC()}, {"rtol": 1e-2}, {"solver": solvers.RK4(line=solvers.Rotation())}], ids=str
)
def test_torchs_default_device_is_none_of_the_hosts_business(how):
    """Times, statuses and counts stay on the host where new tensors go elsewhere; there is no arithmetic on "meta"."""
    model = odediff.Model(
        lambda x, t, label: torch.tanh(x) + 0.1 * label[:, None], odediff.VPTable.linear(), "v", {"label": 1.0}
    )
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    expected = odediff.sample(model, noise=x, **how)
    images = expected.clone()
    code = odediff.encode(model, images, steps=4).x
    with torch.device("meta"):
        assert torch.equal(odediff.sample(model, noise=x, **how), expected)
        assert torch.equal(odediff.encode(model, images, steps=4).x, code)
        fixed = odediff.encode(model, images.double(), steps=40, solver=solvers.FixedPoint())
        torch.testing.assert_close(odediff.decode(model, fixed), images.double(), rtol=0, atol=1e-8)


def test_a_grid_that_ends_above_the_data_may_be_too_dear():
    def short(path, steps):
        return torch.linspace(1.0, 0.1, steps + 1, dtype=torch.float64)

    with pytest.raises(ValueError, match="nfe=1 is too small for one step of Heun.*on this grid; it needs at least 2"):
        odediff.sample(never_asked(), (2, 3), solver=Heun(), nfe=1, grid=short)


@pytest.mark.parametrize("nfe", [4, 7, 8, 12])
@pytest.mark.parametrize("solver", [Heun(), DDIM(), RK4(), solvers.UniPC()], ids=repr)
def test_a_grid_that_ends_above_the_data_has_no_closing_call_to_pay_for(solver, nfe):
    def short(path, steps):
        return torch.linspace(1.0, 0.1, steps + 1, dtype=torch.float64)

    found = odediff.sample(gaussian(), (2, 3), solver=solver, nfe=nfe, grid=short, return_solution=True)
    assert found.stats.nfe == solver.calls(len(found.nodes) - 1) <= nfe < solver.calls(len(found.nodes))


def test_where_alpha_vanishes_like_a_root_the_first_step_is_ddims():
    path, data = odediff.VPSigmoid(start=1.0), Gaussian(0.4, 0.5)
    assert math.isinf(path.rates(1.0)[0])
    x = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(2, 3)
    exact = data.flow(path.node(1.0), path.node(0.0), x)
    for solver, most in (
        (solvers.Euler(), 0.05),
        (Heun(), 0.02),
        (solvers.RK4(), 1e-3),
        (solvers.GaussLegendre(), 1e-3),
    ):
        found = odediff.sample(exact_model(data, path, "v"), noise=x, solver=solver, steps=30)
        assert float((found - exact).abs().max()) < most, solver


@pytest.mark.parametrize("how", [{"steps": 5}, {"nfe": 9, "solver": Heun()}, {"rtol": 1e-2}], ids=str)
@pytest.mark.parametrize("call", ["sample", "encode"])
def test_the_constant_target_of_a_loss_is_computed_inside_a_transform(how, call):
    network = torch.nn.Linear(3, 3, dtype=torch.float64)
    teacher = odediff.Model(lambda x, time: network(x), TABLE, "v")
    x, weight = torch.randn(2, 3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)

    def target():
        return odediff.sample(teacher, noise=x, **how) if call == "sample" else odediff.encode(teacher, x, **how).x

    def loss(weight):
        return (weight * x - target()).square().sum()

    gradient = torch.func.grad(loss)(weight)
    expected = (2 * x * (x - target())).sum(0)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(torch.func.jvp(loss, (weight,), (weight,))[1], expected.sum())


@pytest.mark.parametrize("solver", [GaussLegendre(), FixedPoint(), FixedPoint(history=2), NewtonKrylov()], ids=repr)
def test_methods_that_solve_equations_run_inside_a_transform(solver):
    model = odediff.Model(lambda x, time: 0.1 * torch.tanh(x), TABLE)
    x = torch.randn(2, 3, dtype=torch.float64)

    def loss(weight):
        return (weight * x - odediff.encode(model, x, solver=solver, steps=8).x).square().sum()

    gradient = torch.func.grad(loss)(torch.ones(3, dtype=torch.float64))
    expected = odediff.encode(model, x, solver=solver, steps=8).x
    torch.testing.assert_close(gradient, (2 * x * (x - expected)).sum(0))


# For type checkers


def test_a_type_checker_knows_all_arguments():
    given = inspect.signature(odediff.sample).parameters
    assert {*Options.__annotations__} == {*given} - {"model", "shape", "return_solution"}
    assert all(given[name].annotation == kind.__forward_arg__ for name, kind in Options.__annotations__.items())
