import math
from dataclasses import dataclass, replace

import pytest
import torch

import odediff
import solvers
from odediff import metrics
from odediff.problems import exact_model
from solvers import DDIM, DDPM, RK4, Dopri5, Euler, FixedPoint, Heun, Noise, Rotation
from solvers.testing import Gaussian

TABLE = odediff.VPTable.linear()
LAW = Gaussian(mean=0.3, deviation=0.6)


def states(batch: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return LAW.mean + LAW.deviation * torch.randn(batch, 2, 3, generator=generator, dtype=torch.float64)


# --- against a closed form ----------------------------------------------------------------------------------------

PATHS = [TABLE, odediff.VPLinear(), odediff.VPCosine(), odediff.SubVP(), odediff.VE()]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_encoding_a_gaussian_is_its_closed_form_flow_and_decoding_its_inverse(path):
    model, images = exact_model(LAW, path), states()
    code = odediff.encode(model, images, solver=Dopri5(Rotation()), grid=odediff.grid.log_snr, steps=81)
    data, noise = path.node(path.end), path.node(path.start)
    assert code.times.tolist() == odediff.grid.log_snr(path, 81)[:-1].flip(0).tolist()
    torch.testing.assert_close(code.x, LAW.flow(data, noise, images), rtol=1e-7, atol=0)
    torch.testing.assert_close(odediff.decode(model, code), images, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("solver", "order"), [(DDIM(), 1), (Euler(Noise()), 1), (Heun(Noise()), 2), (RK4(Rotation()), 4)], ids=repr
)
def test_encoding_converges_to_the_closed_form_flow_with_the_order_of_its_solver(solver, order):
    model, images = exact_model(LAW, TABLE), states()
    expected = LAW.flow(TABLE.node(0.001), TABLE.node(1.0), images)
    errors = []
    for steps in (81, 161, 321):
        code = odediff.encode(model, images, solver=solver, grid=odediff.grid.log_snr, steps=steps)
        errors.append(float((code.x - expected).abs().max()))
    assert math.log2(errors[0] / errors[2]) / 2 == pytest.approx(order, abs=0.25)


def test_ddim_inversion_is_the_formula_of_adm_appendix_f():
    # Dhariwal & Nichol 2021: x_{t+1} = sqrt(abar_{t+1}) x0 + sqrt(1 - abar_{t+1}) eps, with the network at t.
    alpha_bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    indices = [0, 10, 40, 200, 700, 999]
    x = states()
    model = exact_model(LAW, TABLE)
    code = odediff.encode(model, x, solver=DDIM(), grid=odediff.grid.subsequence(TABLE, indices))
    for now, then in zip(alpha_bars[indices[:-1]], alpha_bars[indices[1:]], strict=True):
        eps = (1 - now).sqrt() * (x - now.sqrt() * LAW.mean) / (now * LAW.deviation**2 + 1 - now)
        x = then.sqrt() * (x - (1 - now).sqrt() * eps) / now.sqrt() + (1 - then).sqrt() * eps
    torch.testing.assert_close(code.x, x, rtol=0, atol=1e-11)


def test_a_flow_is_encoded_to_pure_noise():
    path = odediff.RectifiedFlow()
    model, images = exact_model(LAW, path, "flow"), states()
    code = odediff.encode(model, images, solver=Dopri5(Rotation()), steps=80)
    assert code.times[-1] == 1.0
    torch.testing.assert_close(code.x, LAW.flow(path.node(path.end), path.node(1.0), images), rtol=0, atol=1e-6)


# --- what an encoding is and costs --------------------------------------------------------------------------------


def test_encode_and_sample_share_one_grid():
    model = exact_model(LAW, TABLE)
    sampled = odediff.sample(model, noise=states(), solver=DDIM(), steps=12, return_solution=True)
    code = odediff.encode(model, states(), solver=DDIM(), steps=12)
    assert code.times.tolist() == [node.t for node in sampled.nodes[-2::-1]]
    assert code.times[0] == TABLE.first_defined


@pytest.mark.parametrize("solver", [DDIM(), Heun(Noise()), RK4(Noise())], ids=repr)
@pytest.mark.parametrize("extra", [0, 1, 7])
def test_nfe_bounds_the_calls_of_an_encoding_and_one_more_step_would_break_it(solver, extra):
    model, nfe = exact_model(LAW, TABLE), solver.calls(1) + extra
    code = odediff.encode(model, states(), solver=solver, nfe=nfe)
    more = odediff.encode(model, states(), solver=solver, steps=len(code.times) + 1)
    assert code.stats.nfe <= nfe < more.stats.nfe


@dataclass(frozen=True)
class Uncounted(Heun):
    """It declares one of the two calls of a step."""

    def calls(self, n_steps):
        return n_steps

    def calls_over(self, ode, nodes):
        return len(nodes) - 1


def test_a_ceiling_that_a_solver_does_not_keep_is_named():
    with pytest.raises(ValueError, match=r"nfe=6: Uncounted.* made 12 calls.*let calls\(n_steps\) return"):
        odediff.encode(exact_model(LAW, TABLE), states(), solver=Uncounted(Noise()), nfe=6)


@pytest.mark.parametrize("steps", [2, 6, 30])
def test_the_default_sets_out_from_the_end_of_the_path(steps):
    """Where the image is taken to be, and not where the grid of a sampler leaves the rest to its last step."""
    for path in (odediff.VPTable.linear(), odediff.VE()):
        code = odediff.encode(exact_model(Gaussian(), path), torch.ones(2, 3), steps=steps)
        assert float(code.times[0]) == path.end


def test_nfe_bounds_the_calls_of_an_implicit_inverse():
    solver = FixedPoint(max_iterations=3, tolerance=0.5)
    code = odediff.encode(exact_model(LAW, TABLE), states(), solver=solver, nfe=20, throw=False)
    assert len(code.times) == 6 and code.stats.nfe <= 20


def test_a_tensor_of_times_is_a_grid_with_or_without_its_zero():
    model = exact_model(LAW, TABLE)
    codes = [
        odediff.encode(model, states(), solver=DDIM(), grid=torch.tensor(times, dtype=torch.float64))
        for times in ([1.0, 0.5, 0.1, 0.0], [1.0, 0.5, 0.1])
    ]
    assert codes[0].times.tolist() == codes[1].times.tolist() == [0.1, 0.5, 1.0]
    assert torch.equal(codes[0].x, codes[1].x)


def test_an_image_is_not_overwritten_and_a_code_may_be_decoded_twice():
    model, images = exact_model(LAW, TABLE), states()
    kept = images.clone()
    code = odediff.encode(model, images, solver=DDIM(), steps=6)
    first, second = odediff.decode(model, code), odediff.decode(model, code)
    assert torch.equal(images, kept)
    assert torch.equal(first, second)


def test_codes_and_images_of_a_network_in_training_need_no_gradient():
    layer = torch.nn.Linear(3, 3)
    model = odediff.Model(lambda x, time: layer(x), odediff.VPTable.linear())
    code = odediff.encode(model, torch.ones(2, 3), solver=DDIM(), steps=4)
    assert not code.x.requires_grad and not odediff.decode(model, code).requires_grad


def test_a_code_follows_its_conditions_to_another_class():
    # Dual diffusion implicit bridges: encode under one condition, decode under another.
    def network(x, time, label):
        return 0.1 * x + 0.05 * label.reshape(-1, 1, 1)

    model = odediff.Model(network, TABLE, conditions={"label": 0}, null={"label": 0})
    code = odediff.encode(model.condition(label=1), states(), solver=DDIM(), steps=6)
    back, moved = (odediff.decode(model.condition(label=k), code, edit=k == 2) for k in (1, 2))
    assert float((back - states()).abs().max()) < float((moved - states()).abs().max())


# --- what is refused ----------------------------------------------------------------------------------------------


def never_asked(path: odediff.Schedule = TABLE, **options) -> odediff.Model:
    def network(x, time):
        raise AssertionError("the network was asked")

    return odediff.Model(network, path, **options)


@pytest.mark.parametrize("solver", [DDIM(0.5), DDPM(), DDPM("large")], ids=repr)
def test_a_stochastic_solver_has_no_inverse(solver):
    with pytest.raises(ValueError, match=r"solver=.* is stochastic and has no inverse.*DDIM\(eta=0\)"):
        odediff.encode(never_asked(), states(), solver=solver, steps=5)


@pytest.mark.parametrize("threshold", [odediff.StaticThreshold(), odediff.DynamicThreshold()])
def test_a_threshold_has_no_inverse(threshold):
    with pytest.raises(ValueError, match="threshold=.*Threshold.* not invertible.*threshold=None"):
        odediff.encode(never_asked(threshold=threshold), states(), steps=5)
    code = odediff.encode(exact_model(LAW, TABLE), states(), steps=5)
    with pytest.raises(ValueError, match="threshold=.*Threshold"):
        odediff.decode(replace(exact_model(LAW, TABLE), threshold=threshold), code)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 1}, ValueError, "^steps=1 leaves no interval to invert: .*; give steps >= 2"),
        (
            {"grid": torch.tensor([1.0, 0.0])},
            ValueError,
            "grid, with t=1 .*leaves no interval to invert: .*at least 2 times",
        ),
        ({"steps": 5, "nfe": 5}, ValueError, "steps=5, nfe=5"),
        ({"solver": RK4(Noise()), "nfe": 3}, ValueError, "nfe=3 is too small.*needs at least 4"),
        ({"grid": torch.tensor([0.1, 0.5, 1.0])}, ValueError, r"times\[1\] = 0.5 is not below.*noise first"),
        ({"grid": torch.tensor([0.0, 0.5, 1.0])}, ValueError, r"times\[1\] = 0.5 is not below.*noise first"),
        ({"grid": torch.tensor([1.0, 0.5, 0.0005])}, ValueError, "below the first time that the network knows"),
        ({"grid": "karras"}, TypeError, "grid='karras'"),
        ({"solver": "ddim"}, TypeError, "solver='ddim'.*DDIM"),
    ],
)
def test_a_wrong_argument_is_refused_before_the_network_is_asked(options, error, message):
    with pytest.raises(error, match=message):
        odediff.encode(never_asked(), states(), **options)


