"""Files that are whole or not there: written beside their place, flushed to the disk, and moved in."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from equipoise.common.errors import StorageError

PART = ".part"
"""How the name of a file ends that is being written."""


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash or a full disk leaves the old file or none.

    Several may write one file at once: each has a part of its own beside it, and the last one's content stays.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        # The new name is the folder's: what follows from it must not outlive a power cut that brings the old file back.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _not_written(path, error) from None
    finally:
        # Moved away, unless the disk was full or somebody pressed Ctrl-C; where there is no folder, there is no part.
        with suppress(OSError):
            part.unlink()


def drop_parts(folder: Path) -> None:
    """Remove what writers that were killed have left below `folder`; call it where nobody writes.

    Raises:
        StorageError: a part cannot be removed.
    """
    for part in folder.rglob("*." + "[0-9a-f]" * 8 + PART):
        try:
            part.unlink()
        except OSError as error:
            raise _not_written(part, error) from None


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
        raise _not_written(path, error) from None


def append_line(path: Path, line: bytes) -> None:
    """Append one line to `path`; a line that does not fit is taken back.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    size: int | None = None
    try:
        with path.open("ab") as file:
            size = file.tell()
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        # A file that could not even be opened keeps all its lines.
        if size is not None:
            os.truncate(path, size)
        raise _not_written(path, error) from None


def _not_written(path: Path, error: OSError) -> StorageError:
    reason = os.strerror(error.errno or 0)
    advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "correct the path or its permissions"
    return StorageError(
        f"{path}: cannot be written ({reason}); nothing was lost: {advice} and run it again, a simulation with --resume"
    )
