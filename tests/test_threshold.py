import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

import odediff
import solvers
from odediff.threshold import DynamicThreshold, StaticThreshold, threshold_prediction
from solvers import Node, Prediction

PATH = odediff.VPTable.linear()


def batch(seed: int = 0, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(4, 2, 3, 5, generator=generator, dtype=torch.float64)).to(dtype)


def imagen(x0: np.ndarray, quantile: float, limit: float) -> np.ndarray:
    """Saharia et al. 2022, figure A.10, sample by sample, for a limit other than 1 as well."""
    results = []
    for sample in x0:
        s = max(np.quantile(np.abs(sample), quantile), limit)
        results.append(np.clip(sample, -s, s) / s * limit)
    return np.stack(results)


@given(seed=st.integers(0, 2**32 - 1), limit=st.floats(0.1, 5))
@settings(max_examples=25, deadline=None)
def test_static_threshold_is_a_clip(seed, limit):
    x0 = batch(seed)
    np.testing.assert_array_equal(StaticThreshold(limit)(x0).numpy(), np.clip(x0.numpy(), -limit, limit))


@given(
    seed=st.integers(0, 2**32 - 1),
    quantile=st.floats(0.05, 1.0),
    limit=st.floats(0.1, 3),
    scale=st.floats(0.01, 10),
)
@settings(max_examples=50, deadline=None)
def test_dynamic_threshold_is_imagens_formula(seed, quantile, limit, scale):
    x0 = batch(seed, scale)
    expected = imagen(x0.numpy(), quantile, limit)
    np.testing.assert_allclose(DynamicThreshold(quantile, limit)(x0).numpy(), expected, rtol=1e-13, atol=1e-14)


def test_dynamic_threshold_equals_diffusers_where_its_upper_bound_is_lifted():
    # diffusers clamps the quantile to [1, sample_max_value = 1]: by default its dynamic thresholding is static.
    x0 = batch(scale=3.0)
    lifted = DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=math.inf)
    torch.testing.assert_close(DynamicThreshold(0.9)(x0), lifted._threshold_sample(x0), rtol=1e-13, atol=1e-14)
    default = DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9)
    torch.testing.assert_close(StaticThreshold()(x0), default._threshold_sample(x0), rtol=0, atol=0)


@pytest.mark.parametrize("threshold", [StaticThreshold(), DynamicThreshold()])
def test_data_inside_the_limit_stays_as_it_is(threshold):
    x0 = batch(scale=0.2)
    assert float(x0.abs().max()) < 1
    assert torch.equal(threshold(x0), x0)


