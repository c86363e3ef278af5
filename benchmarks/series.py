"""From the table's rows to curves, one for every method in its best setting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.collect import label
from odediff.ranking import Ranked, rank

Row = Mapping[str, Any]
SCORES = ("error_median", "sliced_wasserstein", "kernel_distance")
"""The columns by which settings are chosen; the first that a method has counts."""
BASELINE = "ddim"
"""The best-known method, which is always shown."""
SMALLEST = 1e-12
"""The value below which values count as equal, since logarithms need a floor and unbiased distances may be negative."""


class Name(NamedTuple):
    """A method in one setting."""

    source: str
    method: str
    grid: str
    closing: str

    @property
    def ours(self) -> bool:
        """Whether it is a solver of this package."""
        return self.source == "odediff"

    @property
    def short(self) -> str:
        """The method without the words that many schedulers' names share."""
        algorithm, *setting = self.method.split(" ", 1)
        for word in ("Multistep", "Singlestep", "Discrete", "Solver"):
            algorithm = algorithm.removesuffix(word) if algorithm != word else algorithm
        return " ".join([algorithm, *setting])

    @property
    def setting(self) -> str:
        """The grid, and the source and the closing where they are not the usual ones."""
        parts = ["" if self.source in ("odediff", "diffusers") else self.source, self.grid]
        parts += [f"closing {self.closing}"] if self.closing not in ("denoise", "its own") else []
        return " · ".join(part for part in parts if part)


class Point(NamedTuple):
    """A method at one cost: calls and seconds per sample, a value and the ends of its band."""

    calls: float
    seconds: float
    value: float
    low: float
    high: float
    nfe: int | None


class Curve(NamedTuple):
    """A method's points in the order of their calls."""

    name: Name
    points: tuple[Point, ...]

    def at(self, nfe: int) -> Point | None:
        """The point under the ceiling ``nfe``."""
        return next((point for point in self.points if point.nfe == nfe), None)


class Problem(NamedTuple):
    """A problem and its rows."""

    name: str
    title: str
    family: str
    purpose: str
    rows: list[Row]


def problems(rows: Iterable[Row]) -> list[Problem]:
    """The problems in the order of the table, with the rows that have results."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["status"] == "ok":
            found.setdefault(row["problem"], []).append(row)
    return [Problem(name, title(some[0]), some[0]["family"], some[0]["purpose"], some) for name, some in found.items()]


def title(row: Row) -> str:
    """The title of a row's problem."""
    name = row["problem"]
    if row["family"] == "network":
        return f"Network, guidance {row['guidance']:g}"
    if row["family"] == "kernel":
        return "Kernel density over images"
    ending = ", held out" if name.endswith("_held_out") else ""
    return f"{name.split('_')[0].capitalize()} in {row['dimension']} dimensions{ending}"


def name_of(row: Row) -> Name:
    """The row's method and setting."""
    return Name(row["source"], row["method"], row["grid"], str(row["closing"]))


def best_settings(problem: Problem) -> list[Row]:
    """The rows of every method in its best grid and closing on this problem; ours and the peers' are chosen alike.

    The best has the lowest mean logarithm of the score over all ceilings and seeds, among the settings that have the
    most of them.
    """
    scores: dict[tuple[str, str], dict[Name, list[float]]] = {}
    for row in problem.rows:
        if row.get("kind", "flow") == "flow":
            value = next((row[score] for score in SCORES if row.get(score) is not None), math.inf)
            name = name_of(row)
            here = scores.setdefault((name.source, name.method), {}).setdefault(name, [])
            here.append(math.log(max(value, SMALLEST)))
    chosen = set()
    for settings in scores.values():
        most = max(map(len, settings.values()))
        whole = [name for name, values in settings.items() if len(values) == most]
        chosen.add(min(whole, key=lambda name: sum(settings[name])))
    return [row for row in problem.rows if row.get("kind", "flow") == "flow" and name_of(row) in chosen]


def error_curves(chosen: Sequence[Row], places: Mapping[int, Sequence[Ranked]]) -> list[Curve]:
    """Median errors over the samples of all seeds, with their bootstrap intervals; best first, adaptive methods last.

    ``places`` are the ranks of those rows by ceiling, from `collect.ranks`.
    """
    points: dict[Name, list[Point]] = {}
    for name, here in _grouped(row for row in chosen if row.get("errors") is not None).items():
        for (nfe, _), same in _by_cost(here).items():
            found = places.get(nfe, ()) if nfe is not None else rank({label(same[0]): _pooled(same)})
            for place in found:
                if place.name == label(same[0]):
                    points.setdefault(name, []).append(_point(same, place.value, place.low, place.high, nfe))
    return by_quality([_curve(name, some) for name, some in points.items()])


