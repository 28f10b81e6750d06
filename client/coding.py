"""From a manifest's own words to the study's: labels, groups and features of every row.

A site file says how the site's columns are called (`data.columns`) and what its values mean (`coding`). Coding applies
to labels and attributes; features are numbers as they stand. A value that is still not in the study's words is an
error, since a silent guess would move patients into a wrong group.
"""

from __future__ import annotations

import math
from bisect import bisect_right

import torch
from torch import Tensor

from equipoise.common.attribute import UNKNOWN, Attribute
from equipoise.common.errors import DataError
from equipoise.common.features import feature_table
from equipoise.common.manifest import Manifest, number, same
from equipoise.common.sitefile import Site
from equipoise.common.study import Label, ScoreInputs, TableInputs

_NO_LABEL = ("", "na", "n/a", "nan", "null", "?", ".", UNKNOWN, "missing")  # as tables write it
SMALLEST_SCORE = 1e-15  # probabilities of 0 and 1 have no logit; no risk score says as much


class Coding:
    """A site's manifest, read in the study's words.

    Raises:
        DataError: `coding` has a key that is neither in `data.columns` nor a column of the manifest.
    """

    def __init__(self, manifest: Manifest, site: Site) -> None:
        self.manifest = manifest
        self._site = site
        for key in site.coding:
            if key not in site.data.columns and key not in manifest.columns:
                raise DataError(
                    f"site {site.site}: coding.{key}: no such column in {manifest.path} nor under data.columns; "
                    "correct the key of the site file (E120)"
                )

    def where(self, row: int, column: str) -> str:
        """'site a: cohort.csv: data row 3, column age', for a message; `column` is the manifest's name."""
        return f"site {self._site.site}: {self.manifest.where(row, column)}"

    def name(self, column: str) -> str:
        """The manifest's name of a column of the study."""
        return self._site.data.columns.get(column, column)

    def labels(self, label: Label) -> list[bool]:
        """Row to whether its label is positive.

        Raises:
            DataError: no such column, an empty label or a word for one, or a value that the study does not name where
                it names both kinds.
        """
        values = self._coded(label.column, "label.column of the study")
        positive, negative = ({same(value) for value in named or []} for named in (label.positive, label.negative))
        for row, value in enumerate(values):
            if value in positive or value in negative:
                continue
            if value.lower() in _NO_LABEL:
                what = f"{value!r} reads as a missing label" if value else "the label is empty"
                otherwise = ", or name it under label.negative of the study" if value else ""
                where = self.where(row, self.name(label.column))
                raise DataError(f"{where}: {what}; write it, or leave the row out{otherwise} (E120)")
            if label.negative is not None:
                raise DataError(
                    f"{self.where(row, self.name(label.column))}: {value!r} is no declared label (positive: "
                    f"{', '.join(label.positive)}; negative: {', '.join(label.negative)}); map it under "
                    f"coding.{label.column} of the site file (E120)"
                )
        return [value in positive for value in values]

    def levels(self, attribute: Attribute) -> list[int]:
        """Row to the index of its level; empty and `unknown` are the last index, the number of levels.

        Raises:
            DataError: no such column, a value that is no declared level, or no number where the attribute is cut.
        """
        values = self._coded(attribute.column, f"attribute {attribute.name} of the study")
        unknown = len(attribute.groups)
        level = self._cut if attribute.kind == "cut" else self._named
        return [unknown if value in ("", UNKNOWN) else level(attribute, value, row) for row, value in enumerate(values)]

    def _named(self, attribute: Attribute, value: str, row: int) -> int:
        for index, level in enumerate(attribute.groups):
            if value == same(level):
                return index
        raise DataError(
            f"{self.where(row, self.name(attribute.column))}: {value!r} is no level of attribute {attribute.name} "
            f"(declared: {', '.join(attribute.groups)}); map it under coding.{attribute.column} of the site file, "
            f"or to {UNKNOWN} (E120)"
        )

    def _cut(self, attribute: Attribute, value: str, row: int) -> int:
        found = number(value)
        if found is None:
            raise DataError(
                f"{self.where(row, self.name(attribute.column))}: {value!r} is not a number, and attribute "
                f"{attribute.name} is cut at {attribute.cuts}; correct it, or leave it empty if unknown (E120)"
            )
        return bisect_right(attribute.cuts or [], found)

    def table(self, inputs: TableInputs) -> Tensor:
        """All rows as the model's inputs; see `equipoise.common.features.feature_table`.

        Raises:
            DataError: no such column, or a value that is no finite number.
        """
        return feature_table(self.manifest, inputs, self.name, self.where)

    def scores(self, inputs: ScoreInputs) -> Tensor:
        """All rows as float64 (rows, k): the logit of each declared score, in the order before, after.

        Raises:
            DataError: no such column, or a value that is no score on the declared scale; says how many there are.
        """
        names = [inputs.before] if inputs.after is None else [inputs.before, inputs.after]
        return torch.stack([self._score(name, inputs.scale) for name in names], dim=1)

    def _score(self, column: str, scale: str) -> Tensor:
        name = self.name(column)
        values = [number(text) for text in self.manifest.column(name, f"inputs of the study ({column})")]
        low, high = (0.0, 1.0) if scale == "probability" else (-math.inf, math.inf)
        broken = [row for row, value in enumerate(values) if value is None or not low <= value <= high]
        if broken:
            expected = "a probability from 0 to 1" if scale == "probability" else "a finite logit"
            raise DataError(
                f"{self.where(broken[0], name)}: {len(broken)} of {len(values)} scores are not {expected}; correct "
                "them, or declare the other scale (E130)"
            )
        found = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
        return torch.logit(found, eps=SMALLEST_SCORE) if scale == "probability" else found

    def _coded(self, column: str, purpose: str) -> list[str]:
        coding = {same(key): same(value) for key, value in self._site.coding.get(column, {}).items()}
        values = [same(value) for value in self.manifest.column(self.name(column), purpose)]
        return [coding.get(value, value) for value in values]
