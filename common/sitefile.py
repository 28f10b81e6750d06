"""The site file: what a hospital decides for itself. It is never sent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from equipoise.common.config import Strict, as_text, read_yaml, validate
from equipoise.common.errors import StudyError
from equipoise.common.identity import read_enrolment
from equipoise.common.patterns import BYTES, IDENTITY, NAME, SHA256


class FractionSplits(Strict):
    """Shares of the patients, chosen by a keyed hash of the patient, fixed for life."""

    train: Annotated[float, Field(ge=0, le=1)]
    validation: Annotated[float, Field(ge=0, le=1)]
    test: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError("the shares must sum to 1")
        return self


class ColumnSplits(Strict):
    """A manifest column that names each patient's split: train, validation or test."""

    column: str


class SiteData(Strict):
    """Where the cohort lies and how its columns are called."""

    manifest: str
    images: str | None = None
    image_column: str = "image"
    patient: str = "patient"
    columns: dict[str, str] = {}
    splits: FractionSplits | ColumnSplits = FractionSplits(train=0.6, validation=0.2, test=0.2)
    split_key: str = Field(default="", pattern=BYTES)
    synthetic: bool = False
    account: str = Field(default="main", pattern=NAME)  # of the ledger

    @model_validator(mode="after")
    def _keyed(self) -> Self:
        if isinstance(self.splits, FractionSplits) and len(self.split_key) < 32:
            raise ValueError(
                "splits by shares need `split_key`, at least 32 hexadecimal digits "
                "(`python -c 'import secrets; print(secrets.token_hex(32))'`)"
            )
        return self


class Caps(Strict):
    """What the hospital lets anyone ask.

    `epsilon`, `epsilon_if_others_collude` and `delta` hold for the life of the data set. Without an epsilon no private
    study takes place here.
    """

    epsilon: float | None = Field(default=None, gt=0)
    epsilon_if_others_collude: float | None = Field(default=None, gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    cohort_minimum: int = Field(default=50, ge=1)
    split_minimum: int = Field(default=10, ge=1)
    methods: list[str] | Literal["all"] = "all"
    queries: list[str] | Literal["all"] = "all"
    models: list[str] = ["equipoise.common.models:*"]
    site_results: bool = False  # whether figures of this hospital alone may leave (AFL, FairFed)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        alone = self.epsilon_if_others_collude
        if alone is not None and (self.epsilon is None or alone < self.epsilon):
            raise ValueError("epsilon_if_others_collude needs an epsilon and is at least as large")
        return self


class Peers(Strict):
    """The other sites that this one computes with: pinned identity keys, written here or enrolments in a folder."""

    minimum: int = Field(default=3, ge=2)
    folder: str = "peers"
    keys: dict[str, Annotated[str, Field(pattern=IDENTITY)]] = {}


class Socket(Strict):
    """The Unix socket of the site agent, through which alone its SuperNode reaches it."""

    path: str = "door/agent.sock"
    group: str | None = None
    request_mib: int = Field(default=1024, ge=1, le=16384)


class Site(Strict):
    """A hospital's own file; see the module's text."""

    site: str = Field(pattern=NAME)
    data: SiteData
    coding: dict[str, dict[str, str]] = {}
    caps: Caps = Caps()
    allow_none: list[str] = []
    approve: Literal["manual"] | list[Annotated[str, Field(pattern=SHA256)]] = "manual"
    peers: Peers = Peers()
    socket: Socket = Socket()

    @field_validator("coding", mode="before")
    @classmethod
    def _as_strings(cls, value: Any) -> Any:
        """YAML reads 1 as a number; a manifest's values are compared as text. An empty key is an empty cell."""
        if not isinstance(value, dict):
            return value
        return {
            column: {"" if key is None else as_text(key): as_text(level) for key, level in mapping.items()}
            if isinstance(mapping, dict)
            else mapping
            for column, mapping in value.items()
        }


def load_site(path: Path) -> Site:
    """Read and check a site file; its paths become absolute, relative to the file, and `peers.keys` becomes complete.

    Raises:
        StudyError: a key, a type or a value is wrong, or an enrolment in `peers.folder` is not one.
    """
    site = validate(Site, read_yaml(path), str(path))
    folder = path.parent
    resolved = {"manifest": str((folder / site.data.manifest).resolve())}
    if site.data.images is not None:
        resolved["images"] = str((folder / site.data.images).resolve())
    socket = site.socket.model_copy(update={"path": str((folder / site.socket.path).resolve())})
    peers = site.peers.model_copy(update={"keys": _pinned(site.peers, folder / site.peers.folder)})
    return site.model_copy(update={"data": site.data.model_copy(update=resolved), "socket": socket, "peers": peers})


def _pinned(peers: Peers, folder: Path) -> dict[str, str]:
    """Site -> identity key: those of the site file and those of the enrolments in `folder`."""
    keys = dict(peers.keys)
    for file in sorted(folder.glob("*.json")):
        found = read_enrolment(file)
        if keys.setdefault(found.site, found.identity) != found.identity:
            raise StudyError(
                f"{file}: peers.keys has another key for {found.site}; ask that hospital, keep one of them"
            )
    return keys
