"""Files that are whole or not there: written beside their place, flushed to the disk, and moved in."""

from __future__ import annotations

import os
from pathlib import Path

from equipoise.common.errors import StorageError


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash or a full disk leaves the old file or none.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written ({os.strerror(error.errno or 0)}); nothing was lost") from None


def drop_unfinished_line(path: Path) -> None:
    """Cut off a last line that a crash left without its end; whoever was writing it never went on from it.

    Raises:
        StorageError: the file cannot be written.
    """
    if not path.exists():
        return
    try:
        with path.open("rb+") as file:
            data = file.read()
            if not data.endswith(b"\n"):
                file.truncate(data.rfind(b"\n") + 1)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({os.strerror(error.errno or 0)}); nothing was lost") from None


def append_line(path: Path, line: bytes) -> None:
    """Append one line to `path`; a line that does not fit is taken back.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    size = 0
    try:
        with path.open("ab") as file:
            size = file.tell()
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if path.exists():
            os.truncate(path, size)
        raise StorageError(f"{path}: cannot be written ({os.strerror(error.errno or 0)}); nothing was lost") from None
