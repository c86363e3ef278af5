import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odediff import metrics


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(size: int, rank: int, seed: int) -> torch.Tensor:
    factor = normal(size, rank, seed=seed)
    return factor @ factor.T / rank


@pytest.mark.parametrize("size", [1, 2, 7, 96])
def test_frechet_distance_equals_the_formula_by_scipy_sqrtm(size):
    mean1, mean2 = normal(size, seed=0), normal(size, seed=1)
    first, second = covariance(size, 2 * size, seed=2), covariance(size, 3 * size, seed=3)
    root = scipy.linalg.sqrtm((first @ second).numpy()).real
    expected = (mean1 - mean2).square().sum().item() + np.trace(first.numpy() + second.numpy() - 2 * root)
    assert metrics.frechet_distance(mean1, first, mean2, second) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_axis_aligned_gaussians_is_that_of_their_deviations():
    deviation1, deviation2 = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([4.0, 0.5, 3.0])
    mean1, mean2 = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([3.0, 1.0, -2.0])
    expected = (mean1 - mean2).square().sum() + (deviation1 - deviation2).square().sum()
    distance = metrics.frechet_distance(mean1, deviation1.square().diag(), mean2, deviation2.square().diag())
    assert distance == pytest.approx(expected.item(), rel=1e-13)