def test_what_is_no_code_is_not_decoded():
    model = exact_model(LAW, TABLE)
    with pytest.raises(
        TypeError, match="code must be an odediff.Code, not a Tensor; pass what odediff.encode returned"
    ):
        odediff.decode(model, states())
    with pytest.raises(TypeError, match="model must be an odediff.Model"):
        odediff.decode(odediff.encode(model, states(), steps=5), model)


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 3, 3, dtype=torch.uint8), [[0.0]]])
def test_images_that_are_no_floating_point_tensor_are_refused(images):
    with pytest.raises(TypeError, match="floating-point|torch.Tensor"):
        odediff.encode(never_asked(), images, steps=5)


@pytest.mark.parametrize("solver", [DDIM(), Heun(Noise()), Heun(), RK4(Rotation())], ids=repr)
def test_a_flipped_grid_that_contains_the_data_is_an_error_for_tables(solver):
    times = odediff.grid.log_snr(TABLE, 5).flip(0)
    with pytest.raises(ValueError, match="below the first time it was trained on.*leave 0 out"):
        solvers.solve(odediff.probability_flow(never_asked()), solver, states(), times)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": odediff.VPTable.scaled_linear()}, r"model.path=.* differs from the encoder's .*same model"),
        ({"prediction": "v"}, "model.prediction=v differs from the encoder's epsilon"),
        ({"guidance": 2.0, "null": {"label": 0}}, "model.guidance=2.0 differs from the encoder's 1.0"),
        ({"guidance": torch.tensor([1.0, 2.0]), "null": {"label": 0}}, "model.guidance=.* differs from the encoder's"),
    ],
)
def test_another_path_form_or_guidance_does_not_decode(change, message):
    code = odediff.encode(exact_model(LAW, TABLE), states(), steps=5)
    with pytest.raises(ValueError, match=message):
        odediff.decode(replace(exact_model(LAW, TABLE), **change), code)


