"""The embedded network under diffusers' schedulers and under ours: the same states to 1e-10, or the difference named.

In diffusers the table is computed in float32; here it is overwritten in float64. clip_sample is off where it is not
tested, and the alpha-bar after the last step is 1, as in the DDIM paper.
"""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers import scheduling_ddpm

import odediff
import solvers
from odediff.prediction import Form, network_output
from solvers import DDIM, DDPM, Node, NoiseStream

T = 1000
CLIP = 0.8
TABLE = odediff.VPTable.linear(T)
FORMS: dict[str, Form] = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}


@pytest.fixture(scope="module")
def epsilon_model() -> odediff.Model:
    return odediff.zoo.fashion_mnist(dtype=torch.float64).condition(label=7)


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def in_form(model: odediff.Model, form: Form) -> odediff.Model:
    """The embedded network, its output turned into another form."""

    def network(x: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        node = TABLE.node((float(time[0]) + 1) / T)
        prediction = model.condition(label=label).predict(node, x)
        return network_output(form, node, prediction)

    return odediff.Model(network, TABLE, form, model.conditions)


def overwritten(scheduler_class: type, n: int, clip_sample: bool = False, **options):
    """A diffusers scheduler for n steps on our table in float64."""
    scheduler = scheduler_class(num_train_timesteps=T, clip_sample=clip_sample, clip_sample_range=CLIP, **options)
    scheduler.alphas_cumprod = torch.from_numpy(TABLE.alphas_cumprod.copy())
    scheduler.set_timesteps(n)
    return scheduler


def ddim(n: int, spacing: str, **options) -> DDIMScheduler:
    return overwritten(DDIMScheduler, n, timestep_spacing=spacing, set_alpha_to_one=True, **options)


def ddpm(n: int, spacing: str, **options) -> DDPMScheduler:
    return overwritten(DDPMScheduler, n, timestep_spacing=spacing, **options)


def output_of(model: odediff.Model, x: torch.Tensor, t: int) -> torch.Tensor:
    """What diffusers' loop passes to its scheduler: the network's output, called as diffusers calls it."""
    label = torch.full((len(x),), model.conditions["label"])
    return model.network(x, torch.full((len(x),), float(t), dtype=x.dtype), label=label)


def draws(count: int, like: torch.Tensor) -> list[torch.Tensor]:
    """The first draws of the stream that the tests pass to `solve`."""
    stream, values = NoiseStream(5), []
    for _ in range(count):
        value, stream = stream.draw(like)
        values.append(value)
    return values


def end_by_ddim(
    scheduler: DDIMScheduler, model: odediff.Model, x: torch.Tensor, eta: float = 0.0, **told: bool
) -> torch.Tensor:
    noises = draws(len(scheduler.timesteps), x)
    for t, z in zip(scheduler.timesteps.tolist(), noises, strict=True):
        extra = told | ({"eta": eta, "variance_noise": z} if eta else {})
        x = scheduler.step(output_of(model, x, t), t, x, **extra).prev_sample
    return x


def end_by_ddpm(scheduler: DDPMScheduler, model: odediff.Model, x: torch.Tensor, monkeypatch) -> torch.Tensor:
    noises = iter(draws(len(scheduler.timesteps), x))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: next(noises))
    for t in scheduler.timesteps:
        x = scheduler.step(output_of(model, x, int(t)), t, x).prev_sample
    return x


def end_by_us(model: odediff.Model, solver: solvers.Solver, n: int, spacing: str, x: torch.Tensor) -> torch.Tensor:
    times = odediff.grid.uniform_t(TABLE, n, spacing=spacing)
    return solvers.solve(odediff.probability_flow(model), solver, x, times, stream=NoiseStream(5)).x


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


# --- DDIM ---------------------------------------------------------------------------------------------------------

SAME_GRID = [(10, "leading"), (7, "leading"), (10, "trailing"), (8, "trailing")]
"""Leading spacing for any n; any spacing that strides by T/n where that is whole."""


@pytest.mark.parametrize(("n", "spacing"), SAME_GRID)
def test_ddim_equals_diffusers(epsilon_model, noise, n, spacing):
    expected = end_by_ddim(ddim(n, spacing), epsilon_model, noise)
    close(end_by_us(epsilon_model, DDIM(), n, spacing, noise), expected)


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_ddim_equals_diffusers_in_other_prediction_forms(epsilon_model, noise, kind):
    model = in_form(epsilon_model, FORMS[kind])
    expected = end_by_ddim(ddim(5, "leading", prediction_type=kind), model, noise)
    close(end_by_us(model, DDIM(), 5, "leading", noise), expected)
    close(expected, end_by_us(epsilon_model, DDIM(), 5, "leading", noise))


