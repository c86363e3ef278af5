"""What ends a sweep: one table and one picture of all its jobs."""

from __future__ import annotations

import csv
import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from safetensors.torch import load_file

from odediff.app import plain_failures
from odediff.explain import SWEEP
from odediff.files import replacing, write_json
from odediff.pictures import curves, labelled_grid, montage
from odediff.run import PASSING, RECORD
from odediff.table import text_table

COLUMNS = ("solver", "nfe", "network_evaluations", "error", "seconds")
LABELS = {
    "nfe": "network calls (NFE)",
    "error": "rms error",
    "frechet": "Frechet distance",
    "accuracy": "share classified as asked",
}
EXCLUSIVE = {"steps", "nfe", "rtol"}
"""Keys of which a job has one: giving any of them replaces what an experiment sweeps over."""
ALONG = EXCLUSIVE | {"solver.rtol"}
"""Keys that move a job along its curve; any other key starts another curve."""
CLOCK = 2.0
"""Seconds by which the clock of a file system may lag behind."""
NUMBER = "${hydra.job.num}"
"""The reference that a job's folder is named by, unless hydra.sweep.subdir says otherwise."""
SHOWN = 8
"""The number of samples in each cell of a gallery, in two rows."""


class SweepSummary(Callback):
    """Collect every job's run.json into sweep.csv, sweep.png, run.json and a table on the terminal.

    ``columns`` are keys of the jobs' run.json, in the order of the table, which also has what the jobs differ in; keys
    that no job has are left out. The picture has one curve of ``y`` over ``x`` for each set of jobs that differ only in
    steps, calls and tolerances. With a ``note``, such as "rms {error:.2f}", it shows instead each job's first samples
    above that note, one row for each curve and one column for each ``x``.

    Failed jobs appear in neither; they are named at the end, and the exit code is 1.
    """

    def __init__(
        self,
        columns: Sequence[str] = COLUMNS,
        x: str = "nfe",
        y: str = "error",
        title: str = "Error against calls",
        note: str | None = None,
    ) -> None:
        self.columns, self.x, self.y, self.title, self.note = columns, x, y, title, note
        self.started = 0.0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the first job: an experiment does not sweep over what the command line gives.

        Hydra itself would run the product of both, every job several times. Also, it does not accept null for a group,
        for which "none of them" is written []. Hydra turns what a callback raises into a warning and goes on, so that
        failures end here.
        """
        with plain_failures(SWEEP):
            self._begin(config)

    def _begin(self, config: DictConfig) -> None:
        Path(config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        self.started = time.time()
        given = {one.key_or_group for one in OverridesParser.create().parse_overrides(config.hydra.overrides.task)}
        if given & EXCLUSIVE:
            given |= EXCLUSIVE
        with flag_override(config, ["readonly", "struct"], False):
            for key in given:
                (config.hydra.sweeper.get("params") or {}).pop(key, None)
            config.hydra.overrides.task = [
                re.sub(r"\bnull\b", "[]", word) if re.match(r"(grid|schedule)=.*,", word) else word
                for word in config.hydra.overrides.task
            ]

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before every job: print which one it is."""
        if config.hydra.mode == RunMode.MULTIRUN:
            chosen = (word for word in config.hydra.overrides.task if not word.startswith("+experiment="))
            print(f"job {config.hydra.job.num}: {' '.join(chosen)}", flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra after the last job."""
        with plain_failures(SWEEP):
            self._end(config)

    def _end(self, config: DictConfig) -> None:
        folder = Path(config.hydra.sweep.dir)
        # Unresolved: what it refers to, such as the number of the job, is known only within a job.
        subdir = OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"]  # type: ignore[index,call-overload]
        # A part that refers to anything but the number, such as the job's words, may contain any number of slashes.
        levels = ["**/*" if "${" in part.replace(NUMBER, "") else "*" for part in Path(subdir).parts]
        # A set, since with two such parts some versions of Python find a file once for each way to part its folders.
        found = {file for file in folder.glob("/".join([*levels, RECORD])) if file.is_file()}
        # An earlier sweep may have left jobs in the same folder.
        files = sorted((file for file in found if file.stat().st_mtime >= self.started - CLOCK), key=_job_number)
        jobs = [{"folder": str(file.parent.relative_to(folder)), **json.loads(file.read_text())} for file in files]
        for job, given in zip(jobs, differences([job["overrides"] for job in jobs]), strict=True):
            job["given"] = given
        finished, failed = ([job for job in jobs if key in job] for key in ("nfe", "failed"))
        if finished:
            self._summarise(folder, config, finished)
        elif jobs and not failed:
            print(f"no table: this task records no number of calls; see the {RECORD} of each job in {folder}")
        if failed:
            names = "; ".join(" ".join((job["folder"], *_words(job["given"]))) for job in failed)
            print(f"odediff: {len(failed)} of {len(jobs)} jobs failed, see their run.json: {names}", file=sys.stderr)
            sys.exit(1)

    def _summarise(self, folder: Path, config: DictConfig, jobs: Sequence[dict[str, Any]]) -> None:
        """Write the table and the picture of the finished jobs."""
        given = dict.fromkeys(key for job in jobs for key in job["given"])
        others = [key for key in given if key.rpartition("@")[2].partition(".")[0] not in self.columns]
        records = [{**job["given"], **job} for job in jobs]
        columns = [*self.columns[:1], *others, *self.columns[1:]]
        header = [column for column in columns if any(record.get(column) is not None for record in records)]
        rows = [[record.get(column) for column in header] for record in records]
        with replacing(folder / "sweep.csv") as partial, partial.open("w", newline="") as file:
            csv.writer(file).writerows((header, *rows))
        write_json(
            folder / RECORD,
            {
                "overrides": list(config.hydra.overrides.task),
                "versions": jobs[0]["versions"],
                "jobs": [
                    {"folder": job["folder"], **dict(zip(header, row, strict=True))}
                    for job, row in zip(jobs, rows, strict=True)
                ],
            },
        )
        if without := [job["folder"] for job in jobs if self.x not in job]:
            raise ValueError(
                f"hydra.callbacks.sweep.x={self.x} is not in the run.json of job {without[0]}; name one that is, "
                "such as steps or nfe"
            )
        drawn = self._gallery(folder, jobs) if self.note else self._curves(folder, jobs)
        print(text_table(header, rows))
        print(f"table{' and picture' if drawn else ''} in {folder}")

    def _curves(self, folder: Path, jobs: Sequence[dict[str, Any]]) -> bool:
        series: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for job in jobs:
            if job.get(self.y) is not None:
                series[_series(job)].append((job[self.x], job[self.y]))
        if series:
            x_label, y_label = (LABELS.get(key, key) for key in (self.x, self.y))
            curves(folder / "sweep.png", series, x_label, y_label, self.title)
        return bool(series)

    def _gallery(self, folder: Path, jobs: Sequence[dict[str, Any]]) -> bool:
        cells = {(_series(job), job[self.x]): job for job in jobs}
        rows, columns = (list(dict.fromkeys(keys)) for keys in zip(*cells, strict=True))
        if not len(jobs) == len(cells) == len(rows) * len(columns):
            print(f"no picture: {len(jobs)} jobs do not fill {len(rows)} rows of {len(columns)} cells, one each")
            return False
        table = [[cells[row, column] for column in columns] for row in rows]
        labelled_grid(
            folder / "sweep.png",
            [[self._samples(folder / job["folder"]) for job in line] for line in table],
            rows,
            [f"{column} {LABELS.get(self.x, self.x)}" for column in columns],
            self.title,
            [[self._noted(job) for job in line] for line in table],
            inches=0.8,
        )
        return True

    def _noted(self, record: dict[str, Any]) -> str:
        """The note of a job; empty if a value that it names was not measured."""
        try:
            return str(self.note).format(**record)
        except (KeyError, TypeError):
            return ""

    @staticmethod
    def _samples(folder: Path) -> Any:
        images = load_file(folder / "samples.safetensors")["samples"][:SHOWN]
        return montage(images, columns=(len(images) + 1) // 2)


def differences(jobs: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """For each job, the overrides (key to value) that are not the same in all jobs."""
    given = [dict(word.lstrip("+").split("=", 1) for word in words if "=" in word) for words in jobs]
    for words in given:
        for key in PASSING:
            words.pop(key, None)
    keys = dict.fromkeys(key for words in given for key in words)
    apart = [key for key in keys if len({words.get(key) for words in given}) > 1]
    return [{key: words[key] for key in apart if key in words} for words in given]


def _words(given: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in given.items()]


def _series(job: dict[str, Any]) -> str:
    """The name of a job's curve: what sets it apart from the others, or the class of its solver if nothing does."""
    apart = {key: value for key, value in job["given"].items() if key not in ALONG}
    return " ".join(_words(apart)) or job["solver"].partition("(")[0]


def _job_number(file: Path) -> tuple[int, str]:
    name = file.parent.name
    return (int(name) if name.isdigit() else 0, str(file))
