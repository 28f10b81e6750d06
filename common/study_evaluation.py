"""What a study declares about its evaluation, before anything runs: operating point, gap, gates, small cells."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from equipoise.common.config import Strict

SMALLEST_CELLS = (0, 5, 8, 10, 11)  # that a report may be asked to hide below; evaluation specification, section 3.4


class Threshold(Strict):
    """The rule of the operating point and the split that it is chosen on."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    rule: str = "sens>=0.9"
    source: Literal["validation", "test"] = Field(default="validation", alias="from")


class RateMatch(Strict):
    """Where every model is compared at a common selection rate, at which a collapsed model has no advantage.

    `base_rate`: as many positive decisions as the base model has; `median`: half of the patients (the synthetic
    benchmark's convention).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    rule: Literal["base_rate", "median"] = "base_rate"
    source: Literal["validation", "test"] = Field(default="validation", alias="from")


class Gates(Strict):
    """Bounds declared before the run; each is judged with its interval."""

    gap_change: Literal["excludes_0"] = "excludes_0"
    worst_group_auc_loss: float = Field(default=0.01, ge=0)
    balanced_accuracy: float | str = "base-0.02"

    @model_validator(mode="after")
    def _floor(self) -> Self:
        if isinstance(self.balanced_accuracy, str):
            head, dash, margin = self.balanced_accuracy.partition("-")
            try:
                good = head == "base" and (not dash or float(margin) >= 0)
            except ValueError:
                good = False
            if not good:
                raise ValueError("balanced_accuracy must be a number or 'base-0.02'")
        return self


class Evaluation(Strict):
    """What is measured before and after, and what a result must hold to."""

    threshold: Threshold = Threshold()
    rate_match: RateMatch = RateMatch()
    primary: Literal["equalized_odds_difference", "equalized_odds_mean"] = "equalized_odds_difference"
    margin: float = Field(default=0.05, gt=0, lt=1)
    bins: int | None = Field(default=None, ge=8, le=4096)  # of the score; by default 1024, under noise 16
    gates: Gates = Gates()
    by_site: bool = False  # also each hospital's own table: gaps within hospitals, and a figure that names them
    min_cell: int | None = None  # smallest count that the report shows; `Study.smallest_cell` has the default

    @field_validator("min_cell")
    @classmethod
    def _allowed(cls, value: int | None) -> int | None:
        if value is not None and value not in SMALLEST_CELLS:
            raise ValueError(f"choose one of {', '.join(map(str, SMALLEST_CELLS))}")
        return value
