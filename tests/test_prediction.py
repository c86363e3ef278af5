import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import odediff
from odediff.prediction import FORMS, network_output, predict, require_information
from solvers import Node, Prediction

PATHS = {
    "vp_linear": odediff.VPLinear(),
    "vp_cosine": odediff.VPCosine(),
    "vp_table": odediff.VPTable.linear(),
    "sub_vp": odediff.SubVP(),
    "ve": odediff.VE(),
    "rectified_flow": odediff.RectifiedFlow(shift=3.0),
}

# The definitions, from the papers; deliberately not the library's `network_output`.
DEFINITIONS = {
    "epsilon": lambda alpha, sigma, x0, eps: eps,
    "x0": lambda alpha, sigma, x0, eps: x0,
    "v": lambda alpha, sigma, x0, eps: alpha * eps - sigma * x0,
    "flow": lambda alpha, sigma, x0, eps: eps - x0,
    "score": lambda alpha, sigma, x0, eps: -eps / sigma,
}

NOISY_END = Node(1.0, 0.0, 1.0)
DATA_END = Node(0.0, 1.0, 0.0)


def parts(seed: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 3, 2, 4, generator=generator, dtype=torch.float64).to(dtype)
    return x0, eps


def inside(path: odediff.Schedule, share: float) -> float:
    """A time between the two ends that a sampler visits; below the very start, where a flow has alpha = 0."""
    return path.end + share * 0.999 * (path.start - path.end)


