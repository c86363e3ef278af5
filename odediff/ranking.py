"""Which method is better, and whether by more than chance: a paired bootstrap, and shared ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95
SAME = 1e-6
"""The relative difference below which medians count as equal: one method written in two ways keeps one rank."""


class Ranked(NamedTuple):
    """One method's place.

    ``low`` and ``high`` enclose its statistic, ``ratio_low`` and ``ratio_high`` its ratio to the best method of the
    same rank, which is listed first.
    """

    name: str
    rank: int
    value: float
    low: float
    high: float
    ratio_low: float
    ratio_high: float


def rank(
    errors: Mapping[str, np.ndarray], resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = 0
) -> list[Ranked]:
    """Rank methods by the median of their samples' errors, best first; methods that cannot be told apart share a rank.

    ``errors`` holds one array ``(B,)`` for each method, of the same B samples: sample i started from the same noise
    everywhere. The bootstrap (Efron & Tibshirani 1993, chapter 13: percentile intervals) draws the same samples for all
    methods, so that the difficulty of a sample cancels in a comparison.

    The best method leads rank 1. In the order of the medians, a method shares the rank of the leader if the interval of
    the ratio of their medians contains 1; otherwise it leads the next rank, numbered by its place (1, 1, 3, ...).

    Raises:
        ValueError: no method, no samples, arrays of different lengths, or a NaN.
    """
    names = list(errors)
    if not names:
        raise ValueError("errors is empty; pass at least one method")
    table = [np.asarray(errors[name], dtype=np.float64) for name in names]
    if any(row.ndim != 1 or row.shape != table[0].shape or len(row) == 0 for row in table):
        shapes = {name: np.shape(errors[name]) for name in names}
        raise ValueError(f"errors have shapes {shapes}; pass one error for each of the same samples, for every method")
    if any(np.isnan(row).any() for row in table):
        raise ValueError("errors contain a NaN; give a failed sample an infinite error")
    medians = lower_median(np.stack(table))
    drawn = np.random.default_rng(seed).integers(len(table[0]), size=(resamples, len(table[0])))
    # One buffer for all methods: allocating this much memory takes longer than the work done in it.
    buffer = np.empty(drawn.shape)
    samples = np.stack([lower_median(np.take(row, drawn, out=buffer, mode="clip")) for row in table])
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    order = np.argsort(medians, kind="stable")
    places: list[Ranked] = []
    leader, current = order[0], 1
    for place, i in enumerate(order, start=1):
        low, high = np.quantile(_ratio(samples[i], samples[leader]), tails, method="nearest")
        if not low <= 1 + SAME or not high >= 1 - SAME:
            leader, current = i, place
            low = high = 1.0
        own = np.quantile(samples[i], tails, method="nearest")
        places.append(Ranked(names[i], current, *map(float, (medians[i], *own, low, high))))
    return places


def lower_median(rows: np.ndarray) -> np.ndarray:
    """The lower median of each row, never the mean of a finite and an infinite error; reorders the rows."""
    middle = (rows.shape[-1] - 1) // 2
    rows.partition(middle, axis=-1)
    return rows[..., middle].copy()


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The ratio of two lists of medians; 1 where both are infinite or both are zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = above / below
    return np.where(above == below, 1.0, ratio)