@pytest.mark.parametrize("threshold", [StaticThreshold(0.7), DynamicThreshold(0.9, 0.7)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_result_lies_within_the_limit_in_every_dtype(threshold, dtype):
    found = threshold(batch(dtype=dtype))
    assert found.dtype == dtype
    assert float(found.abs().max()) <= 0.7 * (1 + torch.finfo(dtype).eps)


def test_a_sample_is_bounded_by_its_own_quantile_alone():
    x0 = batch(dtype=torch.float32)
    together = DynamicThreshold(0.9)(x0)
    for i in range(len(x0)):
        assert torch.equal(DynamicThreshold(0.9)(x0[i : i + 1]), together[i : i + 1])


def test_a_sample_that_is_not_finite_spoils_no_other():
    x0 = batch(dtype=torch.float32)
    spoilt = x0.clone()
    spoilt[1, 0, 0, 0], spoilt[2, 0, 0, 0] = math.nan, math.inf
    found = DynamicThreshold(0.9)(spoilt)
    assert torch.equal(found[[0, 3]], DynamicThreshold(0.9)(x0)[[0, 3]])
    assert found[1].isnan().any()


@pytest.mark.parametrize("threshold", [StaticThreshold(), DynamicThreshold(0.9)])
@pytest.mark.parametrize("t", [0.05, 0.5, 0.98])
def test_noise_follows_so_that_both_parts_still_make_up_the_state(threshold, t):
    node, x0, eps = PATH.node(t), batch(), batch(seed=1, scale=1.0)
    x = node.alpha * x0 + node.sigma * eps
    found = threshold_prediction(threshold, node, Prediction(x0, eps))
    assert torch.equal(found.x0, threshold(x0))
    torch.testing.assert_close(node.alpha * found.x0 + node.sigma * found.eps, x, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.mix(0.3, 0.7), 0.3 * found.x0 + 0.7 * found.eps, rtol=0, atol=1e-12)


def test_noise_stays_as_it_was_at_the_data():
    x0, eps = batch(), batch(seed=1)
    found = threshold_prediction(StaticThreshold(), Node(0.0, 1.0, 0.0), Prediction(x0, eps))
    assert torch.equal(found.eps, eps)
    assert torch.equal(found.x0, x0.clamp(-1, 1))


@pytest.mark.parametrize("threshold", [StaticThreshold(keep_eps=True), DynamicThreshold(0.9, keep_eps=True)])
def test_noise_stays_as_it_was_where_it_is_kept(threshold):
    x0, eps = batch(), batch(seed=1)
    found = threshold_prediction(threshold, PATH.node(0.5), Prediction(x0, eps))
    assert torch.equal(found.eps, eps)
    assert torch.equal(found.x0, threshold(x0)) and not torch.equal(found.x0, x0)


def test_noise_stays_as_it_was_where_nothing_is_cut():
    x0, eps = batch(dtype=torch.float32), batch(seed=1, dtype=torch.float32)
    found = threshold_prediction(StaticThreshold(), PATH.node(0.001), Prediction(x0, eps))
    untouched = x0.abs() <= 1
    assert torch.equal(found.eps[untouched], eps[untouched])


def test_samples_with_times_of_their_own_are_thresholded_as_they_would_be_alone():
    times = np.array([0.0, 0.3, 0.5, 0.98])
    x0, eps = batch(), batch(seed=1, scale=1.0)

    def prediction(t, rows) -> Prediction:
        return threshold_prediction(DynamicThreshold(0.9), PATH.node(t), Prediction(x0[rows], eps[rows]))

    together = prediction(times, slice(None))
    for i, t in enumerate(times.tolist()):
        alone = prediction(t, slice(i, i + 1))
        assert torch.equal(together.x0[i : i + 1], alone.x0)
        torch.testing.assert_close(together.eps[i : i + 1], alone.eps, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("threshold", [StaticThreshold(), DynamicThreshold()])
def test_samples_of_a_thresholded_model_lie_in_the_range_of_images(threshold):
    def network(x, time):
        return 0.2 * x - 0.5  # predicts data far outside

    model, free = (odediff.Model(network, PATH, threshold=bound) for bound in (threshold, None))
    options = {"shape": (3, 1, 4, 4), "solver": solvers.DDIM(), "steps": 5}
    assert float(odediff.sample(free, **options).abs().max()) > 2
    assert float(odediff.sample(model, **options).abs().max()) <= 1 + 1e-6


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StaticThreshold(0.0), "limit=0.0 must be positive"),
        (lambda: StaticThreshold(-1.0), "limit=-1.0"),
        (lambda: StaticThreshold(math.nan), "limit=nan"),
        (lambda: DynamicThreshold(limit=math.inf), "limit=inf"),
        (lambda: DynamicThreshold(quantile=0.0), "quantile=0.0.*Imagen"),
        (lambda: DynamicThreshold(quantile=99.5), "quantile=99.5"),
        (lambda: DynamicThreshold(quantile=math.nan), "quantile=nan"),
    ],
)
def test_a_wrong_setting_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_an_empty_batch_is_thresholded():
    assert DynamicThreshold()(torch.zeros(0, 3, 4)).shape == (0, 3, 4)


def test_a_sample_of_more_components_than_torch_sorts_is_thresholded():
    x0 = torch.linspace(-2, 2, 2**24 + 9).reshape(1, -1)
    found = DynamicThreshold(quantile=0.75)(x0)
    torch.testing.assert_close(found, x0.clamp(-1.5, 1.5) / 1.5, rtol=0, atol=1e-6)
