"""The cohort of one site: its patients with their inputs, labels, groups and splits, decoded once and kept.

A manifest row is one image or one visit; a patient may have several. Everything that is counted is counted per
patient: the label is positive if any row's is, the groups are those of its rows, which must agree, and the split is
the patient's. What does not fit is an error at the site; nothing of the message reaches the network.

The split by shares is a keyed hash of the patient's identifier: it stays the same for life, whatever is added to the
manifest, and without the key nobody can tell on which side a known patient falls.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equipoise.client.coding import Coding
from equipoise.common.canonical import digest_json
from equipoise.common.errors import DataError
from equipoise.common.fairness.intersections import combined_group
from equipoise.common.images import ImageStore
from equipoise.common.manifest import read_manifest, same
from equipoise.common.query import SPLITS, SplitName
from equipoise.common.sitefile import FractionSplits, Site
from equipoise.common.study import ImageInputs, ScoreInputs, Study


@dataclass(frozen=True)
class Split:
    """A site's patients of one split, decoded.

    Attributes:
        inputs: one row per image or visit: images uint8 (m, C, H, W); tables float32 (m, F), already clipped to the
            declared ranges, scaled to [-1, 1] and followed by the missing flags; given scores float64 (m, k) logits.
        patient: (m,) int64, row to the index of its patient, 0..n-1, non-decreasing: rows of a patient are adjacent.
        label: (n,) int64 in {0, 1}, one per patient.
        groups: attribute name to (n,) int64 level index; `unknown` is the last index (the number of levels).
    """

    inputs: Tensor
    patient: Tensor
    label: Tensor
    groups: dict[str, Tensor]

    @property
    def patients(self) -> int:
        """Number of patients, n."""
        return int(self.label.shape[0])


class Cohort:
    """A site's data under a study. Everything but the images is read and checked here; images at their first use.

    Args:
        study: declares label, attributes and inputs.
        site: the site file, with absolute paths (`load_site`).

    Attributes:
        site: the site's name.
        fingerprint: SHA-256 over the manifest's bytes, the images' names, sizes and times, and how the site file reads
            them; the cohort is the same as long as it is.

    Raises:
        DataError: one line that names the site, the file, the row and the column, and what to do.
    """

    def __init__(self, study: Study, site: Site) -> None:
        manifest = read_manifest(Path(site.data.manifest))
        coding = Coding(manifest, site)
        self.site = site.site
        self.fingerprint = _fingerprint(manifest.fingerprint, site)
        # A table that was saved again may write 17 as 17.0: it is the same patient, in one file and over the years.
        identifiers = list(map(same, manifest.column(site.data.patient, "data.patient of the site file")))
        if "" in identifiers:
            where = coding.where(identifiers.index(""), site.data.patient)
            raise DataError(f"{where}: the patient identifier is empty; every row needs one")
        numbering = {patient: index for index, patient in enumerate(dict.fromkeys(identifiers))}
        self._rows: list[list[int]] = [[] for _ in numbering]
        for row, patient in enumerate(identifiers):
            self._rows[numbering[patient]].append(row)

        positive = coding.labels(study.label)
        self._label = torch.tensor([int(any(positive[row] for row in rows)) for rows in self._rows])
        self._groups = {
            attribute.name: torch.tensor(
                self._one_per_patient(coding.levels(attribute), coding, coding.name(attribute.column))
            )
            for attribute in study.attributes
            if attribute.of is None
        }
        self._groups |= {a.name: self._intersection(study, a.of) for a in study.attributes if a.of is not None}
        self._patients = list(numbering)
        self._split = self._splits(self._patients, coding, site)

        self._table: Tensor | None = None
        if isinstance(study.inputs, ImageInputs):
            if site.data.images is None:
                raise DataError(f"site {site.site}: the study reads images; name a folder or a zip in data.images")
            self._images = ImageStore(Path(site.data.images))
            self._image_names = manifest.column(site.data.image_column, "data.image_column of the site file")
            self._size = study.inputs.size
        elif isinstance(study.inputs, ScoreInputs):
            self._table = coding.scores(study.inputs)
        else:
            self._table = coding.table(study.inputs)
        self._warm: dict[SplitName, Split] = {}

    @property
    def patients(self) -> int:
        """Number of patients in the manifest, all splits together."""
        return len(self._rows)

    @property
    def bytes_held(self) -> int:
        """Size of the rows that are decoded so far."""
        table = 0 if self._table is None else self._table.nbytes
        # Splits are decoded by other threads meanwhile: a copy of the values, taken at once.
        return table + sum(split.inputs.nbytes for split in tuple(self._warm.values()))

    def split_patients(self, name: SplitName) -> int:
        """Number of patients in a split; decodes nothing."""
        return self._split.count(name)

    def members(self) -> list[tuple[str, str]]:
        """(identifier, split) of every patient; they stay at the site."""
        return list(zip(self._patients, self._split, strict=True))

    def split(self, name: SplitName) -> Split:
        """The decoded patients of a split, possibly none; decoded at the first call and kept.

        Raises:
            DataError: an image is missing or damaged; names the file and the row.
        """
        if name not in self._warm:
            chosen = [patient for patient, split in enumerate(self._split) if split == name]
            rows = [row for patient in chosen for row in self._rows[patient]]
            sizes = np.array([len(self._rows[patient]) for patient in chosen], dtype=np.int64)
            index = torch.tensor(chosen, dtype=torch.int64)
            self._warm[name] = Split(
                inputs=self._decode(rows),
                patient=torch.from_numpy(np.repeat(np.arange(len(chosen)), sizes)),
                label=self._label[index],
                groups={attribute: group[index] for attribute, group in self._groups.items()},
            )
        return self._warm[name]

    def _intersection(self, study: Study, parts: Sequence[str]) -> Tensor:
        """Each patient's row in the intersection of attributes; the last one where any of them is unknown."""
        groups = [self._groups[part].numpy() for part in parts]
        return torch.from_numpy(combined_group(groups, [len(study.attribute(part).groups) for part in parts]))

    def _decode(self, rows: list[int]) -> Tensor:
        if self._table is not None:
            return self._table[torch.tensor(rows, dtype=torch.int64)]
        return self._images.decode([self._image_names[row] for row in rows], rows, self._size)

    def _splits(self, patients: list[str], coding: Coding, site: Site) -> list[SplitName]:
        splits = site.data.splits
        if isinstance(splits, FractionSplits):
            key = bytes.fromhex(site.data.split_key)
            return [split_of(patient, key, splits) for patient in patients]
        index: dict[str, int] = {name: position for position, name in enumerate(SPLITS)}
        values = coding.manifest.column(splits.column, "data.splits.column of the site file")
        for row, value in enumerate(values):
            if value not in index:
                where = coding.where(row, splits.column)
                raise DataError(f"{where}: {value!r} is no split; write one of {', '.join(SPLITS)}")
        positions = self._one_per_patient([index[value] for value in values], coding, splits.column)
        return [SPLITS[position] for position in positions]

    def _one_per_patient(self, values: Sequence[int], coding: Coding, column: str) -> list[int]:
        for first, *others in self._rows:
            for row in others:
                if values[row] != values[first]:
                    raise DataError(
                        f"{coding.where(row, column)}: disagrees with data row {first + 1} of the same patient; a "
                        "patient has one group and one split, so make its rows agree (E140)"
                    )
        return [values[rows[0]] for rows in self._rows]