@pytest.mark.parametrize(("n", "spacing"), [(10, "leading"), (7, "leading"), (8, "trailing")])
def test_stochastic_ddim_equals_diffusers_with_the_same_noise(epsilon_model, noise, n, spacing):
    expected = end_by_ddim(ddim(n, spacing), epsilon_model, noise, eta=0.5)
    close(end_by_us(epsilon_model, DDIM(eta=0.5), n, spacing, noise), expected)


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("keep_eps", [True, False])
def test_ddim_equals_diffusers_that_clips_the_data(epsilon_model, noise, keep_eps, eta):
    scheduler = ddim(7, "leading", clip_sample=True)
    expected = end_by_ddim(scheduler, epsilon_model, noise, eta, use_clipped_model_output=not keep_eps)
    clipping = replace(epsilon_model, threshold=odediff.StaticThreshold(CLIP, keep_eps))
    close(end_by_us(clipping, DDIM(eta), 7, "leading", noise), expected)
    other = replace(epsilon_model, threshold=odediff.StaticThreshold(CLIP, not keep_eps))
    assert (end_by_us(other, DDIM(eta), 7, "leading", noise) - expected).abs().max() > 0.01


@pytest.mark.parametrize(("n", "spacing"), [(7, "trailing"), (6, "linspace"), (10, "linspace")])
def test_elsewhere_diffusers_does_not_go_where_it_continues_and_our_grid_differs_by_design(n, spacing):
    timesteps = ddim(n, spacing).timesteps.tolist()
    previous = [t - T // n for t in timesteps]  # a stride, whatever the next timestep is
    assert previous[:-1] != timesteps[1:]
    entries = [round(T * t) - 1 for t in odediff.grid.uniform_t(TABLE, n, spacing=spacing).tolist()]
    assert entries == [*timesteps, -1]


@pytest.mark.parametrize(("n", "spacing"), [(7, "trailing"), (6, "linspace"), (10, "linspace")])
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_elsewhere_our_step_equals_diffusers_from_its_t_to_its_previous_t(epsilon_model, noise, n, spacing, eta):
    scheduler, ode, solver = ddim(n, spacing), odediff.probability_flow(epsilon_model), DDIM(eta)
    x = noise
    for t, z in zip(scheduler.timesteps.tolist(), draws(n, noise), strict=True):
        previous = t - T // n
        a = TABLE.node((t + 1) / T)
        b = TABLE.node((previous + 1) / T) if previous >= 0 else Node(0.0, 1.0, 0.0)
        extra = {"eta": eta, "variance_noise": z} if eta else {}
        expected = scheduler.step(output_of(epsilon_model, x, t), t, x, **extra).prev_sample
        found = solver.step(ode, a, b, x, Given(z)).x
        close(found, expected)
        x = expected


class Given:
    """A stream of one draw."""

    def __init__(self, z: torch.Tensor) -> None:
        self.z = z

    def draw(self, like: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.z, None


# --- DDPM ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variance", "name"), [("small", "fixed_small"), ("large", "fixed_large")])
@pytest.mark.parametrize(("n", "spacing"), [(10, "leading"), (7, "leading")])
def test_ddpm_equals_diffusers(epsilon_model, noise, monkeypatch, variance, name, n, spacing):
    # Leading spacing ends at t = 0, where diffusers adds no noise.
    expected = end_by_ddpm(ddpm(n, spacing, variance_type=name), epsilon_model, noise, monkeypatch)
    close(end_by_us(epsilon_model, DDPM(variance), n, spacing, noise), expected)


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_ddpm_equals_diffusers_in_other_prediction_forms(epsilon_model, noise, monkeypatch, kind):
    model = in_form(epsilon_model, FORMS[kind])
    expected = end_by_ddpm(ddpm(5, "leading", prediction_type=kind), model, noise, monkeypatch)
    close(end_by_us(model, DDPM(), 5, "leading", noise), expected)


@pytest.mark.parametrize(("variance", "name"), [("small", "fixed_small"), ("large", "fixed_large")])
@pytest.mark.parametrize(("n", "spacing"), [(8, "trailing"), (7, "trailing")])
def test_ddpm_differs_from_diffusers_by_the_noise_of_the_last_step_alone(
    epsilon_model, noise, monkeypatch, variance, name, n, spacing
):
    # Trailing spacing ends above t = 0, and diffusers asks t > 0, not whether the step reaches the data: it adds
    # sqrt(beta) of the whole last stride with fixed_large, and the root of its clamp, 1e-10, with fixed_small.
    scheduler = ddpm(n, spacing, variance_type=name)
    last = int(scheduler.timesteps[-1])
    assert last > 0
    stride_variance = 1 - TABLE.alphas_cumprod[last] if name == "fixed_large" else 1e-20
    expected = end_by_ddpm(scheduler, epsilon_model, noise, monkeypatch)
    found = end_by_us(epsilon_model, DDPM(variance), n, spacing, noise)
    close(found + stride_variance**0.5 * draws(n, noise)[-1], expected)
    if name == "fixed_large":
        assert float((found - expected).abs().max()) > 0.1


def test_ddpm_visits_the_timesteps_of_diffusers_with_any_spacing(epsilon_model, noise, monkeypatch):
    # Unlike its DDIM, diffusers' DDPM steps to the next timestep of its list when n does not divide T.
    scheduler = ddpm(6, "linspace")
    expected = end_by_ddpm(scheduler, epsilon_model, noise, monkeypatch)
    close(end_by_us(epsilon_model, DDPM(), 6, "linspace", noise), expected)
