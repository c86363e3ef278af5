"""The end of a sweep: one table and one picture of all its jobs."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, flag_override
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

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the first job: what the command line gives, an experiment does not sweep over.

        Hydra itself would run the product of both, every job several times.
        """
        given = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        with flag_override(config, ["readonly", "struct"], False):
            for override in given:
                (config.hydra.sweeper.get("params") or {}).pop(override.key_or_group, None)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before every job: say which it is."""
        if config.hydra.mode == RunMode.MULTIRUN:
            chosen = (word for word in config.hydra.overrides.task if not word.startswith("+experiment="))
            print(f"job {config.hydra.job.num}: {' '.join(chosen)}", flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra when all jobs have ended."""
        folder = Path(config.hydra.sweep.dir)
        files = sorted(folder.glob("*/run.json"), key=_job_number)
        records = [{"folder": file.parent.name, **json.loads(file.read_text())} for file in files]
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
        drawn = self._gallery(folder, records) if self.note else self._curves(folder, records)
        print(text_table(header, rows))
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
            [[str(self.note).format(**record) for record in line] for line in table],
            inches=0.8,
        )
        return True

    @staticmethod
    def _samples(folder: Path) -> Any:
        images = load_file(folder / "samples.safetensors")["samples"][:SHOWN]
        return montage(images, columns=(len(images) + 1) // 2)


def _job_number(file: Path) -> tuple[int, str]:
    name = file.parent.name
    return (int(name) if name.isdigit() else 0, name)
