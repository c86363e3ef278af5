"""Pictures: image grids and error curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, ScalarFormatter
from torch import Tensor

from odediff.files import replacing

INK, FAINT = "#22262b", "#7a828c"
COLOURS = ("#2f6db5", "#d1662b", "#3a8f5c", "#9056a5", "#b8860b", "#4aa3a2", "#c0405a", "#6b7280")
MARKERS = "osD^vP*X"
LEAST_RATIO = 1.25
"""The least ratio between labelled ticks of a logarithmic axis."""
NARROW = 50.0
"""The ratio of its ends below which a logarithmic axis shows too few powers of ten to be readable."""
CLOUD = 2500
"""The number of points of a cloud that are drawn: more would hide their density."""


def is_picture(shape: Sequence[int]) -> bool:
    """Whether samples of this shape can be drawn: one channel or three, height and width."""
    return len(shape) == 3 and shape[0] in (1, 3)


def montage(images: Tensor, columns: int) -> np.ndarray:
    """Tile images ``(B, C, H, W)`` in [-1, 1] into one array ``(rows H, columns W[, 3])`` in [0, 1], gaps white."""
    pixels = ((images.detach().float().cpu().clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()
    count, height, width, channels = pixels.shape
    rows = math.ceil(count / columns)
    sheet = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, channels))
    for i, image in enumerate(pixels):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet[:, :, 0] if channels == 1 else sheet


def labelled_grid(
    path: Path,
    cells: Sequence[Sequence[np.ndarray]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    notes: Sequence[Sequence[str]] | None = None,
    inches: float = 1.0,
) -> None:
    """Draw a table of pictures with a label for every row and column, and a note under each cell.

    ``inches`` is the height of a cell. Its width follows from the pictures; the distance between cells also leaves room
    for their texts.
    """
    height, width = cells[0][0].shape[:2]
    note_space = 0.2 if notes else 0.06
    label_space, head = max(1.45, 0.25 + max(_text_width(row, 8) for row in rows)), 0.62
    cell_width = inches * width / height
    headings = [_text_width(column, 8) for column in columns]
    pitch = 0.08 + max(cell_width, *headings, *(_text_width(note, 6) for line in notes or () for note in line))
    total_width = max(label_space + len(columns) * pitch, 0.2 + _text_width(title, 10, "bold"))
    total_height = head + len(rows) * (inches + note_space)
    figure = Figure(figsize=(total_width, total_height), dpi=160)
    figure.text(0.1 / total_width, 1 - 0.27 / total_height, title, fontsize=10, color=INK, weight="bold")
    for i, row in enumerate(cells):
        top = total_height - head - i * (inches + note_space)
        figure.text(0.1 / total_width, (top - inches / 2) / total_height, rows[i], va="center", fontsize=8, color=INK)
        for j, cell in enumerate(row):
            left = label_space + j * pitch + (pitch - 0.08 - cell_width) / 2
            axes = figure.add_axes(
                (left / total_width, (top - inches) / total_height, cell_width / total_width, inches / total_height)
            )
            axes.imshow(cell, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
            axes.set_axis_off()
            if i == 0:
                axes.set_title(columns[j], fontsize=8, color=INK, pad=3)
            if notes:
                middle = (left + cell_width / 2) / total_width
                figure.text(
                    middle, (top - inches - 0.13) / total_height, notes[i][j], fontsize=6, color=FAINT, ha="center"
                )
    _save(figure, path)


def curves(
    path: Path, series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, title: str
) -> None:
    """Draw one line per name through its points ``(x, y)``, on logarithmic axes."""
    figure = Figure(figsize=(5.6, 3.8), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    for i, (name, points) in enumerate(series.items()):
        drawn = [(x, y) for x, y in sorted(points) if y > 0 and math.isfinite(y)]
        if drawn:
            axes.plot(
                *zip(*drawn, strict=True),
                label=name,
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                markersize=4,
                linewidth=1.3,
            )
    _log_axes(axes, sorted({x for points in series.values() for x, _ in points}))
    axes.set_xlabel(x_label, fontsize=8, color=INK)
    axes.set_ylabel(y_label, fontsize=8, color=INK)
    axes.set_title(title, fontsize=9, color=INK, loc="left", weight="bold")
    if axes.lines:
        axes.legend(fontsize=7, frameon=False)
    _save(figure, path)


def joint_laws(
    path: Path,
    pairs: Sequence[tuple[Tensor, Tensor]],
    titles: Sequence[str],
    normals: Sequence[tuple[float, float]],
    title: str,
) -> None:
    """Draw in each panel a cloud of points ``(x, y)``, each ``(N,)``, beside the histograms of x and y.

    ``normals`` are the mean and deviation of the laws that x and y should have, drawn as curves over the histograms.
    """
    figure = Figure(figsize=(2.6 * len(pairs), 3.4), dpi=160, layout="constrained")
    figure.suptitle(title, fontsize=10, color=INK, weight="bold", x=0.01, ha="left")
    ranges = [(mean - 3.6 * deviation, mean + 3.6 * deviation) for mean, deviation in normals]
    for i, (panel, (x, y)) in enumerate(zip(figure.subfigures(1, len(pairs), squeeze=False)[0], pairs, strict=True)):
        top, corner, cloud, right = panel.subplots(
            2, 2, width_ratios=(4, 1), height_ratios=(1, 4), gridspec_kw={"hspace": 0.02, "wspace": 0.02}
        ).flat
        corner.set_axis_off()
        colour = COLOURS[i % len(COLOURS)]
        cloud.scatter(x[:CLOUD], y[:CLOUD], s=2.5, color=colour, alpha=0.22, linewidths=0, rasterized=True)
        cloud.set(xlim=ranges[0], ylim=ranges[1])
        cloud.set_xlabel("noise x_T", fontsize=8, color=INK)
        cloud.set_ylabel("data x_0", fontsize=8, color=INK)
        cloud.tick_params(labelsize=7, colors=INK)
        cloud.grid(True, color="#e3e6ea", linewidth=0.7)
        cloud.set_axisbelow(True)
        for axes, values, orientation, (mean, deviation), limits in zip(
            (top, right), (x, y), ("vertical", "horizontal"), normals, ranges, strict=True
        ):
            axes.hist(values, bins=48, range=limits, density=True, orientation=orientation, color=colour, alpha=0.35)
            at = np.linspace(*limits, 200)
            density = np.exp(-0.5 * ((at - mean) / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))
            axes.plot(*((at, density) if axes is top else (density, at)), color=INK, linewidth=0.9)
            (axes.set_xlim if axes is top else axes.set_ylim)(limits)
            axes.set_axis_off()
        top.set_title(titles[i], fontsize=7.5, color=INK)
    _save(figure, path)


def _log_axes(axes: Axes, ticks: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    apart: list[float] = []
    for tick in reversed(ticks):
        # Solvers with the same ceiling differ by a call or two; their labels would overlap.
        if not apart or apart[-1] / tick > LEAST_RATIO:
            apart.append(tick)
    axes.set_xticks(apart)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    lowest, highest = axes.get_ylim()
    if highest / lowest < NARROW:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.tick_params(labelsize=7, colors=INK)
    axes.grid(True, which="major", color="#e3e6ea", linewidth=0.7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _text_width(text: str, size: float, weight: str = "normal") -> float:
    """The width of a text in inches."""
    if not text:
        return 0.0
    return float(TextPath((0, 0), text, size, prop=FontProperties(weight=weight)).get_extents().width) / 72


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as partial:
        figure.savefig(partial, facecolor="white")
