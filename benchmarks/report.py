"""The report of a study: plots as SVG and PNG, and one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup

from benchmarks import summary
from benchmarks.collect import label
from benchmarks.frechet import Distance
from benchmarks.sections import Section, Sections, counted
from benchmarks.series import Problem, Row, floor, name_of
from benchmarks.store import writable
from benchmarks.study import Study
from benchmarks.theme import figure_style
from odediff.files import replacing

PAGE = "report.html"
FIGURES = "figures"
TEMPLATES = Path(__file__).parent / "page"
COMMAND = "python -m benchmarks.nfe_quality"
LARGEST = 5_000_000
"""The most bytes of the page, so that a phone can load it and a mail can carry it."""


def write(rows: Sequence[Row], folder: Path, command: str = COMMAND) -> None:
    """Draw the table into ``folder/figures`` and write ``folder/report.html``.

    ``rows`` come from `collect.collect`; ``command`` is the one that measured them, for the page's head.

    Raises:
        ValueError: no row has a result, or the folder cannot be written.
    """
    if not any(row["status"] == "ok" for row in rows):
        what = (
            f"rows have no result, the first of {len(rows)} says: {rows[0]['status']}" if rows else "rows=[] is empty"
        )
        raise ValueError(f"{what}; measure some first: {COMMAND}")
    with writable(folder), replacing(folder / PAGE) as partial:
        study = Study(rows)
        sections = Sections(study, folder / FIGURES)
        partial.write_text(_fitting(study, sections.all(), command), encoding="utf-8")
        # Figures of an earlier page, of other problems, would pass for this one's.
        for file in (folder / FIGURES).iterdir():
            if file.stem not in sections.drawn:
                file.unlink()


def remove(folder: Path) -> None:
    """Remove the page and the figures of an earlier run."""
    with writable(folder):
        for file in (folder / PAGE, *(folder / FIGURES).glob("*")):
            file.unlink(missing_ok=True)


def _fitting(study: Study, sections: list[Section], command: str) -> str:
    """The page with as many figures as fit, and links to the files of the others."""
    page = _page(study, sections, command)
    while (excess := len(page.encode()) - LARGEST) > 0 and any(section.plots for section in sections):
        sections = _thinned(sections, excess)
        page = _page(study, sections, command)
    return page


def _thinned(sections: list[Section], excess: int) -> list[Section]:
    """The sections without figures of ``excess`` bytes in all, each time the last of the section that has most."""
    sections = list(sections)
    while excess > 0 and any(section.plots for section in sections):
        i = max(range(len(sections)), key=lambda i: len(sections[i].plots))
        *kept, last = sections[i].plots
        sections[i] = sections[i]._replace(plots=kept, left_out=[last.name, *sections[i].left_out])
        excess -= len(last.svg.encode())
    return sections


def _page(study: Study, sections: list[Section], command: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": summary.shown, "against": summary.against}
    return environment.get_template("report.html").render(
        head=_head(study, command),
        ceilings=study.ceilings,
        sentences=study.sentences(),
        judged=study.judged(),
        glance=[
            (problem, [study.verdict(problem.name, nfe) for nfe in study.ceilings])
            for problem in study.problems
            if problem.name in study.ranked
        ],
        sections=sections,
        figures=FIGURES,
        standings=_standings(study),
        many=_many(study),
        problems=_problems(study),
        refused=_refused(study),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8") + figure_style()),
    )


def _head(study: Study, command: str) -> dict[str, Any]:
    """The page's head: what was measured, with which command and versions."""
    done = [row for problem in study.problems for row in problem.rows]
    methods = {(row["source"], row["method"]) for row in done}
    mine = sum(source == "odediff" for source, _ in methods)
    versions: dict[str, list[str]] = {}
    for column in (column for column in done[0] if column.startswith("version_")):
        found = sorted({row[column] for row in done if row.get(column) is not None})
        if found:
            versions[column.removeprefix("version_")] = found
    return {
        "title": f"Calls against quality: {counted(mine, 'solver')} of odediff and "
        f"{counted(len(methods) - mine, 'peer')} on {counted(len(study.problems), 'problem')}",
        "command": command,
        "versions": {package: " and ".join(found) for package, found in versions.items()},
        "cells": len(done),
        "refused": len(study.rows) - len(done),
        "seeds": counted(len({row["seed"] for row in done}), "seed"),
        "minutes": sum(row["seconds"] for row in done) / 60,
    }


def _standings(study: Study) -> list[tuple[Problem, list[summary.Standing], int]]:
    """Every problem's rank table, and the number of methods that it leaves out."""
    found = []
    for problem in study.problems:
        ranked = study.ranked.get(problem.name, {})
        if ranked:
            some = summary.standings(ranked, study.names(problem.name), study.ceilings)
            total = len({place.name for places in ranked.values() for place in places})
            found.append((problem, some, total - len(some)))
    return found


def _many(study: Study) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows of thousands of images by problem, best first; ``excess`` is the interval over the ceiling's best."""
    found = []
    for problem in study.problems:
        rows = [{**row, "name": name_of(row)} for row in problem.rows if row.get("frechet") is not None]
        rows.sort(key=lambda row: (row["nfe"], row["frechet"]))
        best: dict[int, Distance] = {}
        for row in rows:
            row["excess"] = None
            if row.get("frechet_resampled") is not None:
                distance = Distance(row["frechet"], torch.tensor(row["frechet_resampled"]))
                leader = best.setdefault(row["nfe"], distance)
                row["excess"] = None if leader is distance else distance.interval(leader)
        if rows:
            found.append((problem.title, rows))
    return found


def _problems(study: Study) -> list[dict[str, Any]]:
    """The settings that each problem's rows have in common."""
    return [
        {
            "title": problem.title,
            "name": problem.name,
            "purpose": problem.purpose,
            "samples": min(row["samples"] for row in problem.rows),
            "reference": floor(problem.rows, "reference_error"),
            "schedule": problem.rows[0]["schedule"],
            "dtype": problem.rows[0]["dtype"],
        }
        for problem in study.problems
    ]


def _refused(study: Study) -> list[tuple[str, str, int]]:
    """Methods that refused or failed, with the reason and the number of cells."""
    found: dict[tuple[str, str], int] = {}
    for row in study.rows:
        if row["status"] != "ok":
            at = label(row), row["status"]
            found[at] = found.get(at, 0) + 1
    return [(*at, count) for at, count in found.items()]
