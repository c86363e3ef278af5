"""Sheets of images for the report: the same noises under every method, and images to noise and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.figures import UNIT, WIDTH
from benchmarks.theme import DRAWN, INK, SOFT

SIDE = 28
"""The side of an image in pixels."""
MOST_COLUMNS = 6
NARROWEST = 230
"""The least width of a sheet, so that a label and its note have room."""
MARGIN, GAP, HEAD = 4, 6, 40
LABEL = 18
WIDEST = 112
"""The largest width of a picture, so that three fit in a row."""


class Strip(NamedTuple):
    """A row of the sheet: a label, a note beside it, and for every column a picture from `tile` or None."""

    label: str
    note: str
    pictures: Sequence[np.ndarray | None]


def sheet(strips: Sequence[Strip], columns: Sequence[str], title: str, subtitle: str) -> Figure:
    """Pictures by row and column, with labels above the rows so that a phone shows the pictures in full size."""
    count = max(len(strip.pictures) for strip in strips)
    width = min(WIDEST, (WIDTH - 2 * MARGIN - (count - 1) * GAP) / count)
    right = MARGIN + max(NARROWEST, count * (width + GAP) - GAP)
    heights = [_height(strip, width) for strip in strips]
    head = HEAD + (14 if any(columns) else 0)
    total = head + sum(heights) + len(strips) * (LABEL + 4) + MARGIN
    with rc_context(DRAWN):
        figure = Figure(figsize=(WIDTH / UNIT, total / UNIT), dpi=UNIT)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.text(MARGIN, 15, title, fontsize=12, weight="bold", color=INK)
        axes.text(MARGIN, 31, subtitle, fontsize=10, color=SOFT)
        for j, column in enumerate(columns):
            axes.text(MARGIN + j * (width + GAP), head - 3, column, fontsize=9, color=SOFT)
        top = float(head)
        for strip, height in zip(strips, heights, strict=True):
            axes.text(MARGIN, top + 13, strip.label, fontsize=10, weight="bold", color=INK)
            axes.text(right, top + 13, strip.note, fontsize=9, color=SOFT, ha="right")
            top += LABEL
            for j, picture in enumerate(strip.pictures):
                if picture is not None:
                    left = MARGIN + j * (width + GAP)
                    axes.imshow(
                        picture,
                        cmap="gray",
                        vmin=0,
                        vmax=255,
                        interpolation="none",
                        extent=(left, left + width, top + height, top),
                    )
            top += height + 4
        axes.set_xlim(0, WIDTH)
        axes.set_ylim(total, 0)
        axes.set_aspect("auto")
    return figure


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """Tile ``(B, side * side)`` values in 0..255 with a pixel between; NaN, which is not drawn, fills the gaps."""
    rows = math.ceil(len(images) / columns)
    squares = np.full((rows * columns, SIDE + 1, SIDE + 1), np.nan)
    squares[: len(images), :SIDE, :SIDE] = images.reshape(-1, SIDE, SIDE)
    whole = squares.reshape(rows, columns, SIDE + 1, SIDE + 1).swapaxes(1, 2)
    return whole.reshape(rows * (SIDE + 1), columns * (SIDE + 1))[:-1, :-1]


def _height(strip: Strip, width: float) -> float:
    """The height of the strip's pictures at the given width."""
    shapes = [picture.shape for picture in strip.pictures if picture is not None]
    return max((width * height / across for height, across in shapes), default=0.0)