@pytest.mark.parametrize("guidance", [2.0, torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor(2.0).double()])
def test_the_same_guidance_decodes(guidance):
    def network(x, time, label):
        return 0.1 * x + 0.05 * label.reshape(-1, 1, 1)

    model = odediff.Model(network, TABLE, conditions={"label": 1}, null={"label": 0}, guidance=guidance)
    code = odediff.encode(model, states(), solver=DDIM(), steps=6)
    assert torch.isfinite(odediff.decode(model, code)).all()


def test_an_equal_table_of_another_object_decodes():
    code = odediff.encode(exact_model(LAW, TABLE), states(), steps=5)
    odediff.decode(exact_model(LAW, odediff.VPTable.linear()), code)


# --- real images, the trained network -----------------------------------------------------------------------------


def test_the_slope_is_fitted_on_the_longest_run_above_the_floor():
    steps = [10, 20, 40, 80, 160, 320]
    assert metrics.convergence_slope(steps, [3 * n**-2.0 for n in steps], 1e-9) == pytest.approx(-2)
    assert metrics.convergence_slope(steps, [1.0, 0.5, 0.25, 0.125, 5e-5, 5e-5], 1e-5) == pytest.approx(-1)
    with pytest.raises(ValueError, match="three doublings"):
        metrics.convergence_slope(steps, [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03], 0.02)


def round_trip(model: odediff.Model, images: torch.Tensor, solver: solvers.Solver, intervals: int) -> float:
    """Root-mean-square difference of images and their reconstructions, nodes uniform in log-SNR."""
    code = odediff.encode(model, images, solver=solver, grid=odediff.grid.log_snr, steps=intervals + 1)
    return float(metrics.round_trip_error(images, odediff.decode(model, code)).square().mean().sqrt())


@pytest.fixture(scope="module")
def real_images() -> torch.Tensor:
    """A shirt and a pair of trousers; float64 states around the float32 network, so that the floor lies low."""
    return odediff.zoo.test_images()[0][:2].double()


