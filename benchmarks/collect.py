"""One table from all finished cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import Cell
from benchmarks.store import Store, writable
from odediff.files import replacing
from odediff.ranking import Ranked, rank

TABLE = "table.parquet"
LISTS = {"errors": "float32", "images": "uint8", "frechet_resampled": "float32"}
"""Columns whose values are lists, and the types of their elements."""


def collect(cells: Iterable[Cell], store: Store, folder: Path) -> list[dict[str, Any]]:
    """Read the finished cells in the order of the plan and write ``table.parquet``; returns its rows."""
    rows = []
    for cell in cells:
        entry = store.load(cell.key)
        if entry is not None:
            lists = {name: entry.arrays[name].ravel() if name in entry.arrays else None for name in LISTS}
            rows.append({"cell": cell.key, **entry.record, **lists})
    if rows:
        write_table(folder / TABLE, rows)
    return rows


def write_table(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of plain values and arrays as parquet, with every column that any row has."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        message = "pyarrow, which writes the table, is not installed: pip install 'odediff[bench]'"
        raise ValueError(message) from None
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        kind = pa.list_(pa.type_for_alias(LISTS[name])) if name in LISTS else None
        columns[name] = pa.array(values, type=kind)
    with writable(file.parent), replacing(file) as partial:
        pq.write_table(pa.table(columns), partial, compression="zstd")


def ranks(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], list[Ranked]]:
    """Rank the deterministic methods by problem and ceiling; seeds are pooled. Names are ``method | grid | closing``.

    A method is ranked where it has all seeds that any method has there.
    """
    errors: dict[tuple[str, int], dict[str, dict[int, np.ndarray]]] = {}
    for row in rows:
        if row.get("errors") is not None and row["nfe"] is not None:
            here = errors.setdefault((row["problem"], row["nfe"]), {})
            here.setdefault(label(row), {})[row["seed"]] = np.asarray(row["errors"], dtype=np.float64)
    result = {}
    for at, methods in errors.items():
        seeds = sorted({seed for by_seed in methods.values() for seed in by_seed})
        whole = {
            name: np.concatenate([by_seed[seed] for seed in seeds])
            for name, by_seed in methods.items()
            if len(by_seed) == len(seeds)
        }
        if whole:
            result[at] = rank(whole)
    return result


def label(row: Mapping[str, Any]) -> str:
    """A method with its grid and closing."""
    source = "" if row["source"] == "odediff" else f"{row['source']} "
    return f"{source}{row['method']} | {row['grid']} | {row['closing']}"
