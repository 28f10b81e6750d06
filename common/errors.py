"""Errors made for people: one line that says what, where, what was expected and what to do.

Every error that a user can cause is an :class:`EquipoiseError`; the command line prints its message without a
traceback and exits with its `exit_code`. A site never sends a message to the server: what crosses the network is
`code` alone.
"""

from __future__ import annotations


class EquipoiseError(Exception):
    """Base of all errors that have a remedy. `code` may cross the network; the message never does."""

    exit_code = 1
    code = "internal"


class StudyError(EquipoiseError):
    """A study file, a site file or an option is wrong (unknown key, wrong type, values that do not agree)."""

    exit_code = 2
    code = "study"


class DataError(EquipoiseError):
    """A manifest, an image or a coding is wrong."""

    exit_code = 3
    code = "data"


class ModelError(EquipoiseError):
    """Weights or a model factory do not fit the study."""

    exit_code = 4
    code = "model"


class RefusedError(EquipoiseError):
    """A site's policy refuses a query."""

    exit_code = 5
    code = "refused"


class QuorumError(EquipoiseError):
    """Too few sites answered, or an answer failed its checks."""

    exit_code = 6
    code = "quorum"


class SecureSumError(QuorumError):
    """A message of the secure sum failed a check; its own `code` says which, and never anything about patients."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class TranscriptError(EquipoiseError):
    """A transcript is truncated, changed or forged, or a resumed run asks something else than it did before."""

    exit_code = 7
    code = "transcript"


class StorageError(EquipoiseError):
    """A file could not be written (full disk, no permission); nothing half-written is left behind."""

    exit_code = 8
    code = "storage"


class UnreachableError(EquipoiseError):
    """A site agent or a SuperLink does not answer."""

    exit_code = 9
    code = "unreachable"
