"""Null-text inversion, its shortcuts and the recorders: what they reach, and that samples do not meet."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import odediff
import solvers
from odediff.metrics import psnr
from odediff.replay import NullConditionedFlow
from solvers import DDIM, Heun, Noise

TABLE = odediff.VPTable.linear()
STEPS = {"grid": odediff.grid.uniform_t, "steps": 11}


class Embedded(torch.nn.Module):
    """A network whose condition is an embedding that moves every component."""

    def forward(self, x: torch.Tensor, time: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        return 0.4 * torch.tanh(x) + 0.2 * torch.sin(prompt.to(x.dtype))


def embedded(guidance=5.0, batch: int = 4) -> odediff.Model:
    prompts = torch.linspace(-1, 1, 3 * batch, dtype=torch.float64).reshape(batch, 3)
    null = {"prompt": torch.zeros(1, 3, dtype=torch.float64)}
    return odediff.Model(Embedded(), TABLE, conditions={"prompt": prompts}, null=null, guidance=guidance)


class Prompted(odediff.Model):
    def null_embedding(self):
        return {"prompt": torch.zeros(3, dtype=torch.float64)}


def prompted(guidance=5.0, batch: int = 4) -> odediff.Model:
    model = embedded(guidance, batch)
    return Prompted(model.network, TABLE, conditions=model.conditions, null=model.null, guidance=guidance)


def images(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_null_text_reaches_its_pivot_where_the_embedding_can():
    # Three numbers steer three components: the null that undoes the guidance exists, and a few steps find it nearly.
    code = odediff.null_text(prompted(), images(), iterations=400, learning_rate=1e-2, tolerance=1e-14, **STEPS)
    assert code.nulls["prompt"].shape == (10, 4, 3)
    assert float((odediff.decode(prompted(), code) - images()).abs().max()) < 1e-4
    plain = odediff.encode(embedded(1.0), images(), solver=DDIM(), **STEPS)
    assert float((odediff.decode(prompted(), plain, edit=True) - images()).abs().max()) > 0.1


def test_adam_is_torchs():
    # One sample, one step, no stop: the null after k iterations is that of torch.optim.Adam on the same loss.
    model, x = prompted(batch=1), images(1)
    times = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    code = odediff.null_text(model, x, grid=times, iterations=7, learning_rate=0.02, tolerance=0.0)
    pivot = [x]
    ode = odediff.probability_flow(model.condition(guidance=1.0))
    nodes = ode.nodes(times.tolist())
    for a, b in pairwise(nodes[::-1]):
        pivot.insert(0, DDIM().step(ode, a, b, pivot[0]).x)
    null = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    state = pivot[0]
    for i, (a, b) in enumerate(pairwise(nodes)):
        adam = torch.optim.Adam([null], lr=0.02 * (1 - i / 4))

        def landed(a=a, b=b, state=state):
            free, asked = (0.4 * torch.tanh(state) + 0.2 * torch.sin(p) for p in (null, model.conditions["prompt"]))
            eps = free + 5.0 * (asked - free)
            return b.alpha * (state - a.sigma * eps) / a.alpha + b.sigma * eps

        for _ in range(7):
            adam.zero_grad()
            (landed() - pivot[i + 1]).square().mean().backward()
            adam.step()
        torch.testing.assert_close(code.nulls["prompt"][i], null.detach(), rtol=0, atol=1e-9)
        state = landed().detach()
    torch.testing.assert_close(odediff.decode(model, code), state, rtol=0, atol=1e-9)


@pytest.mark.parametrize("optimise", [odediff.null_text, odediff.shared_null])
def test_a_null_of_half_precision_is_optimised_like_any_other(optimise):
    def error(dtype):
        model = replace(embedded(), null={"prompt": torch.zeros(1, 3, dtype=dtype)})
        code = optimise(model, images(), iterations=20, **STEPS)
        assert code.nulls["prompt"].dtype is dtype
        return float((odediff.decode(model, code) - images()).square().mean())

    # In float16 the squares of gradients below 5e-3 would vanish, and with them the size of a step.
    assert error(torch.float16) == pytest.approx(error(torch.float64), rel=0.1)


@pytest.mark.parametrize(
    ("guidance", "tolerance"), [(5.0, 1e-3), (torch.tensor([1.5, 3.0, 5.0, 7.0]), 0.38)], ids=["one", "each"]
)
def test_no_sample_depends_on_its_batch_mates(guidance, tolerance):
    model = prompted(guidance)
    everyone = odediff.null_text(model, images(), tolerance=tolerance, iterations=5, **STEPS)
    for i in range(4):
        one = model.rows(torch.tensor([i]))
        alone = odediff.null_text(one, images()[i : i + 1], tolerance=tolerance, iterations=5, **STEPS)
        assert torch.equal(alone.nulls["prompt"][:, 0], everyone.nulls["prompt"][:, i])
        assert torch.equal(odediff.decode(one, alone)[0], odediff.decode(model, everyone)[i])


def test_the_bound_of_a_step_rises_with_the_steps():
    times = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64)

    def passes(tolerance):
        options = {"grid": times, "iterations": 4, "learning_rate": 0.0, "tolerance": tolerance}
        return odediff.null_text(embedded(1.5, batch=1), images(1), **options).stats.network_evaluations

    # The losses are 3.5 and 56, the second bound three times the first. Decoding takes 6 passes, a landing of the
    # condition 1, and a step that meets its bound 1 more, one that never does 4.
    assert [passes(tolerance) for tolerance in (20.0, 18.0, 3.0)] == [10, 13, 16]


def test_one_null_for_all_steps_reaches_less_and_more_than_none():
    errors = {}
    for name, code in (
        ("shared", odediff.shared_null(prompted(), images(), iterations=100, learning_rate=5e-2, **STEPS)),
        ("own", odediff.null_text(prompted(), images(), iterations=100, learning_rate=5e-2, tolerance=0.0, **STEPS)),
        ("none", odediff.encode(embedded(1.0), images(), solver=DDIM(), **STEPS)),
    ):
        errors[name] = float((odediff.decode(prompted(), code, edit=name == "none") - images()).square().mean())
    assert errors["own"] < errors["shared"] < errors["none"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_condition_in_place_of_the_null_is_guidance_1_bit_for_bit(dtype):
    real, labels = odediff.zoo.test_images()
    model, real = odediff.zoo.fashion_mnist().condition(label=labels[:3]), real[:3].to(dtype)
    plain = odediff.decode(model, odediff.encode(model, real, solver=DDIM(), **STEPS))
    for guidance in (2.0, 7.5):
        guided = model.condition(guidance=guidance, label=labels[:3])
        assert torch.equal(odediff.decode(guided, odediff.negative_prompt(guided, real, **STEPS)), plain)


def test_null_text_on_the_trained_network_is_5_db_above_guided_ddim():
    real, labels = odediff.zoo.test_images()
    model, real = odediff.zoo.fashion_mnist().condition(label=labels[:2], guidance=7.5), real[:2]
    code = odediff.null_text(model, real, iterations=4, **STEPS)
    found = psnr(real, odediff.decode(model, code)).median()
    # Guided both ways, and encoded at guidance 1: the pivot itself, which is nearer.
    for encoder, gain in ((model, 5), (model.condition(guidance=1.0), 2)):
        code = odediff.encode(encoder, real, solver=DDIM(), **STEPS)
        assert found > psnr(real, odediff.decode(model, code, edit=True)).median() + gain
    assert found < psnr(real, odediff.decode(model, odediff.direct_inversion(model, real, **STEPS))).median()


def test_what_cannot_be_optimised_is_refused():
    with pytest.raises(ValueError, match=r"model\.guidance=1\.0: the null condition matters only under guidance"):
        odediff.null_text(prompted(1.0), images(), **STEPS)
    numbered = odediff.Model(lambda x, t, label: x, TABLE, conditions={"label": 1}, null={"label": 0}, guidance=2.0)
    with pytest.raises(TypeError, match="has no floating-point tensor to optimise"):
        odediff.null_text(numbered, images(), **STEPS)
    with pytest.raises(ValueError, match="threshold"):
        model = prompted()
        thresholded = Prompted(
            model.network,
            TABLE,
            conditions=model.conditions,
            null=model.null,
            guidance=5.0,
            threshold=odediff.StaticThreshold(),
        )
        odediff.null_text(thresholded, images(), **STEPS)


# --- recorders ----------------------------------------------------------------------------------------------------

RECORDERS = [odediff.direct_inversion, odediff.edit_friendly, odediff.cycle_diffusion]


@pytest.mark.parametrize("record", RECORDERS, ids=lambda record: record.__name__)
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_what_is_recorded_returns_to_rounding(record, guidance):
    code = record(embedded(guidance), images(), **STEPS)
    assert float((odediff.decode(embedded(guidance), code) - images()).abs().max()) < 1e-14
    if record is not odediff.direct_inversion or guidance != 1.0:
        assert float(code.offsets.abs().max()) > 1e-3


def test_a_record_by_a_method_of_two_calls_counts_both():
    code = odediff.direct_inversion(embedded(3.0), images(), solver=Heun(Noise()), **STEPS)
    steps = STEPS["steps"] - 1
    assert code.stats.nfe == 4 * steps
    assert code.stats.network_evaluations == 2 * steps + 2 * 2 * steps
    assert code.stats.evaluations.tolist() == [4 * steps] * len(images())


def test_without_guidance_direct_inversion_stores_what_ddim_misses_alone():
    code = odediff.direct_inversion(embedded(1.0), images(), **STEPS)
    plain = odediff.encode(embedded(1.0), images(), solver=DDIM(), **STEPS)
    assert torch.equal(code.x, plain.x)
    ode = odediff.probability_flow(embedded(1.0))
    nodes = ode.nodes(code.times.flip(0).tolist())
    first = DDIM().step(ode, nodes[0], nodes[1], code.x).x + code.offsets[0]
    below = odediff.encode(embedded(1.0), images(), solver=DDIM(), grid=code.times[:-1].flip(0))
    torch.testing.assert_close(first, below.x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("record", RECORDERS[1:], ids=lambda record: record.__name__)
def test_a_sampler_s_own_noises_are_the_offsets_of_its_samples(record):
    # The states have the forward process's marginals: alpha x0 and sigma^2, given the image.
    picture = torch.full((4000, 1), 0.5, dtype=torch.float64)
    model = odediff.Model(lambda x, time: torch.zeros_like(x), TABLE)
    code = record(model, picture, **STEPS)
    node = TABLE.node(1.0)
    assert float(code.x.mean()) == pytest.approx(0.5 * node.alpha, abs=0.06)
    assert float(code.x.var()) == pytest.approx(node.sigma**2, rel=0.08)
    # With a network that predicts no noise, mean(x) = x alpha_b/alpha_a: independent states leave larger offsets.
    assert torch.isfinite(code.offsets).all()


def test_independent_noises_are_independent_and_chained_ones_are_not():
    picture = torch.zeros(4000, 1, dtype=torch.float64)
    model = odediff.Model(lambda x, time: torch.zeros_like(x), TABLE)
    correlations = []
    for record in RECORDERS[1:]:
        code = record(model, picture, **STEPS)
        a, b = (TABLE.node(float(t)) for t in code.times.flip(0)[:2])
        mean = b.alpha / a.alpha * code.x
        state = mean + code.offsets[0]
        correlations.append(float(torch.corrcoef(torch.stack((code.x.ravel(), state.ravel())))[0, 1]))
    assert abs(correlations[0]) < 0.06
    # q(x_b | x_a, x0) with eta = 1 keeps alpha_a sigma_b / (alpha_b sigma_a) of the noise.
    assert correlations[1] == pytest.approx(a.alpha * b.sigma / (b.alpha * a.sigma), abs=0.06)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_chained_states_have_the_deviation_of_their_nodes_at_any_eta(eta):
    model = odediff.Model(lambda x, time: torch.zeros_like(x), TABLE)
    code = odediff.cycle_diffusion(model, torch.zeros(4000, 1, dtype=torch.float64), eta=eta, **STEPS)
    state, nodes = code.x, TABLE.nodes(code.times.flip(0).tolist())
    # The last state is the image itself.
    for (a, b), offset in zip(pairwise(nodes[:-1]), code.offsets[:-1], strict=True):
        state = b.alpha / a.alpha * state + offset
        assert float(state.std()) == pytest.approx(b.sigma, rel=0.05)


@pytest.mark.parametrize("record", RECORDERS[1:], ids=lambda record: record.__name__)
def test_a_recorder_s_noise_belongs_to_seed_and_sample(record):
    whole = record(embedded(), images(), seed=3, **STEPS)
    part = record(embedded().rows(torch.tensor([2, 0])), images()[[2, 0]], seed=3, samples=[2, 0], **STEPS)
    assert torch.equal(part.x, whole.x[[2, 0]])
    assert not torch.equal(record(embedded(), images(), seed=4, **STEPS).x, whole.x)
    with pytest.raises(ValueError, match="eta=0 leaves no noise to record"):
        record(embedded(), images(), eta=0.0, **STEPS)


def test_a_null_condition_of_one_row_serves_any_model():
    class Network(torch.nn.Module):
        def forward(self, x, time, e):
            assert e.shape == x.shape
            return 0.4 * torch.tanh(x) + 0.2 * e

    conditions, null = {"e": torch.zeros(3, 6, dtype=torch.float64)}, {"e": torch.ones(1, 6, dtype=torch.float64)}
    model = odediff.Model(Network(), odediff.VPTable.linear(), conditions=conditions, null=null, guidance=3.0)
    images = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    code = odediff.null_text(model, images, steps=6)
    assert odediff.decode(model, code).isfinite().all()


def test_recorders_want_images_of_real_numbers_and_say_which_were_lost():
    def network(x, time):
        return torch.where((x[:, :1] > 5) & (time < 500)[:, None], float("nan"), 0.1 * x)

    model = odediff.Model(network, odediff.VPTable.linear())
    for record in (odediff.edit_friendly, odediff.cycle_diffusion):
        with pytest.raises(TypeError, match=r"images have dtype torch\.uint8"):
            record(model, torch.zeros(2, 6, dtype=torch.uint8), steps=5)
        code = record(model, torch.tensor([[0.0] * 6, [50.0] * 6]), steps=5)
        assert code.status.tolist() == [solvers.Status.SUCCESS, solvers.Status.NON_FINITE]


class Two(torch.nn.Module):
    """A network with two embeddings of different rank, such as a text and its pooled form."""

    def forward(self, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        moved = 0.2 * text.mean((1, 2))[:, None] + 0.1 * pooled.mean(1)[:, None]
        return 0.4 * torch.tanh(x) + moved.to(x.dtype)


@pytest.mark.parametrize("make", [odediff.null_text, odediff.shared_null])
def test_embeddings_of_any_rank_are_optimised_together(make):
    given = {"text": torch.ones(4, 5, 2), "pooled": torch.ones(4, 6)}
    null = {"text": torch.zeros(1, 5, 2), "pooled": torch.zeros(1, 6)}
    model = odediff.Model(Two(), TABLE, conditions=given, null=null, guidance=3.0)
    together = make(model, images(), iterations=3, **STEPS)
    alone = make(model.rows(torch.tensor([2])), images()[2:3], iterations=3, **STEPS)
    for name, null in together.nulls.items():
        assert null.any()
        torch.testing.assert_close(alone.nulls[name], null[:, 2:3], rtol=0, atol=1e-6)


def test_a_null_with_a_row_for_each_sample_is_where_each_begins():
    model = embedded()
    each = odediff.Model(
        model.network, TABLE, conditions=model.conditions, null={"prompt": torch.zeros(4, 3).double()}, guidance=5.0
    )
    one, other = (odediff.null_text(m, images(), iterations=3, **STEPS) for m in (model, each))
    assert torch.equal(one.nulls["prompt"], other.nulls["prompt"])


@pytest.mark.parametrize("make", [odediff.cycle_diffusion, odediff.edit_friendly])
def test_an_eta_that_cannot_be_is_named(make):
    with pytest.raises(ValueError, match="eta"):
        make(embedded(), images(), eta=2.0, **STEPS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": -3}, "iterations=-3 must be a whole number"),
        ({"iterations": 2.5}, "iterations=2.5 must be a whole number"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 must be a finite number"),
        ({"tolerance": float("nan")}, "tolerance=nan must be a finite number"),
    ],
)
def test_a_descent_that_cannot_be_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        odediff.null_text(embedded(), images(), **STEPS, **settings)
    if "tolerance" not in settings:
        with pytest.raises(ValueError, match=message):
            odediff.shared_null(embedded(), images(), **STEPS, **settings)


def test_direct_inversion_wants_steps_that_stand_alone():
    with pytest.raises(
        ValueError, match=r"^direct_inversion needs a one-step method, not DPMpp; use DDIM\(\), Heun\(\) or RK4\(\)$"
    ):
        odediff.direct_inversion(embedded(), images(), solver=solvers.DPMpp(3), **STEPS)


def test_a_nested_condition_is_no_null_of_a_negative_prompt():
    nested = {"prompt": {"text": torch.zeros(4, 3)}}
    model = odediff.Model(
        lambda x, t, prompt: x, TABLE, conditions=nested, null={"prompt": torch.zeros(1, 3)}, guidance=3
    )
    with pytest.raises(TypeError, match="condition 'prompt' is a dict, but the null of each sample must be a tensor"):
        odediff.negative_prompt(model, images(), **STEPS)


def test_a_negative_prompt_leaves_a_null_alone_that_no_condition_names():
    model, size = embedded(), torch.ones(1, 3, dtype=torch.float64)
    code = odediff.negative_prompt(replace(model, null={**model.null, "size": size}), images(), **STEPS)
    assert torch.equal(code.nulls["size"], size.expand(1, 4, 3))


def test_what_is_no_solver_is_named_by_the_recorders():
    with pytest.raises(TypeError, match="solver='ddim'"):
        odediff.direct_inversion(embedded(), images(), solver="ddim", **STEPS)


def test_a_number_that_is_the_condition_keeps_the_network_s_precision():
    class Sized(torch.nn.Linear):
        def forward(self, x, time, size):
            return torch.tanh(super().forward(x)) * size[:, None]

    network = Sized(5, 5).double().requires_grad_(False)
    model = odediff.Model(network, TABLE, conditions={"size": 0.3}, null={"size": 0.1}, guidance=7.5)
    given = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    free, code = model.condition(guidance=1.0), odediff.negative_prompt(model, given, **STEPS)
    plain = odediff.decode(free, odediff.encode(free, given, solver=DDIM(), **STEPS))
    assert torch.equal(odediff.decode(model, code), plain)


def test_what_is_no_tensor_is_no_null_and_nothing_is_computed():
    def network(x, time, **condition):
        raise AssertionError("the network was asked")

    model = odediff.Model(network, TABLE, conditions={"text": "a cat"}, null={"text": ""}, guidance=3)
    with pytest.raises(TypeError, match="condition 'text' is a str, but the null of each sample must be a tensor"):
        odediff.negative_prompt(model, images(), **STEPS)


EVERY = [
    odediff.null_text,
    odediff.shared_null,
    odediff.negative_prompt,
    odediff.direct_inversion,
    odediff.edit_friendly,
    odediff.cycle_diffusion,
]


@pytest.mark.parametrize("record", EVERY)
def test_images_that_are_not_finite_are_named_before_the_network_is_asked(record):
    def network(x, time, prompt):
        raise AssertionError("the network was asked")

    model = replace(prompted(), network=network)
    given = images()
    given[2, 0] = math.nan
    with pytest.raises(ValueError, match=r"images: samples \[2\] contain infinities or NaNs"):
        record(model, given, **STEPS)


@pytest.mark.parametrize("record", EVERY)
def test_no_image_is_a_batch_too_and_a_code_holds_no_graph(record):
    model = prompted(guidance=torch.full((4,), 3.0, requires_grad=True))
    code = record(model, images().requires_grad_(), **STEPS)
    assert not code.x.requires_grad
    assert record(prompted(batch=0), images(0), **STEPS).x.shape == images(0).shape


@pytest.mark.parametrize("record", EVERY[:2])
def test_where_no_gradient_is_recorded_nothing_can_be_optimised(record):
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        record(prompted(), images(), **STEPS)


# --- null conditions of a grid ------------------------------------------------------------------------------------


def test_some_samples_of_null_conditions_have_their_own():
    nulls = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 2, 3)
    flow = NullConditionedFlow(embedded(batch=2), [0.6, 0.3, 0.1], {"prompt": nulls})
    node, x = flow.node(0.3), images(2)
    assert torch.equal(flow.rows(torch.tensor([1])).predict(node, x[1:]).x0, flow.predict(node, x).x0[1:])


def test_null_conditions_have_no_value_between_their_nodes():
    flow = NullConditionedFlow(embedded(), [0.6, 0.3, 0.1], {"prompt": torch.zeros(1, 4, 3, dtype=torch.float64)})
    with pytest.raises(ValueError, match=r"t=0\.2 is not one of them"):
        flow.predict(flow.node(0.2), images())
