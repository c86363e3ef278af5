"""The report's plots: curves over costs, with names at their ends, and sheets of images."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.series import Curve, Name
from benchmarks.theme import COLOURS, DRAWN, INK, LINE, OURS_FAINT, PAPER, PEER, PEER_FAINT, SOFT

WIDTH, HEIGHT = 360, 300
"""The size of a panel in CSS pixels, which a phone shows without scaling."""
LEFT, RIGHT, TOP, BOTTOM = 42, 114, 44, 34
UNIT = 72
"""Units of an SVG per inch."""
LABEL_GAP = 21
PEERS_NAMED = 3
FEW = 8
"""With at most this many curves, all are named."""
NAME_LETTERS = 15
MARKERS = "osD^vPX"
POWERS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


Cost = Literal["calls", "seconds"]
COSTS: tuple[Cost, ...] = ("calls", "seconds")


class Line(NamedTuple):
    """A horizontal line, its name, and a few words under that."""

    value: float
    name: str
    detail: str


class End(NamedTuple):
    """Where a curve ends, and the two lines of text beside it."""

    x: float
    y: float
    first: str
    second: str
    colour: str
    weight: str = "bold"


class Look(NamedTuple):
    """How a curve that has a name is drawn."""

    colour: str
    marker: str
    dashes: str


def panel(
    curves: Sequence[Curve],
    colours: Mapping[str, str],
    title: str,
    subtitle: str,
    cost: Cost = "calls",
    line: Line | None = None,
    ticks: Sequence[int] = (),
    linear: bool = False,
) -> Figure:
    """Values over calls, or over seconds, one curve for every method, ordered from the best.

    Our methods in ``colours`` and the best peers have names and bands; the others are faint. ``ticks`` are the numbers
    of calls marked on the axis. A value that is not positive makes the axis symmetric about zero.
    """
    with rc_context(DRAWN):
        figure, axes = _empty(title, subtitle)
        named = looks(curves, colours)
        low, high = _range(curves, named, line, linear)
        axes.set_xscale("log")
        if not linear:
            _log_values(axes, low, high)
        axes.set_ylim(low, high)
        axes.set_xlim(*_costs(curves, cost))
        for ours, faint in ((False, PEER_FAINT), (True, OURS_FAINT)):
            others = [curve for curve in curves if curve.name not in named and curve.name.ours == ours]
            # One path with gaps: a page holds thousands of these curves.
            x, y = _joined(others, cost)
            axes.plot(x, y, color=faint, linewidth=0.9, zorder=1)
        ends = []
        for curve in curves:
            look = named.get(curve.name)
            points = [point for point in curve.points if math.isfinite(point.value)]
            if look is None or not points:
                continue
            x = [getattr(point, cost) for point in points]
            y = [point.value for point in points]
            band = [np.clip([getattr(point, end) for point in points], low, high) for end in ("low", "high")]
            alpha = 0.16 if look.dashes == "-" else 0.08
            axes.fill_between(x, *band, color=look.colour, alpha=alpha, linewidth=0, zorder=2)
            axes.plot(
                x,
                y,
                color=look.colour,
                linestyle=look.dashes,
                linewidth=1.6,
                marker=look.marker,
                markersize=4.5,
                markeredgecolor=PAPER,
                markeredgewidth=0.6,
                zorder=3,
            )
            ends.append(End(x[-1], y[-1], *lines(curve.name), look.colour))
        _cost_axis(axes, cost, ticks)
        if line is not None:
            ends.append(_draw_line(axes, line, low))
        _names(figure, axes, ends)
    return figure


def looks(curves: Sequence[Curve], colours: Mapping[str, str]) -> dict[Name, Look]:
    """The named curves: ours in ``colours``, our best, the best peers and two adaptive ones; all of them if few."""
    chosen: dict[Name, Look] = {}
    mine = [curve.name for curve in curves if curve.name.ours]
    for name in mine:
        if name.method in colours:
            chosen[name] = Look(colours[name.method], MARKERS[list(colours).index(name.method) % len(MARKERS)], "-")
    if mine and mine[0] not in chosen:
        chosen[mine[0]] = Look(COLOURS[-1], MARKERS[-1], "-")
    others = [curve.name for curve in curves if not curve.name.ours][:PEERS_NAMED]
    chosen |= {name: Look(PEER, "o", dashes) for name, dashes in zip(others, ("--", "-.", ":"), strict=False)}
    adaptive = [name for name in mine if name.grid == "adaptive" and name not in chosen][:2]
    chosen |= {name: Look(INK, marker, ":") for name, marker in zip(adaptive, "D^", strict=False)}
    if len(curves) <= FEW:
        rest = [curve.name for curve in curves if curve.name not in chosen]
        chosen |= {name: Look(INK if name.ours else PEER, "v", "-" if name.ours else ":") for name in rest}
    return chosen


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The positions closest to ``wanted`` in least squares, in its order, at least ``gap`` apart and inside the ends.

    With the gaps subtracted this is isotonic regression: neighbours out of order are pooled at their mean.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, int]] = []
    for place, i in enumerate(order):
        mean, count = wanted[i] - place * gap, 1
        while blocks and blocks[-1][0] >= mean:
            before, size = blocks.pop()
            mean, count = (before * size + mean * count) / (size + count), size + count
        blocks.append((mean, count))
    last = high - gap * (len(wanted) - 1)
    flat = [max(low, min(mean, last)) for mean, count in blocks for _ in range(count)]
    positions = [0.0] * len(wanted)
    for place, i in enumerate(order):
        positions[i] = flat[place] + place * gap
    return positions


def lines(name: Name) -> tuple[str, str]:
    """A name in two lines: as much of the method as fits, then the rest with its setting."""
    # A name of words joined by underscores breaks after one of them.
    words = textwrap.wrap(name.short.replace("_", "_ "), NAME_LETTERS, break_on_hyphens=False) or [""]
    first, *rest = (line.replace("_ ", "_") for line in words)
    return first, " · ".join([*rest, name.setting])


def number(value: float) -> str:
    """The label of a value at an axis: 0.02, 300, 10⁻⁵, 2·10⁻⁵."""
    if value == 0 or 1e-3 <= abs(value) * (1 + 1e-9) < 1e4:
        return f"{value:.6g}".replace("-", "−")
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    mantissa = f"{value / 10**exponent:.2g}".replace("-", "−")
    power = f"10{str(exponent).translate(POWERS)}"
    return power if mantissa == "1" else f"{mantissa}·{power}"


def duration(seconds: float) -> str:
    """The label of a time, in the largest unit that leaves no zero before the point: 20 µs, 3 ms, 500 ms, 10 s."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size * (1 - 1e-9):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def _empty(title: str, subtitle: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / UNIT, HEIGHT / UNIT), dpi=UNIT)
    box = (LEFT / WIDTH, BOTTOM / HEIGHT, (WIDTH - LEFT - RIGHT) / WIDTH, (HEIGHT - TOP - BOTTOM) / HEIGHT)
    axes = figure.add_axes(box)
    figure.text(4 / WIDTH, 1 - 15 / HEIGHT, title, fontsize=12, weight="bold", color=INK)
    figure.text(4 / WIDTH, 1 - 31 / HEIGHT, subtitle, fontsize=10, color=SOFT)
    axes.grid(True, which="major", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _range(curves: Sequence[Curve], named: Mapping[Name, Look], line: Line | None, linear: bool) -> tuple[float, float]:
    """The range of the axis: all named curves, the best of the others, and the line if it is near."""
    points = [point for curve in curves for point in curve.points if math.isfinite(point.value)]
    shown = [p for curve in curves if curve.name in named for p in curve.points if math.isfinite(p.value)] or points
    if not shown:
        return (0.0, 1.0) if linear else (0.1, 1.0)
    bottom, top = min(point.value for point in points), max(point.value for point in shown)
    if linear:
        margin = 0.05 * (top - bottom) or 0.05
        return bottom - margin, top + margin
    if bottom <= 0:
        margin = 0.1 * (top - bottom)
        return bottom - margin, top + margin
    if line is not None and bottom / 10 < line.value:
        bottom = min(bottom, line.value)
    return bottom / 1.35, top * 1.35


def _joined(curves: Sequence[Curve], cost: Cost) -> tuple[list[float], list[float]]:
    """The points of curves one after another, with a NaN after each."""
    x, y = [], []
    for curve in curves:
        points = [point for point in curve.points if math.isfinite(point.value)]
        x += [*(getattr(point, cost) for point in points), math.nan]
        y += [*(point.value for point in points), math.nan]
    return x, y


def _costs(curves: Sequence[Curve], cost: str) -> tuple[float, float]:
    """The range of the cost axis. Methods that could not use half of their calls may lie outside it."""
    points = [p for curve in curves for p in curve.points if math.isfinite(p.value)]
    used = [p for p in points if p.nfe is None or p.calls > p.nfe / 2] or points
    values = [getattr(p, cost) for p in used]
    return (min(values) / 1.1, max(values) * 1.1) if values else (1.0, 10.0)


def _log_values(axes: Axes, low: float, high: float) -> None:
    if low <= 0:
        axes.set_yscale("symlog", linthresh=10 ** math.floor(math.log10(-low)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_yscale("log")
        decades = math.log10(high / low)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _cost_axis(axes: Axes, cost: str, ticks: Sequence[int]) -> None:
    first, last = axes.get_xlim()
    if cost == "calls":
        places = [tick for tick in ticks if first <= tick <= last]
        beyond = (20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
        places += [tick for tick in beyond if tick > 1.7 * max(ticks, default=0) and first <= tick <= last]
        axes.xaxis.set_major_locator(FixedLocator([float(tick) for tick in places]))
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if last / first < 12 else (1, 3), numticks=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: (number if cost == "calls" else duration)(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel({"calls": "calls of the field, counted", "seconds": "time for one sample"}[cost], labelpad=3)


def _draw_line(axes: Axes, line: Line, low: float) -> End:
    """Draw the line and return where its name stands; a line below the axes is only named, at their lower end."""
    right = axes.get_xlim()[1]
    if line.value < low:
        below = f"↓ {line.detail} {number(float(f'{line.value:.1g}'))}"
        return End(right, low, line.name, below, SOFT, "normal")
    axes.axhline(line.value, color=SOFT, linewidth=1.2, linestyle=(0, (1, 2)), zorder=2)
    return End(right, line.value, line.name, line.detail, SOFT, "normal")


def _names(figure: Figure, axes: Axes, ends: Sequence[End]) -> None:
    """Write the names to the right, level with the ends of their curves as far as there is room."""
    inside = figure.transFigure.inverted()
    starts = [inside.transform(axes.transData.transform((end.x, end.y))) for end in ends]
    gap = min(LABEL_GAP, (HEIGHT - TOP - 16) / max(1, len(ends)))
    positions = spread([float(start[1]) * HEIGHT for start in starts], gap, 12, HEIGHT - TOP)
    begin = WIDTH - RIGHT + 10
    for end, start, position in zip(ends, starts, positions, strict=True):
        leader = [start[0], begin / WIDTH], [start[1], position / HEIGHT]
        figure.add_artist(Line2D(*leader, color=end.colour, linewidth=0.7, alpha=0.6))
        left = (begin + 3) / WIDTH
        figure.text(left, (position - 1) / HEIGHT, end.first, fontsize=10, weight=end.weight, color=end.colour)
        figure.text(left, (position - 10) / HEIGHT, end.second, fontsize=8, color=SOFT)
