"""The folder that `--out` names: empty, or begun by us. Anything else is the user's, and a run would write over it."""

from __future__ import annotations

from pathlib import Path

from equipoise.common.errors import StudyError
from equipoise.common.files import PART

# What lies in a run before its task does; a run that was stopped so early begins again.
BEFORE_THE_TASK = frozenset(
    {
        "hospitals",
        "hospitals.json",
        "sites",
        "vendor.safetensors",
        "public-pool.safetensors",
        "base.safetensors",
        "after.safetensors",
        "pool.zip",
        "pool.csv",
        "pool.parquet",
        "pool.safetensors",
        "plan.json",
    }
)


def check_free(folder: Path, mark: str, before: frozenset[str] = frozenset()) -> None:
    """Let `folder` be written to, or refuse.

    Args:
        folder: usually not there yet.
        mark: the file by which we know a folder of ours.
        before: names of what we write before it.

    Raises:
        StudyError: it holds something of somebody else's, or is no folder.
    """
    if (folder / mark).exists() or not folder.exists():
        return
    if not folder.is_dir():
        raise StudyError(f"--out {folder}: is a file; name a folder that is empty or not there yet")
    # Hidden files are no obstacle: nothing that we write is called so.
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith(".") and file.suffix != PART)
    strange = [name for name in names if name not in before]
    if strange:
        more = f" and {len(strange) - 1} more" if strange[1:] else ""
        raise StudyError(
            f"--out {folder}: holds {strange[0]}{more}, and no {mark}: nothing of ours; name a folder that is empty or "
            "not there yet"
        )
