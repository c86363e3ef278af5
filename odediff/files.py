"""Files that are either complete or absent."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; on success it becomes ``path``, on failure it is removed.

    Raises:
        OSError: the disk is full; it carries ENOSPC and ``path``, whatever error the writing library raises.
    """
    with _named_if_full(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder has the name of the file to be written", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            os.chmod(partial, 0o666 & ~_umask())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def _named_if_full(path: Path) -> Iterator[None]:
    full = os.strerror(errno.ENOSPC)
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or full in str(error):
            raise OSError(errno.ENOSPC, full, str(path)) from error
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON, atomically."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
