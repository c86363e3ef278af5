"""One small file for every finished cell, complete or absent, so that nothing is computed twice."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from odediff.files import replacing


class Entry(NamedTuple):
    """A record of plain values, and arrays."""

    record: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Store:
    """A folder of entries named by the hash of what they belong to.

    Files appear by rename, so that any number of workers need no lock: two that compute the same cell write the same
    content twice.
    """

    def __init__(self, folder: Path, option: str = "folder=") -> None:
        self.folder, self.option = folder, option

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self.folder / key[:2] / f"{key}.npz"

    def __contains__(self, key: str) -> bool:
        return self.path(key).is_file()

    def load(self, key: str) -> Entry | None:
        """The entry, or None if there is none. A corrupt entry is removed and reported in one line on stderr."""
        file = self.path(key)
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            record, digest = (str(arrays.pop(name)) for name in ("record", "digest"))
            if digest != _digest(record, arrays):
                raise ValueError("the content is not what was written")
            return Entry(json.loads(record), arrays)
        except Exception:  # a dozen kinds from all layers of the archive, depending on the wrong byte
            print(f"{file} is corrupt and will be computed again", file=sys.stderr)
            file.unlink(missing_ok=True)
            return None

    def save(self, key: str, entry: Entry) -> None:
        """Write the entry.

        Raises:
            ValueError: the folder cannot be written, or the disk is full.
        """
        with writable(self.folder, self.option), replacing(self.path(key)) as partial, partial.open("wb") as file:
            record = json.dumps(entry.record)
            texts = {"record": np.array(record), "digest": np.array(_digest(record, entry.arrays))}
            np.savez(file, **texts, **entry.arrays)  # type: ignore[arg-type]


@contextmanager
def writable(folder: Path, option: str = "folder=") -> Iterator[None]:
    """Turn a full disk or a folder that cannot be written into one clear error; ``option`` chooses another folder."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"folder={folder}: {error.strerror or error}; free space there or choose another with {option}..., then "
            "give the same command again: finished cells are kept"
        ) from error


def require_folder(folder: Path, option: str) -> None:
    """Create the folder that ``option`` chose.

    Raises:
        ValueError: it cannot be written.
    """
    with writable(folder, option):
        folder.mkdir(parents=True, exist_ok=True)


def _digest(record: str, arrays: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of an entry; the checksums of the archive do not cover its own headers."""
    found = hashlib.sha256(record.encode())
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def key_of(settings: Mapping[str, Any]) -> str:
    """The SHA-256 of settings made of plain values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:40]