def image_files(site: Site) -> list[tuple[str, int, int]]:
    """Name, size and time of each file that images are read from: edits show in them, and not in the folder's own."""
    if site.data.images is None:
        return []
    root = Path(site.data.images)
    if root.is_dir():
        return [(name, size, time) for _, name, size, time in sorted(_files_below(str(root)))]
    if not root.is_file():
        return []  # which is told where an image is wanted
    status = root.stat()
    return [(root.name, status.st_size, status.st_mtime_ns)]


def _files_below(folder: str) -> Iterator[tuple[str, str, int, int]]:
    """Path, name, size and time. A site looks at them at every release: a fourth of the time of `Path.rglob`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files_below(entry.path)
            elif entry.is_file():
                status = entry.stat()
                yield entry.path, entry.name, status.st_size, status.st_mtime_ns


def _fingerprint(manifest: str, site: Site) -> str:
    files = image_files(site)
    reading = site.data.model_dump(mode="json", exclude={"manifest", "images", "account"})
    return digest_json([manifest, [list(file) for file in files], reading, site.coding])


def split_of(patient: str, key: bytes, splits: FractionSplits) -> SplitName:
    """The split of a patient: HMAC-SHA256(key, patient) as a fraction of 1, cut at the cumulated shares.

    >>> split_of("p1", bytes(32), FractionSplits(train=0, validation=1, test=0))
    'validation'
    """
    digest = hmac.new(key, patient.encode(), hashlib.sha256).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    if fraction < splits.train:
        return "train"
    # The last share that is not 0 also takes what rounding leaves below 1.
    return "validation" if fraction < splits.train + splits.validation or not splits.test else "test"
