"""One small file for every finished cell, whole or absent: what is there is never computed again."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from odediff.files import replacing

UNREADABLE = (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
"""What a file that is cut short or altered raises; np.load checks the sums of the archive."""


class Entry(NamedTuple):
    """A record of plain values, and arrays."""

    record: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Store:
    """A folder of entries named by the hash of what they belong to.

    Files appear by rename, so that any number of workers need no lock: two that compute the same cell write the same
    content twice.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self.folder / key[:2] / f"{key}.npz"

    def __contains__(self, key: str) -> bool:
        return self.path(key).is_file()

    def load(self, key: str) -> Entry | None:
        """The entry, or None where there is none. A corrupt one is removed, with one line on stderr."""
        file = self.path(key)
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            return Entry(json.loads(str(arrays.pop("record"))), arrays)
        except UNREADABLE:
            print(f"{file} is corrupt and will be computed again", file=sys.stderr)
            file.unlink(missing_ok=True)
            return None

    def save(self, key: str, entry: Entry) -> None:
        """Write the entry.

        Raises:
            ValueError: the folder cannot be written, or the disk is full.
        """
        with writable(self.folder), replacing(self.path(key)) as partial, partial.open("wb") as file:
            np.savez(file, record=np.array(json.dumps(entry.record)), **entry.arrays)  # type: ignore[arg-type]


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Turn a full disk or a folder that cannot be written into one clear error."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"folder={folder}: {error.strerror or error}; free space there or choose another with folder=..., then "
            "give the same command again: finished cells are kept"
        ) from error


def key_of(settings: Mapping[str, Any]) -> str:
    """The SHA-256 of settings made of plain values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:40]
