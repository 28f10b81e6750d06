"""The study: everything a coordinator declares before a hospital is asked for anything.

A study is a YAML file (configs/ has studies that run as they are). It is checked whole, rendered with its defaults, and
its hash is what a hospital approves. Paths in it are relative to the file and stay at the coordinator; the hash covers
the digests of what they name.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from equipoise.common.attribute import Attribute, with_levels
from equipoise.common.canonical import digest_json
from equipoise.common.config import Strict, as_text
from equipoise.common.fairness.thresholds import parse_rule
from equipoise.common.patterns import FACTORY, IDENTITY, NAME, SHA256
from equipoise.common.secure_sum.threshold import threshold
from equipoise.common.study_evaluation import Evaluation
from equipoise.common.study_privacy import Privacy
from equipoise.common.study_simulation import Simulation

EXACT_BINS, PRIVATE_BINS = 1024, 16  # evaluation specification, 0.6 (measured)
Scalar = bool | int | float | str


class Weights(Strict):
    """A safetensors file of model weights."""

    path: str
    sha256: str | None = Field(default=None, pattern=SHA256)


class ModelSpec(Strict):
    """The vendor's classifier: a factory `module:function`, its weights, and the prefix of its head."""

    factory: str = Field(pattern=FACTORY)
    arguments: dict[str, Scalar] = {}
    weights: Weights | None = None  # None only where a simulation pretrains the vendor's model
    after: Weights | None = None  # of a second model of the same network, which method `audit` measures beside it
    head: str = Field(default="head.", min_length=1)
    device: str = "cpu"


# What stands for the model where the scores are given.
GIVEN: dict[str, Any] = {"factory": "equipoise.common.models:given_scores", "head": "head."}


