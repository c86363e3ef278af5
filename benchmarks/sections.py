"""The report's sections of plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from benchmarks.before_after import round_trips
from benchmarks.figures import COSTS, Cost, Line, looks, panel
from benchmarks.series import BASELINE, Curve, Problem, Row, floor, mean_curves, name_of, shown_ceilings
from benchmarks.sheets import MOST_COLUMNS, SIDE, Strip, sheet, tile
from benchmarks.study import CEILINGS, Study
from benchmarks.summary import shown
from benchmarks.theme import save

ERROR = "median error, in deviations of the data"
SWITCHED = "share of samples that end in another mode"
ROUND_TRIP = "rms round-trip error, in deviations of the data"
ENOUGH = 10
"""The number of calls each way below which images do not come back."""
ABOUT_ERROR = (
    "The distance between a method's result and the point to which the exact flow carries the same noise: the median "
    "over the samples of all seeds, with 95 % bootstrap intervals as bands. Every method, ours and the peers' alike, "
    "is shown with its best grid and closing on that problem. In colour: the solvers of odediff that are best over all "
    "problems, and DDIM. Dark grey and dashed: the three best peers. Faint: the others, ours in pale blue and theirs "
    "in pale grey. Where data have modes, a second plot counts the samples that end in another mode than the exact "
    "flow's."
)
ABOUT_DISTANCE = (
    "How far the samples as a whole are from data; this also judges methods that draw fresh noise. The dotted line is "
    "the floor, with as many real samples in their place. The kernel distance is unbiased: its floor is zero, and a "
    "value below zero is chance. Values are means of the seeds, with their range as the band."
)
ABOUT_WORK = (
    "The cost of an error, in calls and in seconds of the machine that ran the study; methods that choose their own "
    "steps under a tolerance are included, dotted and with black marks. The seconds include the method's own "
    "arithmetic, which matters where the field is cheap."
)
ABOUT_SEEDS = (
    "Every picture starts from the same noises. The first row is the result nearest to the exact flow among all that "
    "were computed, which each column tries to reach with fewer calls."
)
ABOUT_INVERSION = (
    "Data encoded to noise and decoded again by the same solver on the flipped grid, with the given number of calls "
    "each way. Solvers that draw noise have no inverse and are omitted."
)


class Plot(NamedTuple):
    """A figure in the page."""

    svg: Markup
    name: str


class Section(NamedTuple):
    """A heading with its plots; ``about`` says how to read them.

    Plots may belong together in pairs. ``left_out`` names those that a full page only links to.
    """

    anchor: str
    heading: str
    about: str
    plots: list[Plot]
    pairs: bool = False
    left_out: Sequence[str] = ()


class Sections:
    """Draws a study's plots into a folder, section by section."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder = study, folder
        self.drawn: set[str] = set()

    def all(self) -> list[Section]:
        """The sections that have something to show."""
        sections = [self.quality(), self.distances(), self.work(), self.seeds(), self.inversion()]
        return [section for section in sections if section.plots]

    def quality(self) -> Section:
        """Errors against the exact flow."""
        plots = []
        for problem in self.study.problems:
            if curves := _fixed(self.study.errors[problem.name]):
                line = self.study.reference(problem)
                plots.append(self.panel(problem, f"error_{problem.name}", curves, ERROR, line=line))
            switched = _fixed(mean_curves(self.study.chosen[problem.name], "switched"))
            if any(point.value > 0 for curve in switched for point in curve.points):
                lowest = sorted(switched, key=_mean)
                plots.append(self.panel(problem, f"switched_{problem.name}", lowest, SWITCHED, linear=True))
        return Section("error", "Error against calls", ABOUT_ERROR, plots)

    def distances(self) -> Section:
        """Distances of the samples to data."""
        plots = []
        for problem in self.study.problems:
            for column, subtitle, rows, line in self.measures(problem):
                curves = _fixed(mean_curves(rows, column))
                if curves:
                    share = column == "accuracy"
                    if share:
                        curves = sorted(curves, key=_mean, reverse=True)
                    plots.append(
                        self.panel(problem, f"{column}_{problem.name}", curves, subtitle, line=line, linear=share)
                    )
        return Section("distance", "Distance to data", ABOUT_DISTANCE, plots)

    def measures(self, problem: Problem) -> list[tuple[str, str, Sequence[Row], Line | None]]:
        """Columns with their subtitles, the rows that have them, and the floors."""
        few = self.study.chosen[problem.name]
        many = [row for row in problem.rows if row.get("frechet") is not None]
        count = f"{many[0]['samples']:,} images" if many else ""
        real = floor(problem.rows, "frechet_floor")
        return [
            (
                "frechet",
                f"Fréchet distance, {count}",
                many,
                None if real is None else Line(real, "real images", "against real ones"),
            ),
            ("kernel_distance", "kernel distance to real images", few, None),
            ("accuracy", "share classified as asked", few, None),
            *(
                (
                    column,
                    f"{distance} distance to data",
                    few,
                    None if data is None else Line(data, "data", "against data"),
                )
                for column, distance in (("sliced_wasserstein", "sliced Wasserstein"), ("energy_distance", "energy"))
                for data in (floor(problem.rows, f"{column}_floor"),)
            ),
        ]

    def work(self) -> Section:
        """Errors over calls and over seconds, with adaptive methods."""
        plots = [
            self.panel(problem, f"work_{cost}_{problem.name}", curves, ERROR, cost, self.study.reference(problem))
            for problem in self.study.problems
            if (curves := self.study.errors[problem.name])
            for cost in COSTS
        ]
        return Section("work", "Work and precision", ABOUT_WORK, plots, pairs=True)

    def seeds(self) -> Section:
        """The same noises by method and ceiling."""
        plots = []
        for problem in self.study.problems:
            pictures = [row for row in problem.rows if row.get("images") is not None and row.get("kind") != "images"]
            seed = min((row["seed"] for row in pictures), default=None)
            same = [row for row in pictures if row["seed"] == seed]
            columns = shown_ceilings(same, CEILINGS)[:MOST_COLUMNS]
            strips = self.strips(problem, same, columns)
            if columns and strips:
                heads = [f"{nfe} calls" for nfe in columns]
                figure = sheet(strips, heads, problem.title, f"the same noises (seed {seed}) everywhere")
                told = f"{problem.title}, images from the same noises: {'; '.join(strip.label for strip in strips)}"
                plots.append(self.plot(figure, f"seeds_{problem.name}", told))
        return Section("seeds", "The same noise by every method", ABOUT_SEEDS, plots)

    def strips(self, problem: Problem, rows: Sequence[Row], columns: Sequence[int]) -> list[Strip]:
        """The result nearest to the exact flow, the named methods beginning with the best, and one that draws noise."""
        across = 2 if len(columns) > 4 else 3
        strips = []
        known = [row for row in rows if row.get("error_median") is not None]
        if known:
            near = min(known, key=lambda row: row["error_median"])
            note = f"{name_of(near).short}, {near['calls']:.0f} calls, error {shown(near['error_median'], 2)}"
            strips.append(Strip("closest to the exact flow", note, [_tiled(near, across)] * len(columns)))
        curves = _fixed(self.study.errors[problem.name])
        named = looks(curves, self.study.colours)
        names = [curve.name for curve in curves if curve.name in named]
        drawing = [row for row in self.study.chosen[problem.name] if not row["deterministic"]]
        names += [name_of(row) for row in drawing if name_of(row).ours][:1]
        by_cost = {(name_of(row), row["nfe"]): row for row in rows}
        for name in names:
            found = [by_cost.get((name, nfe)) for nfe in columns]
            pictures = [None if row is None else _tiled(row, across) for row in found]
            if any(row is not None for row in found):
                note = name.setting if name in named else f"{name.setting} · draws noise on its way"
                strips.append(Strip(name.short, note, pictures))
        return strips

    def inversion(self) -> Section:
        """Round trips of data."""
        plots, flipped = [], []
        for problem in self.study.problems:
            curves = mean_curves(self.study.chosen[problem.name], "round_trip")
            if curves:
                plots.append(self.panel(problem, f"round_trip_{problem.name}", curves, ROUND_TRIP))
                if problem.family == "network":
                    flipped = curves
        if flipped:
            wanted = [flipped[0].name, *(curve.name for curve in flipped if curve.name.method == BASELINE)]
            methods = [(name.method, name.grid) for name in dict.fromkeys(wanted)]
            ceilings = [nfe for nfe in self.study.ceilings if nfe >= ENOUGH] or self.study.ceilings
            strips = round_trips(methods, ceilings)
            heads = [f"{nfe} + {nfe} calls" for nfe in ceilings]
            figure = sheet(strips, heads, "Real images to noise and back", "the embedded network, unconditional")
            told = "; ".join(f"{strip.label}, {strip.note}" for strip in strips)
            plots.append(self.plot(figure, "inversion_images", f"Images to noise and back: {told}"))
        return Section("inversion", "Inversion, before and after", ABOUT_INVERSION, plots)

    def panel(
        self,
        problem: Problem,
        name: str,
        curves: Sequence[Curve],
        subtitle: str,
        cost: Cost = "calls",
        line: Line | None = None,
        linear: bool = False,
    ) -> Plot:
        """One panel of curves, with a description for screen readers."""
        ends = "; ".join(
            f"{curve.name.short} ({curve.name.setting}) ends at {shown(curve.points[-1].value)} "
            f"with {curve.points[-1].calls:.0f} calls"
            for curve in curves[:3]
        )
        told = f"{problem.title}: {subtitle} over {cost}, {counted(len(curves), 'method')}. The best: {ends}."
        figure = panel(curves, self.study.colours, problem.title, subtitle, cost, line, self.study.ticks, linear)
        return self.plot(figure, name, told)

    def plot(self, figure: Figure, name: str, told: str) -> Plot:
        """Save a figure and return it for the page."""
        self.drawn.add(name)
        return Plot(Markup(save(figure, self.folder, name, told)), name)


def _fixed(curves: Sequence[Curve]) -> list[Curve]:
    """The curves without the methods that choose their own steps."""
    return [curve for curve in curves if any(point.nfe is not None for point in curve.points)]


def _mean(curve: Curve) -> float:
    """The mean over all points of a curve."""
    return sum(point.value for point in curve.points) / len(curve.points)


def _tiled(row: Mapping[str, Any], across: int) -> np.ndarray:
    """The first two rows of a cell's images."""
    pixels = np.asarray(row["images"], dtype=np.uint8)
    return tile(pixels.reshape(-1, SIDE * SIDE)[: 2 * across], across)


def counted(count: int, what: str) -> str:
    """A number with its noun, as in 1 peer and 3 peers."""
    return f"{count} {what}" + "s" * (count != 1)