@pytest.fixture(scope="module")
def floor(real_images) -> float:
    """A bound on the round trip of RK4 at 1,000 steps, from one at 250 steps, which costs a quarter.

    Its truncation error is larger than that of 1,000 steps, and round-off grows at most like their number.
    """
    return 4 * round_trip(odediff.zoo.fashion_mnist(), real_images[:1], RK4(Noise()), 250)


def test_the_ddim_round_trip_of_real_images_falls_like_one_over_steps(real_images, floor):
    # Coarser grids are not asymptotic yet: from 20 to 40 steps the error falls by a factor 2.6.
    steps = [40, 80, 160, 320]
    errors = [round_trip(odediff.zoo.fashion_mnist(), real_images, DDIM(), n) for n in steps]
    assert metrics.convergence_slope(steps, errors, floor) == pytest.approx(-1, abs=0.2)


def test_the_heun_round_trip_of_real_images_falls_at_least_like_one_over_steps_squared(real_images, floor):
    # The leading error of an even order is even in the step: going back undoes it, and order 3 is what remains.
    steps = [10, 20, 40, 80]
    errors = [round_trip(odediff.zoo.fashion_mnist(), real_images, Heun(Noise()), n) for n in steps]
    assert metrics.convergence_slope(steps, errors, floor) <= -1.8


@pytest.mark.parametrize("throw", [True, False])
def test_an_image_that_is_not_finite_is_named_or_lost_alone(throw):
    asked = []
    model = odediff.Model(lambda x, time: asked.append(time) or 0.1 * x, odediff.VPTable.linear())
    given = torch.ones(3, 2)
    given[1, 0] = torch.inf
    if throw:
        with pytest.raises(ValueError, match=r"images: samples \[1\] contain infinities or NaNs"):
            odediff.encode(model, given, solver=DDIM(), steps=5)
        assert not asked
    else:
        code = odediff.encode(model, given, solver=DDIM(), steps=5, throw=False)
        assert code.status.tolist() == [0, int(solvers.Status.NON_FINITE), 0]


@pytest.mark.parametrize("weight", ["x", None, torch.tensor([0.1, 0.2]), float("nan")])
def test_a_weight_that_is_no_number_is_named(weight):
    with pytest.raises(ValueError, match="weight=.*must be a finite number"):
        odediff.inversion.slerp(torch.ones(2, 3), torch.zeros(2, 3), weight)


RECORDERS = [odediff.direct_inversion, odediff.edit_friendly, odediff.cycle_diffusion]
OPTIMISERS = [odediff.null_text, odediff.shared_null, odediff.negative_prompt]


@pytest.mark.parametrize("encode", [*RECORDERS, *OPTIMISERS])
@pytest.mark.parametrize("batch", [4, 0])
def test_a_sample_may_be_a_number_without_an_axis_of_its_own(encode, batch):
    def network(x, time, c):
        return torch.tanh(x + c.reshape(-1, *(1,) * (x.ndim - 1)))

    model = odediff.Model(network, TABLE, "v", {"c": 1.0}, {"c": torch.tensor(0.5, dtype=torch.float64)}, guidance=2.0)
    numbers = states(4).ravel()[:batch]
    code, expected = encode(model, numbers, steps=4), encode(model, numbers[:, None], steps=4)
    torch.testing.assert_close(code.x, expected.x[:, 0])
    torch.testing.assert_close(odediff.decode(model, code), odediff.decode(model, expected)[:, 0])


def test_codes_of_numbers_are_mixed():
    model = odediff.Model(lambda x, time: torch.tanh(x), TABLE, "v")
    one, other = (odediff.encode(model, numbers, steps=4) for numbers in (states().ravel(), 1 - states().ravel()))
    columns = [replace(code, x=code.x[:, None], digest="") for code in (one, other)]
    torch.testing.assert_close(odediff.mix_codes(one, other, 0.3).x, odediff.mix_codes(*columns, 0.3).x[:, 0])


def test_gradients_are_those_of_the_solve_that_sample_and_decode_make():
    solver = solvers.DPMpp(2)
    model, grid = odediff.Model(lambda x, time: torch.tanh(x), TABLE, "v"), odediff.grid.log_snr
    flow, code = odediff.probability_flow(model), odediff.encode(model, states(2), solver=solver, grid=grid, steps=6)
    sampled = odediff.sample(model, noise=states(2).requires_grad_(), solver=solver, grid=grid, steps=6)
    decoded = odediff.decode(model, code)
    assert not sampled.requires_grad and not decoded.requires_grad

    def sample(noise):
        return solvers.solve(flow, solver, noise, grid(model.path, 6)).x

    def decode(x):
        return solvers.solve(flow, code.solver, x, code.times.flip(0)).x

    assert torch.equal(sample(states(2)), sampled) and torch.equal(decode(code.x), decoded)
    for function, x in ((sample, states(2)), (decode, code.x)):
        torch.autograd.gradcheck(function, x.clone().requires_grad_())
