"""Rows that are measured once: what is kept is not measured again, and what differs is."""

from pathlib import Path

import pytest

from benchmarks.rows import Rows


def test_a_row_is_measured_once_and_again_under_other_labels_or_settings(tmp_path: Path):
    measured = []

    def row(table: str, label: str, **settings: int) -> list:
        def measure() -> list:
            measured.append((table, label, settings))
            return [len(measured), float("inf")]

        return Rows(tmp_path, table, **settings).of((label, 1), measure)

    first = row("one", "a", images=2)
    assert row("one", "a", images=2) == first == ["a", 1, 1, float("inf")]
    assert row("one", "b", images=2)[2] == 2
    assert row("two", "a", images=2)[2] == 3
    assert row("one", "a", images=3)[2] == 4
    assert len(measured) == 4


def test_a_table_shows_labels_and_values(tmp_path: Path):
    rows = Rows(tmp_path, "one")
    rows.of(("a", 10), lambda: [0.125])
    assert rows.text(("name", "steps", "error")).splitlines()[-1].split() == ["a", "10", "0.125"]


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder=.*choose another"):
        Rows(tmp_path / "file" / "below", "one")
