"""``task=inversion_table``: how closely each way to the noise and back returns, and what its noise is like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig

from odediff.images import embedded_images
from odediff.inversion import encoding_times
from odediff.model import Model
from odediff.pictures import labelled_grid, montage
from odediff.round_trip import COLUMNS, exact_latent, measure
from odediff.run import build, refuse_unused
from odediff.table import text_table
from solvers import Solver


def run(config: DictConfig, methods: Mapping[str, Any], reference_steps: int) -> None:
    """Encode and decode ``samples`` images by every method; write inversion_table.png and run.json.

    The columns are those of `odediff.round_trip.measure`.
    """
    refuse_unused(
        ("solver", "closing", "rtol"), "the table is about task.methods; +task.methods.NAME._target_= adds one"
    )
    refuse_unused(("seed",), "an inversion draws no random numbers")
    run, count = build(config), config.samples
    pictures, labels = embedded_images(count, run.shape)
    if "label" in run.model.null:
        refuse_unused(("model.condition.label",), "the embedded images are inverted under their own labels")
    model = run.conditioned(count, **run.labelled(labels))
    given = pictures.to(device=config.device, dtype=run.dtype)
    settings = {"grid": run.grid, "steps": config.steps, "nfe": config.nfe}
    ways = {name: _way(name, described, model, settings) for name, described in methods.items()}
    exact = exact_latent(model, given, run.grid, reference_steps)
    records: list[dict[str, Any]] = []
    cells, notes = [[montage(given, count), montage(given - given, count)]], [["", ""]]
    for name, solver in ways.items():
        record, again = measure(model, given, exact, solver, settings)
        records.append({"method": name, **record})
        cells.append([montage(again, count), montage((again - given) * 4, count)])
        notes.append([f"largest error {record['with pair']:.1e}", f"latent error {record['latent']:.1e}"])
    labelled_grid(
        run.folder / "inversion_table.png",
        cells,
        ["image", *ways],
        ["there and back", "difference x 4"],
        f"There and back at guidance {run.model.guidance:g}",
        notes,
        inches=0.6,
    )
    run.record({"solver": {name: str(solver) for name, solver in ways.items()}, "table": records})
    print(text_table(("method", *COLUMNS), [[record[column] for column in ("method", *COLUMNS)] for record in records]))
    print(f"table and picture in {run.folder}")


def _way(name: str, described: Any, model: Model, settings: Mapping[str, Any]) -> Solver:
    """The solver of a method, after a check that it can invert the model."""
    try:
        solver = instantiate(described)
        encoding_times(model, solver, **settings)
    except (HydraException, TypeError, ValueError) as error:
        raise ValueError(f"task.methods.{name}: {error}") from error
    return solver
