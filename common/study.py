"""The study: everything a coordinator declares before a hospital is asked for anything.

A study is a YAML file (configs/ has studies that run as they are). It is checked whole, rendered with its defaults, and
its hash is what a hospital approves. Paths in it are relative to the file and stay at the coordinator; the hash covers
the digests of what they name.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from equipoise.common.attribute import Attribute, with_levels
from equipoise.common.canonical import digest_json, sha256
from equipoise.common.config import Strict, override, read_yaml, validate
from equipoise.common.errors import ModelError, StudyError

EXACT_BINS, PRIVATE_BINS = 1024, 16  # evaluation specification, 0.6 (measured)
Scalar = bool | int | float | str


class Weights(Strict):
    """A safetensors file of model weights."""

    path: str
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


class ModelSpec(Strict):
    """The vendor's classifier: a factory `module:function`, its weights, and the prefix of its head."""

    factory: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    arguments: dict[str, Scalar] = {}
    weights: Weights | None = None  # None only where a simulation pretrains the vendor's model
    after: Weights | None = None  # of a second model of the same network, which method `audit` measures beside it
    head: str = Field(default="head.", min_length=1)
    device: str = "cpu"


# What stands for the model where the scores are given.
GIVEN: dict[str, Any] = {"factory": "equipoise.common.models:given_scores", "head": "head."}


class Label(Strict):
    """The label column; values in `positive` are the disease, every other value is not."""

    column: str
    positive: list[str]

    @model_validator(mode="before")
    @classmethod
    def _as_strings(cls, value: Any) -> Any:
        if isinstance(value, dict) and "positive" in value:
            given = value["positive"]
            items = given if isinstance(given, list) else [given]
            return {**value, "positive": [str(item) for item in items]}
        return value


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


class PublicPool(Strict):
    """Unlabelled public rows at the coordinator: bases and bounds of private releases come from them and never travel.

    A `.zip` of images, a `.csv` or `.parquet` with the study's features, or a `.safetensors` with decoded `rows`.
    """

    path: str
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    labels: Literal["none"] = "none"


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
        if self.mode == "none" and self.epsilon is not None:
            raise ValueError("mode none has no epsilon; write mode: local, or leave it out")
        if self.mode != "none" and self.epsilon is None:
            raise ValueError(f"mode {self.mode} needs an epsilon, for instance epsilon: 3")
        if self.mode == "distributed" and not self.secure_sum:
            raise ValueError("mode distributed adds shares of noise in the secure sum; write secure_sum: true")
        return self

    @property
    def private(self) -> bool:
        """Whether noise protects the patients."""
        return self.mode != "none"


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


class Sites(Strict):
    """Who takes part: public figures that fix weights and batch sizes before any data is read."""

    minimum: int = Field(default=3, ge=1)
    quorum: float = Field(default=0.8, gt=0, le=1)
    deadline_s: float = Field(default=600.0, gt=0)
    declared_patients: dict[str, Annotated[int, Field(ge=0)]] = {}
    keys: dict[str, Annotated[str, Field(pattern="^ed25519:[A-Za-z0-9+/]{43}=$")]] = {}  # of the secure sum
    colluding: int = Field(default=1, ge=0)  # sites that may act as one with the server

    def least(self, asked: int) -> int:
        """Least number of sites that must answer where `asked` are asked."""
        return max(self.minimum, math.ceil(self.quorum * asked - 1e-9))


class SyntheticHospitals(Strict):
    """The synthetic dermoscopy benchmark (simulations/synthetic.py)."""

    kind: Literal["synthetic"]
    bench: Literal["A", "B", "C"] = "A"
    count: int = Field(default=6, ge=1, le=1000)
    patients: int = Field(default=300, ge=1)
    validation: int = Field(default=100, ge=0)
    test: int = Field(default=1600, ge=4)
    pool: Literal["diverse", "vendor"] = "diverse"  # whose unlabelled images a private study takes for public


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


class Simulation(Strict):
    """Hospitals on one machine; not part of the study's hash, since a deployment has none."""

    hospitals: Annotated[SyntheticHospitals | PublicHospitals | FolderHospitals, Field(discriminator="kind")]
    pretrain: Recipe = Recipe()
    workers: int = Field(default=2, ge=1, le=64)


