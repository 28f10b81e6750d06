"""Studies that run in a second: three hospitals' folders, the vendor's weights and a study file, as a user has them."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save

from equipoise.common.factory import load_factory

SITES = ("ash", "birch", "cedar")
SPLITS = ("train", "train", "validation", "test")
PATIENTS = 48
SIZE = 32  # side of the images in pixels

TABLE = {
    "study": "small",
    "seed": 3,
    "model": {
        "factory": "equipoise.common.models:mlp",
        "arguments": {"features": 6},
        "weights": {"path": "vendor.safetensors"},
    },
    "inputs": {"kind": "table", "features": [{"name": f"x{i}", "range": [-3, 3]} for i in range(3)]},
    "label": {"column": "disease", "positive": [1]},
    "attributes": [
        {"name": "sex", "levels": ["female", "male"], "primary": True},
        {"name": "age", "kind": "cut", "cuts": [40, 60]},
    ],
    "method": {"name": "swift", "rounds": {"extractor": 2, "head": 1}, "batch": 16},
    "evaluation": {"bins": 64, "threshold": {"rule": "fixed:0.5"}},
    "simulation": {"hospitals": {"kind": "folders", "path": "hospitals"}, "workers": 1},
}
IMAGES = {
    **TABLE,
    "model": {
        "factory": "equipoise.common.models:resnet_small",
        "weights": {"path": "vendor.safetensors"},
    },
    "inputs": {"kind": "image", "size": SIZE},
    "method": {"name": "fine_tune", "rounds": 1, "part": "head"},
}


class Desk:
    """A folder with hospitals and a study that a test may damage.

    Attributes:
        folder: holds `study.yaml`, `vendor.safetensors` and `hospitals/<site>/`.
    """

    def __init__(self, folder: Path, study: dict[str, Any], sites: Sequence[str] = SITES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.value = yaml.safe_load(yaml.safe_dump(study))
        self.value["simulation"]["hospitals"]["path"] = str(folder / "hospitals")
        self.write_study()
        for number, site in enumerate(sites):
            self._write_hospital(site, number)
        self.write_weights()

    @property
    def study(self) -> Path:
        return self.folder / "study.yaml"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def images(self) -> bool:
        return bool(self.value["inputs"]["kind"] == "image")

    def site(self, name: str) -> Path:
        return self.folder / "hospitals" / name

    def write_study(self, **changes: Any) -> None:
        self.value.update(changes)
        self.study.write_text(yaml.safe_dump(self.value, sort_keys=False))

    def write_weights(self, change: Callable[[dict[str, torch.Tensor]], object] = lambda _: None) -> None:
        """The vendor's file; `change` damages its tensors first."""
        model = self.value["model"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            state = load_factory(model["factory"], model.get("arguments", {})).state_dict()
        change(state)
        (self.folder / "vendor.safetensors").write_bytes(save(state))

    def rows(self, site: str) -> list[dict[str, str]]:
        with (self.site(site) / "manifest.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def write_rows(self, site: str, rows: list[dict[str, str]], header: list[str] | None = None) -> None:
        with (self.site(site) / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, header or list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def change_site(self, name: str, **changes: Any) -> None:
        """Replace top keys of a site file."""
        path = self.site(name) / "site.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))

    def pack(self, site: str, damage: Callable[[str, bytes], bytes] = lambda _, content: content) -> None:
        """Write the images of a site; `damage(name, content)` gives what the zip holds of each."""
        rng = np.random.default_rng(len(site))
        with zipfile.ZipFile(self.site(site) / "images.zip", "w") as archive:
            for row in self.rows(site):
                pixels = rng.integers(0, 200, (SIZE, SIZE, 3)) + 50 * int(row["disease"])
                png = io.BytesIO()
                Image.fromarray(pixels.astype(np.uint8)).save(png, "PNG")
                archive.writestr(row["image"], damage(row["image"], png.getvalue()))

    def _write_hospital(self, site: str, number: int) -> None:
        rng = np.random.default_rng(number)
        self.site(site).mkdir(parents=True)
        rows = []
        for patient in range(PATIENTS):
            disease = int(rng.random() < 0.5)
            values = {f"x{i}": f"{rng.normal(disease - 0.5, 1):.4f}" for i in range(3)}
            row = {
                "patient": f"{site}-{patient:03d}",
                "image": f"{patient:03d}.png",
                **values,
                "sex": ("female", "male", "unknown")[int(rng.choice(3, p=[0.45, 0.45, 0.1]))],
                "age": str(int(rng.integers(20, 90))),
                "disease": str(disease),
                "split": SPLITS[patient % len(SPLITS)],
            }
            rows.append(row)
        self.write_rows(site, rows)
        data: dict[str, Any] = {"manifest": "manifest.csv", "splits": {"column": "split"}}
        if self.images:
            self.pack(site)
            data["images"] = "images.zip"
        (self.site(site) / "site.yaml").write_text(yaml.safe_dump({"site": site, "data": data}))


def left_over(folder: Path) -> list[str]:
    """Files that a write which did not end has left."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.part"))


def files_of(folder: Path, pattern: str = "**/*") -> Iterator[Path]:
    """The files below a folder, in order."""
    return (path for path in sorted(folder.glob(pattern)) if path.is_file())