class Label(Strict):
    """The label column; values in `positive` are the disease.

    Values in `negative` are not, and any other is an error at the hospital; left out, every other value is not.
    """

    column: str
    positive: list[str] = Field(min_length=1)
    negative: list[str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_strings(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        given = {key: value[key] for key in ("positive", "negative") if value.get(key) is not None}
        lists = {key: items if isinstance(items, list) else [items] for key, items in given.items()}
        return {**value, **{key: [as_text(item) for item in items] for key, items in lists.items()}}

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if both := set(self.positive) & set(self.negative or []):
            raise ValueError(f"label.negative: {', '.join(sorted(both))} stands in label.positive, too")
        return self


class ImageInputs(Strict):
    """Square colour images; the model sees (u / 255 - mean) / std."""

    kind: Literal["image"] = "image"
    size: int = Field(ge=8, le=1024)
    channels: Literal[3] = 3
    mean: float = 0.5
    std: float = Field(default=0.25, gt=0)


class Feature(Strict):
    """A table column: clipped to its declared range and scaled to [-1, 1]; missing becomes 0 with its flag set."""

    name: str
    range: tuple[float, float]
    missing: list[float] = []

    @model_validator(mode="after")
    def _increasing(self) -> Self:
        if not self.range[0] < self.range[1]:
            raise ValueError("range must be [low, high] with low < high")
        return self


class TableInputs(Strict):
    """Table columns in a declared order; the model sees the scaled values, then the missing flags."""

    kind: Literal["table"] = "table"
    features: list[Feature] = Field(min_length=1)


class ScoreInputs(Strict):
    """Scores that a black box has given already: no network runs at a hospital, and nothing is trained.

    `before` and `after` name columns of the manifest; without `after` one model is audited. The scale is declared,
    never guessed from the numbers.
    """

    kind: Literal["score"]
    before: str
    after: str | None = None
    scale: Literal["probability", "logit"] = "probability"
    edges: list[Annotated[float, Field(gt=0, lt=1)]] | None = None  # of the score bins, as probabilities

    @model_validator(mode="after")
    def _increasing(self) -> Self:
        if self.edges is not None and (len(self.edges) < 1 or sorted(set(self.edges)) != self.edges):
            raise ValueError("edges must increase")
        return self


Inputs = ImageInputs | TableInputs | ScoreInputs


class MethodSpec(Strict):
    """A method by name; its own parameters are checked by its file (`equipoise.common.methods`)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "audit"
    controls: list[str] = []

    @property
    def parameters(self) -> dict[str, Any]:
        """The keys that belong to the method itself."""
        return dict(self.model_extra or {})


class Sites(Strict):
    """Who takes part: public figures that fix weights and batch sizes before any data is read."""

    minimum: int = Field(default=3, ge=1)
    quorum: float = Field(default=0.8, gt=0, le=1)
    deadline_s: float = Field(default=600.0, gt=0)
    declared_patients: dict[str, Annotated[int, Field(ge=0)]] = {}
    keys: dict[str, Annotated[str, Field(pattern=IDENTITY)]] = {}  # of the secure sum
    colluding: int = Field(default=1, ge=0)  # sites that may act as one with the server

    def least(self, sites: int) -> int:
        """Least number of sites that must answer where the study has `sites`, whoever is there."""
        return max(self.minimum, math.ceil(self.quorum * sites - 1e-9))


class Card(Strict):
    """What a board asks of a model and no sum can say, in the coordinator's words; what is left out is named in red."""

    intended_use: str = ""
    intended_users: str = ""
    population: str = ""
    out_of_scope: str = ""
    period: str = ""  # and inclusion of the patients
    label_source: str = ""  # reference standard
    group_source: str = ""  # who recorded the attributes, and why these
    equipment: str = ""  # devices, scanners, laboratories
    overlap: str = ""  # of test patients with those that the vendor trained on
    residual_risk: str = ""
    monitoring: str = ""  # when it is measured again, and what triggers it
    owner: str = ""  # the person who decides


class Study(Strict):
    """A configured experiment; see the module's text."""

    study: str = Field(pattern=NAME)
    seed: int = Field(default=0, ge=0, lt=2**31)  # public: shuffles and permutations, never noise
    model: ModelSpec
    inputs: Annotated[Inputs, Field(discriminator="kind")]
    label: Label
    attributes: list[Attribute] = Field(min_length=1)
    method: MethodSpec = MethodSpec(name="audit")
    privacy: Privacy = Privacy()
    evaluation: Evaluation = Evaluation()
    sites: Sites = Sites()
    card: Card = Card()
    simulation: Simulation | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_model_for_scores(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("inputs"), dict) and value["inputs"].get("kind") == "score":
            given = value.get("model", GIVEN)
            if not isinstance(given, dict) or given.get("factory") != GIVEN["factory"]:
                raise ValueError("inputs.kind=score audits columns of scores; leave model out")
            return {**value, "model": given}
        return value

    @model_validator(mode="before")
    @classmethod
    def _levels_of_intersections(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("attributes"), list):
            return value
        return {**value, "attributes": [with_levels(one, value["attributes"]) for one in value["attributes"]]}

    @model_validator(mode="after")
    def _one_primary(self) -> Self:
        names = [attribute.name for attribute in self.attributes]
        if len(set(names)) != len(names):
            raise ValueError("attributes must have different names")
        if sum(attribute.primary for attribute in self.attributes) != 1:
            raise ValueError("exactly one of `attributes` must have `primary: true`")
        return self

    @model_validator(mode="after")
    def _bins_once(self) -> Self:
        edges, bins = self.inputs.edges if isinstance(self.inputs, ScoreInputs) else None, self.evaluation.bins
        if edges is not None and bins is not None:
            raise ValueError(f"evaluation.bins={bins}: inputs.edges say which bins there are; leave one of them out")
        return self

    @property
    def primary(self) -> Attribute:
        """The attribute that the method acts on and the gates judge."""
        return next(attribute for attribute in self.attributes if attribute.primary)

    def attribute(self, name: str) -> Attribute:
        """The declared attribute called `name`."""
        return next(attribute for attribute in self.attributes if attribute.name == name)

    @property
    def hash(self) -> str:
        """SHA-256 of the rendered study without its simulation part: what a site approves."""
        rendered = self.model_dump(mode="json", by_alias=True, exclude={"simulation"})
        # Paths are the coordinator's own; the digest of what they name is the contract.
        for named in (rendered["model"]["weights"], rendered["model"]["after"], rendered["privacy"]["public_pool"]):
            if named is not None:
                named.pop("path")
        if rendered["label"]["negative"] is None:  # studies that do not say it keep the hash that hospitals approved
            rendered["label"].pop("negative")
        return digest_json(rendered)

    @property
    def audits_one_model(self) -> bool:
        """Whether there is nothing to compare the base model with."""
        after = self.inputs.after if isinstance(self.inputs, ScoreInputs) else self.model.after
        return self.method.name == "audit" and after is None

    @property
    def honest_shares(self) -> int | None:
        """Shares that make up the noise in mode `distributed`: sites that are left and honest for certain.

        h = T - t of the K sites, with the threshold T of the secure sum and t that may collude.
        """
        if self.privacy.mode != "distributed":
            return None
        sites = len(self.sites.declared_patients)
        return threshold(sites) - self.sites.colluding

    @property
    def declared_edges(self) -> list[Fraction] | None:
        """Inner edges of the score bins as probabilities, where the study declares them.

        A threshold that the study names is one of them: only then a histogram tells how many patients reach it.
        """
        if not isinstance(self.inputs, ScoreInputs) or self.inputs.edges is None:
            return None
        rule = parse_rule(self.evaluation.threshold.rule)
        named = set() if rule.needs_histogram else {rule.value}
        return sorted(named | {Fraction(str(edge)) for edge in self.inputs.edges})

    @property
    def score_bins(self) -> int:
        """Bins of a score histogram: fine without noise, few under it (each bin takes its own noise)."""
        if (edges := self.declared_edges) is not None:
            return len(edges) + 1
        return self.evaluation.bins or (PRIVATE_BINS if self.privacy.private else EXACT_BINS)

    @property
    def smallest_cell(self) -> int:
        """The smallest count of patients that the report shows; 0 shows all.

        Where the study says nothing it is 11 for exact tables of hospitals. Noisy counts may be shown, and in a
        simulation every patient is on this machine already.
        """
        if self.evaluation.min_cell is not None:
            return self.evaluation.min_cell
        return 0 if self.privacy.private or self.simulation is not None else 11

    def with_method(self, name: str, **parameters: Any) -> Study:
        """The same study under another method, without controls."""
        method = MethodSpec.model_validate({"name": name, **parameters})
        return self.model_copy(update={"method": method})
