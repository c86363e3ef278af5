"""The report's colours, light and dark, and matplotlib figures as SVG that follows the reader's choice of the two.

Figures are drawn in the light colours. A stylesheet replaces each by its dark counterpart where the reader prefers
that, on screens only: paper is white. The SVG itself stays plain, so that programs without CSS read it too.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from odediff.files import replacing

PAPER, INK, SOFT, LINE = "#ffffff", "#1f2328", "#59616b", "#e4e7eb"
PEER, PEER_FAINT, OURS_FAINT = "#5c646e", "#d9dce0", "#c3d3e8"
COLOURS = ("#2563ae", "#b8471a", "#2b7a4b", "#8645a0", "#826000", "#0d7680", "#b02a4c")
"""The colours of our methods."""

DARK = {
    PAPER: "#15181c",
    INK: "#e8eaed",
    SOFT: "#a3abb5",
    LINE: "#2b3036",
    PEER: "#aab2bc",
    PEER_FAINT: "#3a4047",
    OURS_FAINT: "#2c4363",
    **dict(zip(COLOURS, ("#72aaf0", "#f0936a", "#66c48c", "#cb98e2", "#d8b04a", "#55c3cd", "#f28aa0"), strict=True)),
}
"""Light colour -> its dark counterpart."""

DARK_SCREEN = "@media screen and (prefers-color-scheme: dark)"
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
DRAWN: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "odediff",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.unicode_minus": True,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "lines.solid_capstyle": "round",
}
"""Settings of matplotlib for every figure; one unit of an SVG is one CSS pixel on a phone."""

PNG_DPI = 200


def figure_style() -> str:
    """CSS that turns the light colours of every SVG in the page dark."""
    rules = [
        f'[style*="{kind}: {light}"] {{ {kind}: {dark} !important }}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    ]
    return f"svg text {{ font-family: {FONTS} }}\n{DARK_SCREEN} {{\n" + "\n".join(rules) + "\n}"


def save(figure: Figure, folder: Path, name: str, title: str) -> str:
    """Write ``name.svg`` and ``name.png``; returns the SVG for a page that has `figure_style`.

    ``title`` describes the figure in words for screen readers.
    """
    with rc_context(DRAWN):
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
        with replacing(folder / f"{name}.png") as partial:
            figure.savefig(partial, format="png", dpi=PNG_DPI, metadata={"Title": title})
    svg = _plain(drawn.getvalue(), name, title)
    with replacing(folder / f"{name}.svg") as partial:
        alone = svg.replace("<defs>", f"<defs><style>{figure_style()}</style>", 1)
        partial.write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{alone}\n', encoding="utf-8")
    return svg


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colours (WCAG 2.2, relative luminance of sRGB)."""
    lighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _plain(svg: str, name: str, title: str) -> str:
    """The SVG without prolog, metadata, trailing digits and unused ids; used ids carry the figure's name.

    So many figures fit into one page.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"', "", svg)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(?<=\s)(?:d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d{2})\d+", r"\1", found.group()), svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()  # type: ignore[union-attr]
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'width="{width}" height="{height}" role="img"', svg, count=1)
    return svg.replace(">", f"><title>{_escaped(title)}</title>", 1).strip()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
