"""Where a site keeps the state of a secure release between its stages: in files of the agent.

For each run there is one record, which holds the secrets of the release that is open, and the replies already given.
Both are whole or not there. What is deleted is deleted as files are: a copy of the disk may still hold it, which is why
the agent's folder belongs on an encrypted disk, and why no more than one release is ever open.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from equipoise.common.canonical import sha256
from equipoise.common.errors import StorageError
from equipoise.common.files import write_whole
from equipoise.common.secure_sum.messages import Stage


class SessionStore(Protocol):
    """What `SecureSessions` needs of a store."""

    def read(self, run: str) -> bytes | None:
        """The record of a run, or None."""
        ...

    def write(self, run: str, record: bytes) -> None:
        """Replace the record of a run."""
        ...

    def read_reply(self, run: str, stage: Stage) -> bytes | None:
        """The reply given in a stage, or None."""
        ...

    def write_reply(self, run: str, stage: Stage, reply: bytes) -> None:
        """Keep the reply of a stage."""
        ...

    def drop_replies(self, run: str) -> None:
        """Delete all replies of a run."""
        ...


class FolderStore:
    """A store in a folder that the agent's user alone can read.

    Args:
        folder: made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, run: str) -> bytes | None:
        """The record of a run, or None.

        Raises:
            StorageError: it is there and cannot be read.
        """
        return _read(self._path(run) / "record.json")

    def write(self, run: str, record: bytes) -> None:
        """Replace the record of a run.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        write_whole(self._made(run) / "record.json", record)

    def read_reply(self, run: str, stage: Stage) -> bytes | None:
        """The reply given in a stage, or None.

        Raises:
            StorageError: it is there and cannot be read.
        """
        return _read(self._path(run) / f"reply-{int(stage)}")

    def write_reply(self, run: str, stage: Stage, reply: bytes) -> None:
        """Keep the reply of a stage.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        write_whole(self._made(run) / f"reply-{int(stage)}", reply)

    def drop_replies(self, run: str) -> None:
        """Delete all replies of a run."""
        for stage in Stage:
            with suppress(FileNotFoundError):
                (self._path(run) / f"reply-{int(stage)}").unlink()

    def _path(self, run: str) -> Path:
        # A run's name comes from the server and is no name of a file; with it goes the study's hash.
        return self._folder / sha256(run.encode())[:32]

    def _made(self, run: str) -> Path:
        path = self._path(run)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
        except OSError as error:
            raise StorageError(f"{path}: cannot be made ({os.strerror(error.errno or 0)}); nothing was sent") from None
        return path


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({os.strerror(error.errno or 0)}); restore it") from None
