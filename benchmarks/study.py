"""A finished study as the report sees it: problems, methods in their best settings, ranks and curves."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import theme
from benchmarks.collect import ranks
from benchmarks.figures import Line
from benchmarks.series import (
    Name,
    Problem,
    Row,
    best_settings,
    error_curves,
    featured,
    floor,
    problems,
    shown_ceilings,
)
from benchmarks.summary import Verdict, closest, names, sentence, verdict
from odediff.ranking import Ranked

CEILINGS = (5, 10, 20, 50)
"""The numbers of calls in the summary and the rank tables, as far as they were measured."""


FEATURED = 5
"""The number of our methods that have a colour of their own."""


class Study:
    """Everything that is computed once from the table's rows."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.problems = problems(rows)
        self.chosen = {problem.name: best_settings(problem) for problem in self.problems}
        self.ranked: dict[str, dict[int, list[Ranked]]] = {}
        for some in self.chosen.values():
            for (name, nfe), places in ranks(some).items():
                self.ranked.setdefault(name, {})[nfe] = places
        self.errors = {name: error_curves(some, self.ranked.get(name, {})) for name, some in self.chosen.items()}
        self.colours = featured(self.errors.values(), theme.COLOURS[:FEATURED])
        self.ceilings = shown_ceilings([row for row in rows if row["status"] == "ok"], CEILINGS)
        self.ticks = sorted({row["nfe"] for row in rows if row["nfe"] is not None})

    def names(self, problem: str) -> dict[str, Name]:
        """The methods of a problem by their names in the ranks."""
        return names(self.chosen[problem])

    def reference(self, problem: Problem) -> Line | None:
        """The line of the exact flow's own error."""
        own = floor(problem.rows, "reference_error")
        return None if own is None else Line(own, "reference", "its own error")

    def verdict(self, problem: str, nfe: int) -> Verdict | None:
        """The first ranks of a problem; None where nothing was ranked."""
        places = self.ranked.get(problem, {}).get(nfe)
        return verdict(places, self.names(problem)) if places else None

    def judged(self) -> list[Problem]:
        """The problems that the summary is about: those left for reporting, if there are any."""
        left = [problem for problem in self.problems if problem.purpose == "reporting"]
        return left or self.problems

    def sentences(self) -> list[tuple[int, str]]:
        """Every ceiling with its summary in words."""
        found = []
        for nfe in self.ceilings:
            verdicts = {p.name: v for p in self.judged() if (v := self.verdict(p.name, nfe)) is not None}
            if verdicts:
                places = [self.ranked[name][nfe] for name in verdicts]
                known = [self.names(name) for name in verdicts]
                mine, others = (closest(places, known, ours) for ours in (True, False))
                found.append((nfe, sentence(list(verdicts.values()), mine, others)))
        return found