def test_every_form_has_a_definition_here():
    assert set(DEFINITIONS) == set(FORMS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@given(share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_predict_recovers_data_and_noise_from_the_form_it_is_told(form, path, share, seed):
    node = path.node(inside(path, share))
    x0, eps = parts(seed)
    x = node.alpha * x0 + node.sigma * eps
    output = DEFINITIONS[form](node.alpha, node.sigma, x0, eps)
    found = predict(form, node, x, output)
    # Recovering the smaller part of the state costs digits in proportion.
    scale = 1e-15 * (10 + 10 * max(node.s, 1 / node.s)) * max(1.0, float(x.abs().max()))
    torch.testing.assert_close(found.x0, x0, rtol=0, atol=scale)
    torch.testing.assert_close(found.eps, eps, rtol=0, atol=scale)


@pytest.mark.parametrize("form", FORMS)
@given(path=st.sampled_from(list(PATHS.values())), share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_native_is_the_definition_and_the_inverse_of_predict(form, path, share, seed):
    node = path.node(inside(path, share))
    x0, eps = parts(seed)
    output = network_output(form, node, Prediction(x0, eps))
    torch.testing.assert_close(output, DEFINITIONS[form](node.alpha, node.sigma, x0, eps), rtol=1e-14, atol=1e-14)
    found = predict(form, node, node.alpha * x0 + node.sigma * eps, output)
    again = network_output(form, node, Prediction(found.x0, found.eps))
    scale = 1e-14 * max(node.s, 1 / node.s) * max(1.0, float(output.abs().max()))
    torch.testing.assert_close(again, output, rtol=0, atol=scale)


@pytest.mark.parametrize("form", FORMS)
@given(
    path=st.sampled_from(list(PATHS.values())),
    share=st.floats(0, 1),
    data=st.floats(-100, 100),
    noise=st.floats(-100, 100),
)
@settings(max_examples=40, deadline=None)
def test_mix_is_the_combination_of_the_two_parts(form, path, share, data, noise):
    node = path.node(inside(path, share))
    x, output = parts(seed=1)
    found = predict(form, node, x, output)
    apart = data * found.x0 + noise * found.eps
    # mix may cancel before it multiplies; only the size of the terms bounds the difference.
    scale = 1e-15 * (abs(data) * found.x0.abs().max() + abs(noise) * found.eps.abs().max() + 1e-300)
    scale *= 10 * max(1.0, node.s if form in ("epsilon", "score") else 1 / node.s if form == "x0" else 1.0)
    torch.testing.assert_close(found.mix(data, noise), apart, rtol=0, atol=float(scale))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_node_for_every_sample_gives_what_each_sample_gets_alone(form, dtype):
    path = PATHS["vp_linear"]
    times = np.array([0.05, 0.4, 0.93])
    x, output = parts(seed=2, dtype=dtype)
    together = predict(form, path.node(times), x, output)
    data, noise = np.array([0.3, -1.0, 2.0]), np.array([1.0, 0.5, -0.25])
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-14}[dtype]
    for i, t in enumerate(times):
        alone = predict(form, path.node(float(t)), x[i : i + 1], output[i : i + 1])
        for one, all_of_them in (
            (alone.x0, together.x0),
            (alone.eps, together.eps),
            (alone.mix(float(data[i]), float(noise[i])), together.mix(data, noise)),
        ):
            assert all_of_them.dtype == dtype
            torch.testing.assert_close(all_of_them[i : i + 1], one, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_predictions_keep_the_dtype_of_the_state(form):
    x, output = parts(seed=3, dtype=torch.float32)
    found = predict(form, PATHS["vp_linear"].node(0.5), x, output)
    assert found.x0.dtype == found.eps.dtype == found.mix(0.3, 0.7).dtype == torch.float32


@pytest.mark.parametrize("form", ["v", "flow", "x0"])
def test_pure_noise_shows_the_noise_and_the_form_shows_the_data(form):
    x0, eps = parts(seed=4)
    require_information(form, NOISY_END)
    found = predict(form, NOISY_END, eps, DEFINITIONS[form](0.0, 1.0, x0, eps))
    torch.testing.assert_close(found.x0, x0, rtol=0, atol=1e-15)
    torch.testing.assert_close(found.eps, eps, rtol=0, atol=1e-15)


@pytest.mark.parametrize("form", ["v", "flow", "epsilon"])
def test_pure_data_shows_the_data_and_the_form_shows_the_noise(form):
    x0, eps = parts(seed=5)
    require_information(form, DATA_END)
    found = predict(form, DATA_END, x0, DEFINITIONS[form](1.0, 0.0, x0, eps))
    torch.testing.assert_close(found.x0, x0, rtol=0, atol=1e-15)
    torch.testing.assert_close(found.eps, eps, rtol=0, atol=1e-15)


@pytest.mark.parametrize("form", ["epsilon", "score"])
@pytest.mark.parametrize(
    "node",
    [
        NOISY_END,
        Node(1.0, 6e-17, 1.0),  # where a cosine written as cos(u) ends
        Node(np.array([0.5, 1.0]), np.array([0.8, 0.0]), np.array([0.6, 1.0])),
    ],
    ids=["zero", "round-off", "one row of two"],
)
def test_a_form_that_is_empty_at_pure_noise_is_refused_there(form, node):
    with pytest.raises(ValueError, match=rf'prediction="{form}".*alpha = 0.*"v", "flow" or "x0"'):
        require_information(form, node)


@pytest.mark.parametrize(
    "node",
    [DATA_END, Node(np.array([0.0, 0.5]), np.array([1.0, 0.8]), np.array([0.0, 0.6]))],
    ids=["zero", "one row of two"],
)
def test_x0_prediction_is_refused_at_the_data(node):
    with pytest.raises(ValueError, match=r'prediction="x0".*sigma = 0.*"v", "flow" or "epsilon"'):
        require_information("x0", node)


def test_the_score_of_a_perfect_network_cannot_be_told_at_the_data():
    x0, eps = parts(seed=7)
    with pytest.raises(ValueError, match=r'prediction="score".*sigma = 0.*"epsilon"'):
        network_output("score", DATA_END, Prediction(x0, eps))


@pytest.mark.parametrize("form", FORMS)
def test_no_form_is_refused_where_sampling_starts_and_ends_on_a_table(form):
    path = PATHS["vp_table"]
    for t in (path.start, path.end):
        require_information(form, path.node(t))


def test_forms_agree_on_the_published_relation_of_v_and_epsilon():
    # Salimans & Ho 2022: with phi = atan2(sigma, alpha) on a VP path, eps = sin(phi) x + cos(phi) v.
    node = PATHS["vp_cosine"].node(0.37)
    x, v = parts(seed=6)
    phi = math.atan2(node.sigma, node.alpha)
    torch.testing.assert_close(predict("v", node, x, v).eps, math.sin(phi) * x + math.cos(phi) * v, rtol=0, atol=1e-14)
    torch.testing.assert_close(predict("v", node, x, v).x0, math.cos(phi) * x - math.sin(phi) * v, rtol=0, atol=1e-14)
