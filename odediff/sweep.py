"""The end of a sweep: one table and one picture of all its jobs."""

from __future__ import annotations

import csv
import json
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

from odediff.files import replacing, write_json
from odediff.pictures import curves, labelled_grid, montage
from odediff.table import text_table

COLUMNS = ("solver", "nfe", "network_evaluations", "error", "seconds")
LABELS = {
    "nfe": "network calls (NFE)",
    "error": "rms error",
    "frechet": "Frechet distance",
    "accuracy": "share classified as asked",
}
EXCLUSIVE = {"steps", "nfe", "rtol"}
"""Keys of which a job has one: whoever gives it takes the place of what an experiment sweeps over."""
CLOCK = 2.0
"""Seconds by which the clock of a file system may lag."""
SHOWN = 8
"""Samples in each cell of a gallery, in two rows."""


class SweepSummary(Callback):
    """Collect every job's run.json into sweep.csv, sweep.png, run.json and a table on the terminal.

    ``columns`` are keys of the jobs' run.json, in the order of the table; those that no job has are left out. The
    picture has a curve of ``y`` over ``x`` for every value of ``series``. With a ``note``, such as "rms {error:.2f}",
    it shows instead each job's first samples above that note, a row for each value of ``series``, a column for each of
    ``x``.
    """

    def __init__(
        self,
        columns: Sequence[str] = COLUMNS,
        series: str = "solver",
        x: str = "nfe",
        y: str = "error",
        title: str = "Error against calls",
        note: str | None = None,
    ) -> None:
        self.columns, self.series, self.x, self.y, self.title, self.note = columns, series, x, y, title, note
        self.started = 0.0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the first job: what the command line gives, an experiment does not sweep over.

        Hydra itself would run the product of both, every job several times.
        """
        self.started = time.time()
        given = {one.key_or_group for one in OverridesParser.create().parse_overrides(config.hydra.overrides.task)}
        if given & EXCLUSIVE:
            given |= EXCLUSIVE
        with flag_override(config, ["readonly", "struct"], False):
            for key in given:
                (config.hydra.sweeper.get("params") or {}).pop(key, None)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before every job: say which it is."""
        if config.hydra.mode == RunMode.MULTIRUN:
            chosen = (word for word in config.hydra.overrides.task if not word.startswith("+experiment="))
            print(f"job {config.hydra.job.num}: {' '.join(chosen)}", flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra when all jobs have ended."""
        folder = Path(config.hydra.sweep.dir)
        # As it is written: what it refers to, such as the number of the job, is known within a job alone.
        subdir = OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"]  # type: ignore[index,call-overload]
        depth = len(Path(subdir).parts)
        found = (file for file in folder.glob("/".join(["*"] * depth + ["run.json"])) if file.is_file())
        # An earlier sweep may have left jobs in the same folder.
        files = sorted((file for file in found if file.stat().st_mtime >= self.started - CLOCK), key=_job_number)
        records = [{"folder": str(file.parent.relative_to(folder)), **json.loads(file.read_text())} for file in files]
        records = [record for record in records if "nfe" in record]
        if not records:
            return
        header = [column for column in self.columns if any(record.get(column) is not None for record in records)]
        rows = [[record.get(column) for column in header] for record in records]
        with replacing(folder / "sweep.csv") as partial, partial.open("w", newline="") as file:
            csv.writer(file).writerows((header, *rows))
        write_json(
            folder / "run.json",
            {
                "overrides": list(config.hydra.overrides.task),
                "versions": records[0]["versions"],
                "jobs": [
                    {"folder": record["folder"], **dict(zip(header, row, strict=True))}
                    for record, row in zip(records, rows, strict=True)
                ],
            },
        )
        print(text_table(header, rows))
        drawn = self._gallery(folder, records) if self.note else self._curves(folder, records)
        print(f"table{' and picture' if drawn else ''} in {folder}")

    def _curves(self, folder: Path, records: Sequence[dict[str, Any]]) -> bool:
        series: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for record in records:
            if record.get(self.y) is not None:
                series[record[self.series]].append((record[self.x], record[self.y]))
        if series:
            x_label, y_label = (LABELS.get(key, key) for key in (self.x, self.y))
            curves(folder / "sweep.png", series, x_label, y_label, self.title)
        return bool(series)

    def _gallery(self, folder: Path, records: Sequence[dict[str, Any]]) -> bool:
        cells = {(record[self.series], record[self.x]): record for record in records}
        rows, columns = (list(dict.fromkeys(keys)) for keys in zip(*cells, strict=True))
        if len(cells) < len(rows) * len(columns):
            return False
        table = [[cells[row, column] for column in columns] for row in rows]
        labelled_grid(
            folder / "sweep.png",
            [[self._samples(folder / record["folder"]) for record in line] for line in table],
            rows,
            [f"{column} {LABELS.get(self.x, self.x)}" for column in columns],
            self.title,
            [[self._noted(record) for record in line] for line in table],
            inches=0.8,
        )
        return True

    def _noted(self, record: dict[str, Any]) -> str:
        """The note of a job; nothing where what it names was not measured."""
        try:
            return str(self.note).format(**record)
        except (KeyError, TypeError):
            return ""

    @staticmethod
    def _samples(folder: Path) -> Any:
        images = load_file(folder / "samples.safetensors")["samples"][:SHOWN]
        return montage(images, columns=(len(images) + 1) // 2)


def _job_number(file: Path) -> tuple[int, str]:
    name = file.parent.name
    return (int(name) if name.isdigit() else 0, name)
