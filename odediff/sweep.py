"""The end of a sweep: one table and one plot of all its jobs."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from odediff.files import replacing
from odediff.pictures import curves
from odediff.table import text_table

COLUMNS = ("solver", "nfe", "network_evaluations", "error", "seconds")


class SweepSummary(Callback):
    """Collect every job's run.json into sweep.csv, sweep.png and a table on the terminal."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra when all jobs have ended."""
        folder = Path(config.hydra.sweep.dir)
        records = [json.loads(file.read_text()) for file in sorted(folder.glob("*/run.json"), key=_job_number)]
        rows = [[record.get(column) for column in COLUMNS] for record in records if "nfe" in record]
        if not rows:
            return
        with replacing(folder / "sweep.csv") as partial, partial.open("w", newline="") as file:
            csv.writer(file).writerows((COLUMNS, *rows))
        series: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for solver, nfe, _, error, _ in rows:
            if error is not None:
                series[solver].append((nfe, error))
        if series:
            curves(folder / "sweep.png", series, "network calls (NFE)", "rms error", "Error against calls")
        print(text_table(COLUMNS, rows))
        print(f"table and plot in {folder}")


def _job_number(file: Path) -> tuple[int, str]:
    name = file.parent.name
    return (int(name) if name.isdigit() else 0, name)
