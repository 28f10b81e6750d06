"""What a study declares of privacy."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from equipoise.common.config import Strict
from equipoise.common.patterns import SHA256


class PublicPool(Strict):
    """Unlabelled public rows at the coordinator: bases and bounds of private releases come from them and never travel.

    A `.zip` of images, a `.csv` or `.parquet` with the study's features, or a `.safetensors` with decoded `rows`.
    """

    path: str
    sha256: str | None = Field(default=None, pattern=SHA256)
    labels: Literal["none"] = "none"


NOISE_ALONE = ("epsilon", "delta", "split", "controls")
"""Keys that say something where noise protects the patients, and there alone."""

Shares = dict[str, Annotated[float, Field(gt=0, le=1)]]


class BudgetSplit(Strict):
    """Share of the budget that each phase gets, by split of the patients; None asks for the default.

    The splits are disjoint patients, so each has the whole epsilon to itself.
    """

    train: Shares | None = None
    validation: Shares | None = None
    test: Shares | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for split in ("train", "validation", "test"):
            shares: Shares | None = getattr(self, split)
            if shares is not None and abs(math.fsum(shares.values()) - 1) > 1e-9:
                raise ValueError(f"the shares of {split} sum to {math.fsum(shares.values()):g}, expected 1")
        return self


class Privacy(Strict):
    """How a release is protected.

    `none` is for simulations and data that a site declares synthetic. In `local` every hospital's release is private by
    itself. In `distributed` hospitals add shares of one noise, inside the secure sum. `secure_sum` conceals what each
    hospital adds; left out, it is on in a deployment and off in a simulation. `controls` says whether each control has
    a budget of its own, which only a simulation can grant since it is charged to nobody (`own`), or shares the study's
    (`shared`).
    """

    mode: Literal["none", "local", "distributed"] = "none"
    secure_sum: bool | None = None
    epsilon: float | None = Field(default=None, gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    public_pool: PublicPool | None = None
    split: BudgetSplit = BudgetSplit()
    controls: Literal["own", "shared"] = "own"

    @model_validator(mode="after")
    def _priced(self) -> Self:
        for key in NOISE_ALONE:
            if self.mode == "none" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"mode none has no {key}; write mode: local, or leave it out")
        if self.mode != "none" and self.epsilon is None:
            raise ValueError(f"mode {self.mode} needs an epsilon, for instance epsilon: 3")
        if self.mode == "distributed" and not self.secure_sum:
            raise ValueError("mode distributed adds shares of noise in the secure sum; write secure_sum: true")
        return self

    @property
    def private(self) -> bool:
        """Whether noise protects the patients."""
        return self.mode != "none"
