import math

import numpy as np
import pytest
import torch
from scipy import stats

from odediff import metrics
from odediff.accuracy import accuracy, sample_errors
from odediff.quality import BLOCK, kernel_distance, memorised, precision_recall, sliced_wasserstein


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Sliced Wasserstein -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 8), (1, 6)])
def test_on_the_line_it_is_the_wasserstein_distance_of_the_quantiles(n, m):
    x, y = normal(n, 1), 2 * normal(m, 1, seed=1) + 1
    # Repeating the points n m times in all makes equal sizes, where sorting is the optimal transport.
    long_x, long_y = (np.sort(np.repeat(p.numpy().ravel(), k)) for p, k in ((x, m), (y, n)))
    expected = math.sqrt(((long_x - long_y) ** 2).mean())
    assert sliced_wasserstein(x, y, projections=3) == pytest.approx(expected, rel=1e-12)


def test_of_a_shift_it_is_the_mean_squared_projection_of_the_shift():
    x, shift = normal(50, 6), normal(6, seed=2)
    # E (theta . v)^2 = |v|^2 / d on the sphere.
    expected = float(shift.norm()) / math.sqrt(6)
    assert sliced_wasserstein(x, x + shift, projections=20_000) == pytest.approx(expected, rel=0.02)


# --- Kernel distance ----------------------------------------------------------------------------------------------


def test_kernel_distance_is_that_of_torchmetrics():
    poly_mmd = pytest.importorskip("torchmetrics.image.kid").poly_mmd
    x, y = normal(40, 5), normal(40, 5, seed=1) + 0.3
    expected = float(poly_mmd(x, y, degree=3, gamma=None, coef=1.0))
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_of_unequal_numbers_is_the_literal_double_sum():
    x, y = normal(4, 3).numpy(), normal(6, 3, seed=1).numpy()

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    within = [np.mean([k(p[i], p[j]) for i in range(len(p)) for j in range(len(p)) if i != j]) for p in (x, y)]
    expected = sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_is_unbiased():
    values = [kernel_distance(normal(10, 4, seed=2 * i), normal(30, 4, seed=2 * i + 1)) for i in range(400)]
    assert abs(stats.ttest_1samp(values, 0.0).statistic) < 3.5


def test_frechet_distance_is_that_of_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Features(torch.nn.Module):
        num_features = 5

        def forward(self, x):
            return x.double().flatten(1)

    measure = fid.FrechetInceptionDistance(feature=Features())
    x, y = 100 * normal(30, 5), 80 * normal(40, 5, seed=1) + 7
    for points, real in ((x, True), (y, False)):
        measure.update(points.reshape(-1, 5, 1, 1).float(), real=real)
    measure.set_dtype(torch.float64)
    x, y = x.float(), y.float()
    found = metrics.frechet_distance(*metrics.feature_statistics(x), *metrics.feature_statistics(y))
    assert found == pytest.approx(float(measure.compute()), rel=1e-4)


# --- Precision, recall, memorisation ------------------------------------------------------------------------------


def test_precision_and_recall_are_the_literal_definition():
    samples, data = normal(25, 2), normal(30, 2, seed=1) * 0.7 + 0.2

    def covered(points, centres, k=3):
        radii = [np.sort(np.linalg.norm(centres - c, axis=1))[k] for c in centres]
        inside = [any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)) for p in points]
        return np.mean(inside)

    found = precision_recall(samples, data)
    assert found.precision == covered(samples.numpy(), data.numpy())
    assert found.recall == covered(data.numpy(), samples.numpy())
    assert 0 < found.recall < 1


def test_samples_of_one_mode_are_precise_and_recall_it_alone():
    data = torch.cat((normal(200, 3), normal(200, 3, seed=1) + 50))
    found = precision_recall(normal(200, 3, seed=2), data)
    assert found.precision > 0.9
    assert 0.4 < found.recall <= 0.5


def test_points_on_one_place_cover_it():
    place = torch.zeros(6, 2)
    assert precision_recall(place, place) == (1.0, 1.0)


def test_copies_are_memorised_and_fresh_samples_about_half_of_the_time():
    training = normal(400, 3)
    assert memorised(training[:50] + 1e-9, training) == 1.0
    # For fresh x, nearest y: by symmetry the nearer of "x to y" and "y's other neighbour to y" is either.
    assert memorised(normal(2000, 3, seed=1), training) == pytest.approx(0.5, abs=0.1)
    assert memorised(training[:50] + 100, training) == 0.0


def test_memorisation_is_the_literal_definition():
    samples, training = normal(20, 2), normal(30, 2, seed=1)
    count = 0
    for x in samples.numpy():
        distances = np.linalg.norm(training.numpy() - x, axis=1)
        own = np.linalg.norm(training.numpy() - training.numpy()[distances.argmin()], axis=1)
        count += distances.min() < np.sort(own)[1]
    assert memorised(samples, training) == count / 20


def test_more_samples_than_a_block_are_all_counted():
    samples = normal(BLOCK + 1, 2)
    assert memorised(samples, samples) == 1.0


# --- Errors of samples --------------------------------------------------------------------------------------------


def test_errors_are_in_units_of_the_datas_deviation_and_failures_infinite():
    exact = torch.zeros(4, 2, 3)
    x = torch.stack([torch.full((2, 3), v) for v in (0.5, -1.0, math.nan, math.inf)])
    assert sample_errors(x, exact, deviation=0.25).tolist() == [2.0, 4.0, math.inf, math.inf]


def test_the_summary_counts_failures_and_switched_modes():
    errors = torch.tensor([0.1, 0.2, 0.3, 0.4, math.inf], dtype=torch.float64)
    found = accuracy(errors, torch.tensor([0, 1, 2, 0, 4]), torch.tensor([0, 1, 2, 3, 4]))
    assert found.rms == math.inf
    assert (found.median, found.p90) == (pytest.approx(0.3), pytest.approx(0.4))
    assert found.switched == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_errors(torch.zeros(2, 3), torch.zeros(2, 4), 1.0), "shape"),
        (lambda: sample_errors(torch.zeros(2, 3), torch.zeros(2, 3), 0.0), "deviation"),
        (lambda: sliced_wasserstein(torch.zeros(2, 3), torch.zeros(2, 4)), "pass"),
        (lambda: sliced_wasserstein(torch.zeros(2, 3), torch.zeros(2, 3), projections=0), "projections"),
        (lambda: kernel_distance(torch.zeros(1, 3), torch.zeros(2, 3)), "at least 2"),
        (lambda: precision_recall(torch.zeros(3, 3), torch.zeros(9, 3)), "neighbours"),
        (lambda: memorised(torch.zeros(3, 3), torch.zeros(1, 3)), "at least 2"),
        (lambda: memorised(torch.full((3, 3), math.nan), torch.zeros(4, 3)), "finite"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_error_of_numbers_is_their_difference_in_units_of_the_deviation():
    assert sample_errors(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.0]), 0.25).tolist() == [2.0, 0.0]
