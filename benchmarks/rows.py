"""Rows of a table that are measured once, so that a stopped run continues where it was."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.store import Entry, Store, key_of, require_folder
from benchmarks.versions import installed
from odediff.table import text_table


class Rows:
    """The rows of one table, each kept in ``folder`` by its labels, the settings of the table and the versions.

    A row begins with its labels, plain values that name what was measured; `of` loads the rest or measures it.

    Raises:
        ValueError: the folder cannot be written; nothing has been measured.
    """

    def __init__(self, folder: Path, table: str, **settings: Any) -> None:
        require_folder(folder, "--folder ")
        self.store, self.table = Store(folder, "--folder "), table
        self.settings = settings | {package: installed(package) for package in ("odediff", "torch", "numpy")}
        self.rows: list[list[Any]] = []

    def of(self, labels: Sequence[Any], measure: Callable[[], Sequence[Any]]) -> list[Any]:
        """Load or measure the row of ``labels``, and append it to the table."""
        key = key_of({"table": self.table, "labels": list(labels), **self.settings})
        found = self.store.load(key)
        if found is None:
            found = Entry({"values": list(measure())}, {})
            self.store.save(key, found)
            print(*labels, *found.record["values"], file=sys.stderr, flush=True)
        row = [*labels, *found.record["values"]]
        self.rows.append(row)
        return row

    def text(self, header: Sequence[str]) -> str:
        """The table for the terminal."""
        return text_table(header, self.rows)