@given(seed=st.integers(0, 10**6), size=st.integers(1, 12), rank=st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_frechet_distance_is_a_distance_even_where_covariances_are_singular(seed, size, rank):
    laws = [(normal(size, seed=seed + k), covariance(size, rank, seed=seed + 3 + k)) for k in range(3)]
    there, back = metrics.frechet_distance(*laws[0], *laws[1]), metrics.frechet_distance(*laws[1], *laws[0])
    assert there == pytest.approx(back, rel=1e-9)
    assert metrics.frechet_distance(*laws[0], *laws[0]) <= 1e-12 * max(1.0, laws[0][1].trace().item())
    onwards, direct = metrics.frechet_distance(*laws[1], *laws[2]), metrics.frechet_distance(*laws[0], *laws[2])
    assert math.sqrt(direct) <= math.sqrt(there) + math.sqrt(onwards) + 1e-6


def test_frechet_distance_follows_a_rotation_of_the_feature_space():
    turn, _ = torch.linalg.qr(normal(5, 5, seed=0))
    mean1, mean2, first, second = normal(5, seed=1), normal(5, seed=2), covariance(5, 9, 3), covariance(5, 9, 4)
    turned = metrics.frechet_distance(turn @ mean1, turn @ first @ turn.T, turn @ mean2, turn @ second @ turn.T)
    assert turned == pytest.approx(metrics.frechet_distance(mean1, first, mean2, second), rel=1e-10)


@pytest.mark.parametrize("size", [1, 4])
def test_feature_statistics_equal_numpy(size):
    features = normal(50, size, seed=0).float()
    mean, cov = metrics.feature_statistics(features)
    assert mean.dtype == cov.dtype == torch.float64
    np.testing.assert_allclose(mean, features.double().numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(cov, np.cov(features.double().numpy().T).reshape(size, size), rtol=1e-12)


def test_class_accuracy_counts_right_labels_across_batches():
    images = normal(23, 1, 2, 2, seed=0)
    labels = images.flatten(1).argmax(1)
    wrong = labels.clone()
    wrong[[0, 9, 22]] = (wrong[[0, 9, 22]] + 1) % 4
    assert metrics.class_accuracy(images, labels, lambda x: x.flatten(1), batch=5) == 1.0
    assert metrics.class_accuracy(images, wrong, lambda x: x.flatten(1), batch=5) == pytest.approx(20 / 23)


def test_the_round_trip_error_of_numbers_is_their_difference():
    numbers = torch.tensor([0.0, -1.0, 0.5])
    np.testing.assert_allclose(
        metrics.round_trip_error(numbers, numbers + torch.tensor([0.02, 2.0, 0.0])), [0.02, 2, 0], rtol=1e-6
    )
    np.testing.assert_allclose(metrics.psnr(numbers, numbers + 0.02), [40, 40, 40], rtol=1e-5)
    assert metrics.round_trip_error(numbers[:0], numbers[:0]).shape == (0,)
    with pytest.raises(ValueError, match=r"images has shape \(\) and again \(\); pass both in one shape, \(N, ...\)"):
        metrics.round_trip_error(numbers[0], numbers[0])


def test_round_trip_error_and_psnr_of_a_known_offset():
    images = torch.zeros(3, 1, 4, 4)
    again = torch.stack([torch.full((1, 4, 4), 0.02), torch.full((1, 4, 4), -2.0), torch.zeros(1, 4, 4)])
    np.testing.assert_allclose(metrics.round_trip_error(images, again), [0.02, 2, 0], rtol=1e-6)
    np.testing.assert_allclose(metrics.psnr(images, again), [40, 0, math.inf], rtol=1e-6, atol=1e-6)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 40), other=st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_energy_distance_in_one_dimension_equals_scipy(seed, count, other):
    x, y = normal(count, seed=seed), 1.5 * normal(other, seed=seed + 1) + 0.3
    expected = scipy.stats.energy_distance(x.numpy(), y.numpy())
    assert metrics.energy_distance(x, y) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_the_mean_distance_of_many_dimensions_is_that_of_the_definition():
    generator = torch.Generator().manual_seed(3)
    x, y = (100 + torch.randn(count, 40, generator=generator, dtype=torch.float64) for count in (30, 20))
    expected = np.mean([np.linalg.norm(a - b) for a in x.numpy() for b in y.numpy()])
    assert metrics.mean_distance(x, y) == pytest.approx(expected, rel=1e-14)
    assert metrics.energy_distance(x, x) < 1e-4


def test_energy_distance_of_point_masses_in_the_plane():
    x, y = torch.zeros(4, 2), torch.tensor([[3.0, 4.0]])
    assert metrics.energy_distance(x, y) == pytest.approx(math.sqrt(10), rel=1e-15)


def test_energy_distance_does_not_depend_on_how_rows_are_grouped():
    x, y = normal(2500, 2, seed=0), normal(1100, 2, seed=1)
    between, within_x, within_y = ((a[:, None] - b).norm(dim=2).mean() for a, b in ((x, y), (x, x), (y, y)))
    expected = math.sqrt(2 * between - within_x - within_y)
    assert metrics.energy_distance(x, y) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("blocks", [1, 3])
def test_energy_test_gives_uniform_p_values_under_the_null(blocks):
    size = 30 * blocks
    p = [
        metrics.energy_test(*normal(2, size, 2, seed=seed).unbind(), permutations=200, seed=seed, block=30)
        for seed in range(300)
    ]
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_energy_test_agrees_with_counting_permutations():
    x, y = normal(40, 2, seed=0), normal(40, 2, seed=1) + 0.2
    pooled = torch.cat((x, y))
    random = np.random.default_rng(7)

    def squared(order: np.ndarray) -> float:
        return metrics.energy_distance(pooled[order[:40]], pooled[order[40:]]) ** 2

    observed = squared(np.arange(80))
    counted = np.mean([squared(random.permutation(80)) >= observed for _ in range(2000)])
    assert 0.02 < counted < 0.9
    assert metrics.energy_test(x, y, permutations=2000, block=40) == pytest.approx(counted, rel=0.25, abs=0.02)


def test_energy_test_has_power_beyond_the_number_of_permutations():
    x, y = normal(2, 2000, 2, seed=0).unbind()
    assert metrics.energy_test(x, y, permutations=100, block=200) > 0.01
    assert metrics.energy_test(x, 1.5 * y, permutations=100, block=200) < 1e-6
    assert metrics.energy_test(x, y + 0.3, permutations=100, block=200) < 1e-6


def test_energy_test_is_reproducible_and_keeps_the_global_generators():
    x, y = normal(2, 100, 2, seed=0).unbind()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = metrics.energy_test(x, y, permutations=50, seed=3, block=50)
    assert metrics.energy_test(x, y, permutations=50, seed=3, block=50) == first
    assert metrics.energy_test(x, y, permutations=50, seed=4, block=50) != first
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_holm_on_a_worked_example():
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([0.7, 0.9]) == [1.0, 1.0]
    assert metrics.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_exactly_what_the_step_down_procedure_rejects(p):
    adjusted = metrics.holm(p)
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
            if p[index] * (len(p) - rank) > level:
                break
            rejected.add(index)
        assert {i for i, value in enumerate(adjusted) if value <= level} == rejected


SQUARE, LINE = torch.eye(2), torch.zeros(2)
BAD = torch.tensor([[0.0, math.nan], [1.0, 1.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.feature_statistics(torch.zeros(1, 3)), r"features .*\(1, 3\)"),
        (lambda: metrics.feature_statistics(BAD), "features holds 1 values that are not finite"),
        (lambda: metrics.frechet_distance(LINE, SQUARE, LINE, torch.eye(3)), r"\(3, 3\)"),
        (lambda: metrics.frechet_distance(LINE, SQUARE, LINE, BAD), "covariance2 holds 1"),
        (lambda: metrics.class_accuracy(torch.zeros(3, 2), torch.zeros(2), lambda x: x), r"labels .*\(2,\)"),
        (lambda: metrics.class_accuracy(torch.zeros(0, 2), torch.zeros(0), lambda x: x), r"labels .*\(0,\)"),
        (lambda: metrics.round_trip_error(torch.zeros(3, 2), torch.zeros(2, 2)), r"again .*\(2, 2\)"),
        (lambda: metrics.psnr(torch.zeros(2, 2), BAD), "again holds 1"),
        (lambda: metrics.energy_distance(torch.zeros(3, 2), torch.zeros(3, 1)), r"y \(3, 1\)"),
        (lambda: metrics.energy_distance(torch.zeros(0, 2), torch.zeros(3, 2)), r"x \(0, 2\)"),
        (lambda: metrics.energy_test(torch.zeros(9, 2), torch.zeros(9, 2), block=4), "block=4"),
        (lambda: metrics.energy_test(torch.zeros(8, 2), torch.zeros(4, 2), block=4), r"y \(4, 2\)"),
        (lambda: metrics.energy_test(torch.zeros(4, 2), torch.zeros(4, 2), 1, block=4), "permutations=1"),
        (lambda: metrics.energy_test(torch.zeros(4, 2), torch.zeros(4, 2), block=4), "one point"),
        (lambda: metrics.holm([0.2, 1.5]), "1.5"),
        (lambda: metrics.holm([math.nan]), "nan"),
    ],
)
def test_bad_input_is_a_value_error_that_names_it(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_noise_with_one_row_or_one_column_has_the_autocorrelation_along_the_other():
    noise = normal(40, 2, 1, 30, seed=0)
    line = noise - noise.mean()
    expected = (line[..., 1:] * line[..., :-1]).mean() / line.square().mean()
    for image in (noise, noise.transpose(2, 3)):
        assert metrics.gaussianity(image)["autocorrelation"] == pytest.approx(float(expected), rel=1e-12)
