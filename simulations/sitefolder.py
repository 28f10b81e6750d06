"""Writes a hospital as a hospital would keep it: a manifest, a site file and, if it has any, its images."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from equipoise.common.errors import StorageError

MANIFEST = "manifest.csv"
SITE_FILE = "site.yaml"


@dataclass(frozen=True)
class SitePaths:
    """Where a written hospital lies.

    Attributes:
        site: the hospital's name.
        folder: holds the two files below.
        site_file: `site.yaml`, to be read by `equipoise.common.sitefile.load_site`.
        manifest: `manifest.csv`.
    """

    site: str
    folder: Path
    site_file: Path
    manifest: Path


def write_site(
    folder: Path,
    site: str,
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    data: Mapping[str, Any],
    coding: Mapping[str, Mapping[str, str]] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> SitePaths:
    """Write `folder/site/` with its manifest, its site file and further files.

    Args:
        folder: parent of the hospitals' folders; made if it does not exist.
        site: the hospital's name.
        header: the manifest's column names.
        rows: the manifest's rows, in the order of `header`.
        data: the site file's `data` without `manifest`.
        coding: the site file's `coding`.
        files: name to content of what else lies in the folder.

    Raises:
        StorageError: a file could not be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    content: dict[str, Any] = {"site": site, "data": {"manifest": MANIFEST, **data}}
    if coding:
        content["coding"] = {column: dict(values) for column, values in coding.items()}
    place = folder / site
    paths = SitePaths(site, place, place / SITE_FILE, place / MANIFEST)
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, file in (files or {}).items():
            (place / name).write_bytes(file)
        paths.manifest.write_text(text.getvalue(), encoding="utf-8", newline="")
        paths.site_file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8", newline="")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StorageError(f"{place}: hospital {site} could not be written ({reason})") from None
    return paths
