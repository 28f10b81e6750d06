"""Table columns as a model's inputs: clipped to declared ranges, scaled, with a flag for what is missing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from equipoise.common.errors import DataError
from equipoise.common.manifest import Manifest, number
from equipoise.common.study import Feature, TableInputs


def feature_table(
    manifest: Manifest, inputs: TableInputs, name: Callable[[str], str], where: Callable[[int, str], str]
) -> Tensor:
    """All rows as float32 (rows, F): the scaled values, then the missing flags, F = 2 * number of features.

    A value is clipped to its declared range and scaled to [-1, 1]; a missing one is 0 with its flag at 1, so that
    every row is bounded whatever the manifest holds.

    Args:
        name: the manifest's name of a column of the study.
        where: row and column as a message names them.

    Raises:
        DataError: no such column, or a value that is no finite number.
    """
    columns = [_feature(manifest, feature, name(feature.name), where) for feature in inputs.features]
    values = torch.tensor([value for value, _ in columns], dtype=torch.float32)
    flags = torch.tensor([flag for _, flag in columns], dtype=torch.float32)
    return torch.cat([values, flags]).T.contiguous()


def _feature(
    manifest: Manifest, feature: Feature, name: str, where: Callable[[int, str], str]
) -> tuple[list[float], list[bool]]:
    low, high = feature.range
    values, flags = [], []
    for row, text in enumerate(manifest.column(name, f"feature {feature.name} of the study")):
        found = number(text)
        if found is None and text != "":
            raise DataError(
                f"{where(row, name)}: {text!r} is not a number, and feature {feature.name} is one; correct "
                "it, or leave it empty if missing"
            )
        missing = found is None or found in feature.missing
        flags.append(missing)
        values.append(0.0 if found is None or missing else 2 * (min(max(found, low), high) - low) / (high - low) - 1)
    return values, flags
