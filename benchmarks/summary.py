"""The table's content in plain words and small tables: which methods are first, and by what factor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.collect import label
from benchmarks.figures import number
from benchmarks.series import Name, Row, name_of
from odediff.ranking import Ranked

RANKED = 10
"""The number of places under every ceiling whose methods the rank tables show."""


class Verdict(NamedTuple):
    """The first ranks of one problem and ceiling.

    ``factor`` is the best peer's median error over our best method's; None where one of the two is missing or failed.
    """

    leaders: tuple[Name, ...]
    value: float
    ours: bool
    peers: bool
    factor: float | None


class Place(NamedTuple):
    """One method under one ceiling, as a rank table shows it."""

    rank: int
    shared: bool
    value: float
    low: float
    high: float


class Standing(NamedTuple):
    """One method's places by ceiling; None where it has none."""

    name: Name
    places: tuple[Place | None, ...]


def names(rows: Sequence[Row]) -> dict[str, Name]:
    """From `collect.label` to the method."""
    return {label(row): name_of(row) for row in rows}


def verdict(places: Sequence[Ranked], known: Mapping[str, Name]) -> Verdict:
    """The leaders among places ordered from the best."""
    leaders = tuple(known[place.name] for place in places if place.rank == 1)
    best = {side: next((p.value for p in places if known[p.name].ours == side), math.inf) for side in (True, False)}
    whole = all(math.isfinite(value) and value > 0 for value in best.values())
    return Verdict(
        leaders,
        places[0].value,
        any(name.ours for name in leaders),
        any(not name.ours for name in leaders),
        best[False] / best[True] if whole else None,
    )


def standings(
    ranked: Mapping[int, Sequence[Ranked]], known: Mapping[str, Name], ceilings: Sequence[int]
) -> list[Standing]:
    """The methods that are among the first `RANKED` under some ceiling, ordered by their mean rank there."""
    found: dict[str, dict[int, Place]] = {}
    for nfe in ceilings:
        places = ranked.get(nfe, ())
        ranks = [place.rank for place in places]
        for place in places:
            here = Place(place.rank, ranks.count(place.rank) > 1, place.value, place.low, place.high)
            found.setdefault(place.name, {})[nfe] = here
    kept = dict.fromkeys(place.name for nfe in ceilings for place in ranked.get(nfe, ())[:RANKED])
    order = sorted(kept, key=lambda name: _mean([float(place.rank) for place in found[name].values()]))
    return [Standing(known[name], tuple(found[name].get(nfe) for nfe in ceilings)) for name in order]


def closest(places: Sequence[Sequence[Ranked]], known: Sequence[Mapping[str, Name]], ours: bool) -> tuple[str, float]:
    """Our method, or the peers', that is closest to the first of every problem, and its mean ratio to the first.

    The mean is geometric, over problems under one ceiling; only methods with a place on all of them are considered. An
    empty name means that there is none.
    """
    logs: dict[str, list[float]] = {}
    for ranked, who in zip(places, known, strict=True):
        for place in ranked:
            if who[place.name].ours == ours and place.value > 0:
                logs.setdefault(who[place.name].short, []).append(math.log(place.value / ranked[0].value))
    means = {name: _mean(values) for name, values in logs.items() if len(values) == len(places)}
    finite = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    name = min(finite, key=finite.__getitem__, default="")
    return name, math.exp(finite[name]) if name else math.inf


def sentence(verdicts: Sequence[Verdict], mine: tuple[str, float], others: tuple[str, float]) -> str:
    """The summary of one ceiling; ``mine`` and ``others`` are the results of `closest` for ours and for the peers."""
    parts = []
    (first, best), (second, worse) = (mine, others) if mine[1] <= others[1] else (others, mine)
    whose = {mine[0]: "odediff", others[0]: "the peers"}
    if first:
        alike = round(best, 2) == 1
        how = "the smallest" if alike else f"{times(best)} the smallest"
        where = "" if len(verdicts) == 1 else " on every problem" if alike else " in the mean"
        parts.append(f"{first} of {whose[first]} is best: its error is {how}{where}")
        if second:
            parts[0] += f"; the best of {whose[second]} is {second}, with {times(worse)} the smallest"
        parts[0] += "."
    shared = sum(v.ours and v.peers for v in verdicts)
    if mine[0] and others[0] and len(verdicts) > 1:
        alone = sum(v.ours and not v.peers for v in verdicts)
        counts = ((alone, "odediff's"), (shared, "shared by both"), (len(verdicts) - alone - shared, "a peer's"))
        held = [f"{who} on {count}" for count, who in counts if count]
        parts.append(f"Of {len(verdicts)} problems, the first rank is {', '.join(held)}.")
    elif shared:
        parts.append("The two share the first rank.")
    return " ".join(parts)


def times(ratio: float) -> str:
    """A ratio in words, as in 1.24 times and 13 times."""
    return f"{ratio:.2f} times" if ratio < 2 else f"{ratio:.1f} times" if ratio < 10 else f"{ratio:.0f} times"


def against(factor: float) -> str:
    """The best peer's error over our best method's, in words."""
    if round(max(factor, 1 / factor), 2) == 1:
        return "ours equal"
    return f"ours {times(factor)} smaller" if factor > 1 else f"ours {times(1 / factor)} larger"


def shown(value: float | None, digits: int = 3) -> str:
    """The text of a value in a table; a method that failed on half of its samples has no finite median."""
    if value is None:
        return ""
    return number(float(f"{value:.{digits}g}")) if math.isfinite(value) else "failed"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