def mean_curves(rows: Iterable[Row], column: str) -> list[Curve]:
    """A column's means over the seeds, with their range as the band; best first if low is good."""
    points: dict[Name, list[Point]] = {}
    for name, here in _grouped(row for row in rows if row.get(column) is not None).items():
        for (nfe, _), same in _by_cost(here).items():
            values = [row[column] for row in same]
            points.setdefault(name, []).append(_point(same, sum(values) / len(values), min(values), max(values), nfe))
    return by_quality([_curve(name, some) for name, some in points.items()])


def by_quality(curves: Sequence[Curve]) -> list[Curve]:
    """The curves in the order of `excess`; methods without a ceiling follow in their given order."""
    far = excess(curves)
    return sorted(curves, key=lambda curve: far.get(curve.name, math.inf))


def excess(curves: Sequence[Curve]) -> dict[Name, float]:
    """The mean logarithm of a method's ratio to the best under the same ceiling, over its ceilings."""
    best: dict[int, float] = {}
    for point in (point for curve in curves for point in curve.points):
        if point.nfe is not None:
            best[point.nfe] = min(best.get(point.nfe, math.inf), point.value)
    far = {}
    for curve in curves:
        logs = [_log_ratio(point.value, best[point.nfe]) for point in curve.points if point.nfe is not None]
        if logs:
            far[curve.name] = sum(logs) / len(logs)
    return far


def floor(rows: Iterable[Row], column: str) -> float | None:
    """The largest value of a column that hardly differs between rows; None if no row has one."""
    return max((row[column] for row in rows if row.get(column) is not None), default=None)


def featured(curves: Iterable[Sequence[Curve]], colours: Sequence[str], always: str = BASELINE) -> dict[str, str]:
    """The colours of our best methods over all problems, and of the method ``always``."""
    total: dict[str, list[float]] = {}
    for some in curves:
        for name, far in excess(some).items():
            if name.ours:
                total.setdefault(name.method, []).append(far)
    most = max(map(len, total.values()), default=0)
    whole = [method for method, values in total.items() if len(values) == most]
    order = sorted(whole, key=lambda method: sum(total[method]))
    kept = order[: len(colours)]
    if always in order and always not in kept:
        kept[-1] = always
    return dict(zip(kept, colours, strict=False))


def shown_ceilings(rows: Iterable[Row], wanted: Sequence[int], fewest: int = 2) -> list[int]:
    """The wanted ceilings that the table has; if it has fewer than ``fewest``, the first of its own."""
    known = sorted({row["nfe"] for row in rows if row["nfe"] is not None})
    kept = [nfe for nfe in wanted if nfe in known]
    return kept if len(kept) >= min(fewest, len(known)) else known[: len(wanted)]


def _grouped(rows: Iterable[Row]) -> dict[Name, list[Row]]:
    groups: dict[Name, list[Row]] = {}
    for row in rows:
        groups.setdefault(name_of(row), []).append(row)
    return groups


def _by_cost(rows: Iterable[Row]) -> dict[tuple[int | None, float | None], list[Row]]:
    """The seeds of every ceiling or tolerance."""
    groups: dict[tuple[int | None, float | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["nfe"], row["tolerance"]), []).append(row)
    return groups


def _pooled(rows: Iterable[Row]) -> np.ndarray:
    return np.concatenate([np.asarray(row["errors"], dtype=np.float64) for row in rows])


def _point(rows: Sequence[Row], value: float, low: float, high: float, nfe: int | None) -> Point:
    calls = sum(row["calls"] for row in rows) / len(rows)
    seconds = sum(row["seconds"] / row["samples"] for row in rows) / len(rows)
    return Point(calls, seconds, value, low, high, nfe)


def _curve(name: Name, points: Iterable[Point]) -> Curve:
    return Curve(name, tuple(sorted(points, key=lambda point: point.calls)))


def _log_ratio(value: float, best: float) -> float:
    if math.isinf(value):
        return math.inf
    return math.log(max(value, SMALLEST) / max(best, SMALLEST))
