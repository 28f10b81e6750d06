"""Reads a study's file, and fills in where the files lie that it names, and their digests."""

from __future__ import annotations

from pathlib import Path

from equipoise.common.canonical import sha256
from equipoise.common.config import override, read_yaml, validate
from equipoise.common.errors import ModelError, StudyError
from equipoise.common.study import Study, Weights
from equipoise.common.study_privacy import PublicPool
from equipoise.common.study_simulation import FolderHospitals


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
