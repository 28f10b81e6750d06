"""HAM10000 behind a vendor's network of some strength: hospitals whose rows are embeddings of their images.

The vendor fine-tunes EfficientNet-Lite0 (`lite_network`, ImageNet's weights, images of 96 x 96) on its own lesions and
freezes it. A lesion's row is the mean of its images' features, in the 32 directions in which the vendor's held-out
lesions differ most. On those held-out lesions, which the network has not seen, the vendor trains the small classifier
that the hospitals get. So what the methods move is the classifier behind a frozen network, as where a hospital buys a
foundation model; unlabelled held-out rows are the public pool.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save, save_file
from torch import nn

from equipoise.client.cohort import Cohort, Split
from equipoise.common.files import write_whole
from equipoise.common.models import build, normalise
from equipoise.common.query import SPLITS
from equipoise.common.sitefile import load_site
from equipoise.common.study import Study
from equipoise.common.study_simulation import Recipe
from equipoise.simulations.benchmarks.lite_network import imagenet_state
from equipoise.simulations.pretrain import pretrain
from equipoise.simulations.public import PublicSites, public_data_folder, write_ham10000
from equipoise.simulations.sitefolder import write_site

DIRECTIONS = 32
LARGEST = 4.0  # standard deviations; the declared range of a feature
TRUNK = Recipe(epochs=5, lr=2e-4, batch=64)
CLASSIFIER = Recipe(epochs=15, lr=3e-3, batch=64)
FEATURES = tuple(f"f{number:02d}" for number in range(DIRECTIONS))
HEADER = ("patient", "malignant", "age", "sex", "split", *FEATURES)
Json = dict[str, Any]
Rows = NDArray[np.float64]


def image_study(seed: int, weights: Path) -> Study:
    """The study that the images are read by."""
    factory = "equipoise.simulations.benchmarks.lite_network:lite0"
    return Study.model_validate(
        _common(seed)
        | {
            "model": {"factory": factory, "weights": {"path": str(weights)}, "head": "head."},
            "inputs": {"kind": "image", "size": 96, "mean": 0.5, "std": 0.5},
        }
    )


def table_study(seed: int, place: Path, primary: str, method: Mapping[str, Any]) -> Study:
    """A study of the embedded hospitals in `place`, as `embedded` made them."""
    features = [{"name": name, "range": [-LARGEST, LARGEST]} for name in FEATURES]
    value = _common(seed, primary) | {
        "model": {
            "factory": "equipoise.common.models:mlp",
            "arguments": {"features": 2 * DIRECTIONS},
            "head": "head.",
            **({"weights": {"path": str(place / "vendor.safetensors")}} if method else {}),
        },
        "inputs": {"kind": "table", "features": features},
        "method": dict(method) or {"name": "audit"},
        "privacy": {"mode": "none", "public_pool": {"path": str(place / "pool.safetensors")}},
        "simulation": {"hospitals": {"kind": "folders", "path": str(place / "hospitals")}, "workers": 1},
    }
    return Study.model_validate(value)


def _common(seed: int, primary: str = "age") -> Json:
    attributes: list[Json] = [
        {"name": "age", "kind": "cut", "cuts": [60]},
        {"name": "sex", "levels": ["female", "male"]},
    ]
    return {
        "study": "real-search",
        "seed": seed,
        "label": {"column": "malignant", "positive": 1},
        "attributes": [one | {"primary": one["name"] == primary} for one in attributes],
        "evaluation": {
            "threshold": {"rule": "sens>=0.8", "from": "validation"},
            "rate_match": {"rule": "base_rate", "from": "validation"},
            "primary": "equalized_odds_mean",
            "gates": {"gap_change": "excludes_0", "worst_group_auc_loss": 0.01, "balanced_accuracy": "base-0.02"},
        },
        "sites": {"minimum": 3, "quorum": 0.8, "deadline_s": 600},
    }


@dataclass(frozen=True)
class Directions:
    """Where features (n, 1280) are looked at: `mean` (1280,) and `axes` (1280, DIRECTIONS), of unit variance."""

    mean: Rows
    axes: Rows

    @classmethod
    def of(cls, features: Rows) -> Directions:
        """Those in which `features` differ most."""
        mean = features.mean(axis=0)
        _, sizes, rows = np.linalg.svd(features - mean, full_matrices=False)
        scale = sizes[:DIRECTIONS] / np.sqrt(len(features))
        return cls(mean, rows[:DIRECTIONS].T / scale)

    def __call__(self, features: Rows) -> Rows:
        """(n, DIRECTIONS), within the declared range."""
        return np.clip((features - self.mean) @ self.axes, -LARGEST, LARGEST)


def embedded(seed: int, cache: Path) -> Path:
    """The folder of a seed's hospitals, pool and vendor's classifier; made once."""
    place = cache / f"seed-{seed}"
    vendor = place / "vendor.safetensors"
    if vendor.exists():
        return place
    written = write_ham10000(place / "images", public_data_folder(), seed)
    network, study = _trunk(seed, place, written)
    held_out = Cohort(study, load_site(written.vendor.site_file)).split("validation")
    directions = Directions.of(_features(network, study, held_out))
    for paths in (*written.sites, written.vendor):
        cohort, rows = Cohort(study, load_site(paths.site_file)), []
        for name in SPLITS:
            split = cohort.split(name)
            # The vendor's classifier is trained on lesions that the network has not seen.
            kept = {"validation": "train"}.get(name) if paths is written.vendor else name
            if split.patients and kept is not None:
                rows += _rows(f"{paths.site}-{name}", kept, split, directions(_features(network, study, split)))
        folder = place if paths is written.vendor else place / "hospitals"
        write_site(folder, paths.site, HEADER, rows, data={"splits": {"column": "split"}})
    table = table_study(seed, place, "age", {})
    vendors = Cohort(table, load_site(place / written.vendor.site / "site.yaml")).split("train")
    save_file({"rows": vendors.inputs}, place / "pool.safetensors")
    write_whole(vendor, save(pretrain(table.model, table.inputs, vendors, CLASSIFIER, seed)))
    return place


def _trunk(seed: int, place: Path, written: PublicSites) -> tuple[nn.Module, Study]:
    """The vendor's network, fine-tuned on its training lesions."""
    start, tuned = place / "imagenet.safetensors", place / "trunk.safetensors"
    if not tuned.exists():
        print(f"seed {seed}: the vendor's network", file=sys.stderr, flush=True)
        save_file(imagenet_state(), start)
        study = image_study(seed, start)
        split = Cohort(study, load_site(written.vendor.site_file)).split("train")
        write_whole(tuned, save(pretrain(study.model, study.inputs, split, TRUNK, seed)))
    study = image_study(seed, tuned)
    network = build(study.model).eval()
    network.load_state_dict(load_file(tuned))
    return network.to(memory_format=torch.channels_last), study  # type: ignore[call-overload]


@torch.no_grad()
def _features(network: nn.Module, study: Study, split: Split) -> Rows:
    """Mean over a lesion's images of what the network's head sees, (patients, 1280)."""
    torch.set_num_threads(1)
    extractor, parts = network.get_submodule("extractor"), []
    for start in range(0, len(split.inputs), 128):
        images = normalise(study.inputs, split.inputs[start : start + 128])
        parts.append(extractor(images.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3)))
    total = torch.zeros(split.patients, parts[0].shape[1], dtype=torch.float64)
    total.index_add_(0, split.patient, torch.cat(parts).double())
    return (total / torch.bincount(split.patient, minlength=split.patients)[:, None]).numpy()


def _rows(prefix: str, split_name: str, split: Split, features: Rows) -> list[tuple[object, ...]]:
    """Manifest rows of a split: age is written as one on either side of the cut, or left empty."""
    ages, sexes = ("40", "70", ""), ("female", "male", "")
    return [
        (f"{prefix}-{n}", int(label), ages[age], sexes[sex], split_name, *(f"{value:.4f}" for value in row))
        for n, (label, age, sex, row) in enumerate(
            zip(split.label, split.groups["age"], split.groups["sex"], features, strict=True)
        )
    ]