class Study(Strict):
    """A configured experiment; see the module's text."""

    study: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
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
        return digest_json(rendered)

    @property
    def audits_one_model(self) -> bool:
        """Whether there is nothing to compare the base model with."""
        after = self.inputs.after if isinstance(self.inputs, ScoreInputs) else self.model.after
        return self.method.name == "audit" and after is None

    @property
    def honest_shares(self) -> int | None:
        """Shares that make up the noise in mode `distributed`: sites that are left and honest for certain.

        h = T - t of the K sites, with the threshold T = max(3, floor(2 K / 3) + 1) of the secure sum and t that may
        collude.
        """
        if self.privacy.mode != "distributed":
            return None
        sites = len(self.sites.declared_patients)
        return max(3, 2 * sites // 3 + 1) - self.sites.colluding

    @property
    def score_bins(self) -> int:
        """Bins of a score histogram: fine without noise, few under it (each bin takes its own noise)."""
        if isinstance(self.inputs, ScoreInputs) and self.inputs.edges is not None:
            return len(self.inputs.edges) + 1
        return self.evaluation.bins or (PRIVATE_BINS if self.privacy.private else EXACT_BINS)

    def with_method(self, name: str, **parameters: Any) -> Study:
        """The same study under another method, without controls."""
        method = MethodSpec.model_validate({"name": name, **parameters})
        return self.model_copy(update={"method": method})


def load_study(path: Path, assignments: list[str] | None = None) -> Study:
    """Read, override (`--set key=value`) and check a study; resolve and digest its weights.

    Raises:
        StudyError: a key, a type or a value is wrong.
        ModelError: the weights are missing or differ from their declared digest.
    """
    study = validate(Study, override(read_yaml(path), assignments or []), str(path))
    if study.simulation is not None and isinstance(study.simulation.hospitals, FolderHospitals):
        folder = (path.parent / study.simulation.hospitals.path).resolve()
        hospitals = study.simulation.hospitals.model_copy(update={"path": str(folder)})
        simulation = study.simulation.model_copy(update={"hospitals": hospitals})
        study = study.model_copy(update={"simulation": simulation})
    if study.privacy.public_pool is not None:
        study = pin_pool(study, path.parent)
    if study.model.weights is None:
        if study.simulation is None:
            raise StudyError(f"{path}: model.weights is missing; name a safetensors file")
        return study
    return pin_weights(study, path.parent)


def pin_pool(study: Study, folder: Path) -> Study:
    """The study with its public pool's absolute path and digest filled in.

    Raises:
        StudyError: no such file, or it is another one than declared.
    """
    pool = study.privacy.public_pool
    if pool is None:
        raise StudyError("privacy.public_pool is missing; name unlabelled public images or rows")
    file = (folder / pool.path).resolve()
    try:
        digest = sha256(file.read_bytes())
    except OSError:
        raise StudyError(
            f"privacy.public_pool.path={pool.path}: no readable file at {file}; give a .zip of images, a .csv or a "
            ".parquet of rows"
        ) from None
    if pool.sha256 not in (None, digest):
        raise StudyError(
            f"privacy.public_pool.sha256: {file} has digest {digest}, the study declares {pool.sha256}; use the "
            "declared file or correct the digest"
        )
    pinned = study.privacy.model_copy(update={"public_pool": PublicPool(path=str(file), sha256=digest)})
    return study.model_copy(update={"privacy": pinned})


def pin_weights(study: Study, folder: Path) -> Study:
    """The study with its weights' absolute paths and digests filled in."""
    weights = study.model.weights
    if weights is None:
        raise StudyError("model.weights is missing; name a safetensors file")
    pinned = {"weights": _pinned(weights, "model.weights", folder)}
    if study.model.after is not None:
        pinned["after"] = _pinned(study.model.after, "model.after", folder)
    return study.model_copy(update={"model": study.model.model_copy(update=pinned)})


def _pinned(weights: Weights, key: str, folder: Path) -> Weights:
    file = (folder / weights.path).resolve()
    try:
        digest = sha256(file.read_bytes())
    except OSError:
        raise ModelError(
            f"{key}.path={weights.path}: no readable file at {file}; "
            "`equipoise pretrain` makes one, or name the vendor's"
        ) from None
    if weights.sha256 not in (None, digest):
        raise ModelError(
            f"{key}.sha256: {file} has digest {digest}, the study declares "
            f"{weights.sha256}; use the declared file or correct the digest"
        )
    return Weights(path=str(file), sha256=digest)
