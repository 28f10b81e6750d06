"""The public pool: unlabelled rows at the coordinator, and what the model makes of them.

Private releases take their bases, units and clip bounds from here, and from no patient. The pool stays at the
coordinator. A pool that fits badly costs usefulness and never privacy: a hospital clips to the bound whatever it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from equipoise.common.canonical import digest_json, sha256
from equipoise.common.classifier import Classifier
from equipoise.common.errors import DataError, StudyError
from equipoise.common.factory import load_factory
from equipoise.common.features import feature_table
from equipoise.common.images import ImageStore
from equipoise.common.manifest import read_manifest
from equipoise.common.models import normalise
from equipoise.common.study import ImageInputs, Inputs, ScoreInputs, Study

BATCH = 100
KEY = "privacy.public_pool"


@dataclass(frozen=True)
class Pool:
    """The rows of a pool, as a hospital would hold them.

    Attributes:
        inputs: how the study reads a row.
        rows: images uint8 (n, 3, H, W), or tables float32 (n, F).
    """

    inputs: Inputs
    rows: Tensor

    @classmethod
    def of(cls, study: Study) -> Pool:
        """The pool that a study names.

        Raises:
            StudyError: it names none, or the file is not the one whose digest it declares.
            DataError: the file cannot be read as rows of the study.
        """
        named = study.privacy.public_pool
        if named is None:
            raise StudyError(
                f"{KEY} is missing: bases and clip bounds need unlabelled public images or rows; name a .zip, .csv or "
                ".parquet file"
            )
        key = digest_json([named.path, named.sha256, study.inputs.model_dump(mode="json")])
        if key not in _kept:
            _kept.clear()  # a run has one pool
            _kept[key] = _read(Path(named.path), named.sha256, study.inputs)
        return _kept[key]

    def __len__(self) -> int:
        return len(self.rows)

    def normalised(self) -> Tensor:
        """All rows as the model sees them, float32."""
        return normalise(self.inputs, self.rows)

    def batches(self) -> Iterator[Tensor]:
        """Normalised rows, a hundred at a time."""
        for rows in torch.split(self.rows, BATCH):
            yield normalise(self.inputs, rows)

    def scores(self, network: nn.Module) -> Tensor:
        """Logit of each row, (n,) float64."""
        with torch.no_grad():
            return torch.cat([network(x).double() for x in self.batches()])


def network_of(study: Study, model: Classifier, *, base: bool = False) -> nn.Module:
    """The study's network with a classifier's weights (with the vendor's, where `base`), in eval mode on the CPU."""
    network = load_factory(study.model.factory, study.model.arguments)
    state = model.base if base else model.state
    network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in state.items()})
    return network.eval()


_kept: dict[str, Pool] = {}


def _read(path: Path, digest: str | None, inputs: Inputs) -> Pool:
    if isinstance(inputs, ScoreInputs):
        raise StudyError(f"{KEY}: given scores need no pool; leave it out")
    try:
        content = path.read_bytes()
    except OSError:
        raise StudyError(f"{KEY}.path={path}: no readable file there") from None
    if digest is not None and sha256(content) != digest:
        raise StudyError(f"{KEY}: {path} is not the file that the study declares; restore it")
    if path.suffix == ".safetensors":
        rows = _decoded(path, content)
    elif isinstance(inputs, ImageInputs):
        rows = _images(path, inputs.size)
    else:
        manifest = read_manifest(path)
        rows = feature_table(manifest, inputs, str, manifest.where)
    expected = (3, inputs.size, inputs.size) if isinstance(inputs, ImageInputs) else (2 * len(inputs.features),)
    kind = torch.uint8 if isinstance(inputs, ImageInputs) else torch.float32
    if len(rows) == 0 or tuple(rows.shape[1:]) != expected or rows.dtype != kind:
        raise DataError(f"{path}: rows of shape {tuple(rows.shape)}, expected (n, {', '.join(map(str, expected))})")
    return Pool(inputs, rows)


def _decoded(path: Path, content: bytes) -> Tensor:
    try:
        return load(content)["rows"]
    except (SafetensorError, KeyError):
        raise DataError(f"{path}: no safetensors file with a tensor 'rows'; make it again") from None


def _images(path: Path, size: int) -> Tensor:
    try:
        with ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if not name.endswith("/"))
    except BadZipFile:
        raise DataError(f"{path}: not a .zip file; pack the pool's images into one") from None
    return ImageStore(path).decode(names, range(len(names)), size)
