"""What a study declares of a simulation; a deployment has none of it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from equipoise.common.config import Strict


class SyntheticHospitals(Strict):
    """The synthetic dermoscopy benchmark (simulations/synthetic.py)."""

    kind: Literal["synthetic"]
    bench: Literal["A", "B", "C"] = "A"
    count: int = Field(default=6, ge=1, le=1000)
    single_group: int = Field(default=0, ge=0)  # how many of them, from the first on, see one group alone
    patients: int = Field(default=300, ge=1)
    validation: int = Field(default=100, ge=0)
    test: int = Field(default=1600, ge=4)
    pool: Literal["diverse", "vendor"] = "diverse"  # whose unlabelled images a private study takes for public

    @model_validator(mode="after")
    def _no_more_than_there_are(self) -> Self:
        if self.single_group > self.count:
            raise ValueError(f"single_group is {self.single_group}, of {self.count} hospitals; expected no more")
        return self


class PublicHospitals(Strict):
    """Public data read from the folder that EQUIPOISE_DATA names (simulations/public.py)."""

    kind: Literal["heart", "ham10000", "adult", "diabetes"]


class FolderHospitals(Strict):
    """One folder per hospital, each with a site.yaml, below `path`."""

    kind: Literal["folders"]
    path: str


class Recipe(Strict):
    """How a simulation trains the vendor's model when the study names no weights."""

    epochs: int = Field(default=8, ge=1)
    lr: float = Field(default=3e-3, gt=0)
    batch: int = Field(default=64, ge=1)
    weight_decay: float = Field(default=1e-4, ge=0)


class Simulation(Strict):
    """Hospitals on one machine; not part of the study's hash, since a deployment has none."""

    hospitals: Annotated[SyntheticHospitals | PublicHospitals | FolderHospitals, Field(discriminator="kind")]
    pretrain: Recipe = Recipe()
    workers: int = Field(default=2, ge=1, le=64)
