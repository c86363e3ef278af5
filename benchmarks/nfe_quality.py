"""NFE against quality, over solvers, grids, peers and problems: ``python -m benchmarks.nfe_quality``.

Every finished cell is one small file in ``folder``; the same command resumes a run that was stopped, and any number of
workers can share the folder. At the end all cells become ``table.parquet`` and ``report.html``.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from tqdm import tqdm

from benchmarks import report
from benchmarks.cells import Cell
from benchmarks.collect import TABLE, collect, ranks
from benchmarks.config import StudyConfig, register
from benchmarks.measure import measure
from benchmarks.plan import image_cells, in_order, plan
from benchmarks.references import References
from benchmarks.store import Store
from odediff.app import App, leave_failures_to_us, plain_failures
from odediff.config import conf_folder
from odediff.table import text_table

APP = App("nfe_quality", "folder")
BEST = 5
"""The number of methods in the printed table for every problem and ceiling."""


def main() -> None:
    """Run the study, or print one clear line and exit with 2."""
    leave_failures_to_us()
    register()
    with plain_failures(APP):
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=APP.config_name)(_run)()


def _run(config: DictConfig) -> None:
    with plain_failures(APP):
        for key in map(str, config):
            if key not in StudyConfig.__dataclass_fields__:
                raise ValueError(
                    f"{key} is not a key of the study; a solver of your own is FOLDER/solver/NAME.yaml, chosen by "
                    "--config-dir=FOLDER solvers=[NAME]"
                )
        groups = plan(config)
        if config.compute:
            compute(config, groups)
        if HydraConfig.get().mode == RunMode.RUN:
            finish(config, groups, HydraConfig.get().overrides.task)


class Finish(Callback):
    """Writes one table and one report of a sweep's problems when the sweep has ended."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a sweep whose jobs are parts of other studies."""
        with plain_failures(APP):
            for key in _swept(config):
                if key not in ("problem", "worker"):
                    raise ValueError(
                        f"-m {key}: only problem or worker can be swept over; give all values at once, in a list"
                    )

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Finish the study; Hydra calls this when all jobs have ended."""
        with plain_failures(APP):
            given, problems = config.hydra.overrides, _swept(config).get("problem")
            if problems:
                config.problem, config.problems = None, problems
            finish(config, plan(config), ["-m", *given.task, *given.hydra])


def _swept(config: DictConfig) -> dict[str, list[str]]:
    """The keys of a sweep and their values."""
    overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    return {one.key_or_group: list(one.sweep_string_iterator()) for one in overrides if one.is_sweep_override()}


def compute(config: DictConfig, groups: list[list[Cell]]) -> None:
    """Compute the cells that are missing."""
    torch.set_num_threads(config.threads)
    folder = Path(config.folder)
    store, references = Store(folder / "cells"), References(Store(folder / "references"))

    def visit(groups: list[list[Cell]]) -> None:
        cells = in_order(groups, config.worker)
        for cell in progress(cells, f"{cells[0].kind}, worker {config.worker}" if cells else "", config.progress):
            if store.load(cell.key) is None:
                store.save(cell.key, measure(cell, references, config.data.root))

    visit(groups)
    # Every cell above is finished by now, whoever computed it: all workers choose the same methods.
    visit(image_cells(config, groups, store))


def finish(config: DictConfig, groups: list[list[Cell]], arguments: Sequence[str]) -> None:
    """Collect the table, print the best methods and write the report, which quotes the command's ``arguments``."""
    folder = Path(config.folder)
    store = Store(folder / "cells")
    cells = in_order([*groups, *image_cells(config, groups, store)], 0)
    rows = collect(cells, store, folder)
    lost = [row for row in rows if row["status"] != "ok"]
    best = [
        (problem, nfe, place.rank, place.name, place.value, place.low, place.high)
        for (problem, nfe), places in ranks(rows).items()
        for place in places[:BEST]
    ]
    if best:
        print(text_table(("problem", "nfe", "rank", "method | grid | closing", "median error", "low", "high"), best))
        print(f"the {BEST} best deterministic methods for each problem and number of calls; all are in the table")
    table = folder / TABLE if rows else "no table"
    print(f"{len(rows)} of {len(cells)} cells are finished, {len(lost)} of them refused or broken: {table}")
    if len(rows) > len(lost):
        report.write(rows, folder, shlex.join(["python", "-m", "benchmarks.nfe_quality", *arguments]))
        print(f"report: {folder / report.PAGE}")
    else:
        report.remove(folder)
        print("no report: no cell has a result")


def progress(cells: list[Cell], name: str, shown: bool) -> Iterator[Cell]:
    """Show a bar on a terminal, and a line every minute elsewhere."""
    if not shown or sys.stderr.isatty():
        yield from tqdm(cells, desc=name, unit="cell", smoothing=0.02, disable=not shown)
        return
    began = said = time.monotonic()
    for done, cell in enumerate(cells):
        if time.monotonic() - said > 60:
            said = time.monotonic()
            print(f"{name}: {done} of {len(cells)} cells, {(said - began) / 60:.0f} min", file=sys.stderr, flush=True)
        yield cell


if __name__ == "__main__":
    main()
