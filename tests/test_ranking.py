import numpy as np
import pytest
from scipy import stats

from odediff.ranking import rank


def lognormal(count: int, seed: int) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(size=count))


def ranks(errors: dict[str, np.ndarray], **options) -> dict[str, int]:
    return {place.name: place.rank for place in rank(errors, **options)}


def test_a_constant_factor_on_paired_samples_is_always_seen():
    # Unpaired intervals of these medians overlap widely; the ratio of paired ones is 1.02 in every resample.
    easy = lognormal(200, 0)
    places = rank({"worse": 1.02 * easy, "better": easy})
    assert [(place.name, place.rank) for place in places] == [("better", 1), ("worse", 2)]
    assert places[0].high > places[1].low


def test_methods_that_differ_by_chance_share_a_rank_and_the_next_rank_counts_them():
    # Errors of one law; the third is far away.
    base = {"a": lognormal(400, 1), "b": lognormal(400, 2), "c": 5 * lognormal(400, 3), "d": 50 * lognormal(400, 4)}
    assert sorted(ranks(base).values()) == [1, 1, 3, 4]


def test_equal_methods_are_told_apart_about_as_often_as_the_level_says():
    apart = sum(
        max(ranks({"a": lognormal(100, 2 * i), "b": lognormal(100, 2 * i + 1)}, resamples=400).values()) == 2
        for i in range(200)
    )
    # Binomial(200, 0.05), with room for the bootstrap of a median, which is a little off its level.
    assert stats.binom.ppf(1e-4, 200, 0.02) <= apart <= stats.binom.ppf(1 - 1e-4, 200, 0.08)


def test_the_interval_is_the_classical_one_of_a_median():
    # Order statistics of a sample of 1000: ranks 469 and 532 enclose the median with 95 %.
    errors = np.sort(lognormal(1000, 5))
    (place,) = rank({"a": errors}, resamples=4000)
    assert place.value == errors[499]
    for found, expected in ((place.low, 468), (place.high, 531)):
        assert abs(np.searchsorted(errors, found) - expected) <= 4


def test_who_leads_a_rank_is_compared_with_itself():
    errors = lognormal(50, 8)
    _, second = rank({"a": errors, "b": 10 * errors})
    assert (second.rank, second.ratio_low, second.ratio_high) == (2, 1.0, 1.0)


def test_samples_that_failed_are_the_worst_and_make_no_nan():
    errors = lognormal(50, 6)
    lost = np.where(np.arange(50) < 30, np.inf, errors)
    places = rank({"lost": lost, "whole": errors, "lost too": lost})
    assert [(place.name, place.rank) for place in places] == [("whole", 1), ("lost", 2), ("lost too", 2)]
    assert not any(np.isnan(place[2:]).any() for place in places)


def test_one_method_written_in_two_ways_has_one_rank():
    errors = lognormal(50, 7)
    assert ranks({"a": errors, "b": errors * (1 + 1e-12), "c": errors * (1 + 1e-4)}) == {"a": 1, "b": 1, "c": 3}


def test_exact_methods_share_the_first_rank():
    assert ranks({"a": np.zeros(9), "b": np.zeros(9), "c": np.ones(9)}) == {"a": 1, "b": 1, "c": 3}


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ({}, "empty"),
        ({"a": np.ones(3), "b": np.ones(4)}, "same samples"),
        ({"a": np.ones((3, 2))}, "same samples"),
        ({"a": np.array([1.0, np.nan])}, "NaN"),
    ],
)
def test_wrong_errors_are_named(errors, message):
    with pytest.raises(ValueError, match=message):
        rank(errors)
