"""The hospitals of a simulation, from whatever its study names: synthetic, public, or folders of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipoise.client.cohort import Cohort, Split
from equipoise.common.errors import StudyError
from equipoise.common.sitefile import load_site
from equipoise.common.study import Study, TableInputs
from equipoise.common.study_simulation import FolderHospitals, PublicHospitals, SyntheticHospitals
from equipoise.simulations.sitefolder import SITE_FILE, SitePaths, write_site


@dataclass(frozen=True)
class Hospitals:
    """Hospitals on this machine.

    Attributes:
        sites: site name -> its site file.
        vendor: writes the vendor's own data as a site folder and gives its site file; None where there is none.
        pool: decodes unlabelled public rows, for a private study that names none; None where there are none.
        facts: what the report should say of the data.
    """

    sites: dict[str, Path]
    vendor: Callable[[], Path] | None
    pool: Callable[[], Tensor] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def vendor_split(self, study: Study) -> Split:
        """The vendor's training patients, decoded.

        Raises:
            StudyError: these hospitals come without a vendor.
        """
        if self.vendor is None:
            raise StudyError(
                "model.weights is missing and these hospitals come without a vendor's data to pretrain on; "
                "name a safetensors file in model.weights.path"
            )
        return Cohort(study, load_site(self.vendor())).split("train")


def build_hospitals(study: Study, folder: Path) -> Hospitals:
    """Write (or find) the hospitals that `study.simulation` names, below `folder`.

    Raises:
        StudyError: the study has no simulation, or its data are not there.
    """
    if study.simulation is None:
        raise StudyError(f"study {study.study}: `simulation` is missing; name the hospitals to simulate")
    wanted = study.simulation.hospitals
    if isinstance(wanted, SyntheticHospitals):
        return _synthetic(study, wanted, folder)
    if isinstance(wanted, PublicHospitals):
        return _public(study, wanted, folder)
    return _folders(wanted)


def _synthetic(study: Study, wanted: SyntheticHospitals, folder: Path) -> Hospitals:
    from equipoise.simulations import synthetic

    written = synthetic.write_hospitals(
        folder,
        study.seed,
        hospitals=wanted.count,
        single_group=wanted.single_group,
        patients=wanted.patients,
        validation=wanted.validation,
        test=wanted.test,
    )

    def vendor() -> Path:
        drawn = synthetic.vendor_set(wanted.bench, study.seed)
        names = [f"{number:05d}.png" for number in range(len(drawn.label))]
        rows = [
            (f"v-{number:05d}", name, synthetic.TONES[group], label, "train")
            for number, (name, group, label) in enumerate(zip(names, drawn.group, drawn.label, strict=True))
        ]
        return write_site(
            folder,
            "vendor",
            ("patient", "image", "tone", "malignant", "split"),
            rows,
            data={"images": "images.zip", "splits": {"column": "split"}, "synthetic": True},
            files={"images.zip": synthetic.zip_images(names, np.asarray(drawn.images))},
        ).site_file

    facts = {"source": f"synthetic dermoscopy, bench {wanted.bench}", "note": "", "synthetic": True}

    def pool() -> Tensor:
        images = (
            synthetic.diverse_pool(study.seed, wanted.count)
            if wanted.pool == "diverse"
            else synthetic.vendor_pool(wanted.bench, study.seed)
        )
        return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).contiguous()

    return Hospitals({paths.site: paths.site_file for paths in written}, vendor, pool, facts)


def _public(study: Study, wanted: PublicHospitals, folder: Path) -> Hospitals:
    from equipoise.simulations import adult, diabetes, public

    write = {
        "heart": public.write_heart,
        "ham10000": public.write_ham10000,
        "adult": adult.write_adult,
        "diabetes": diabetes.write_diabetes,
    }
    written = write[wanted.kind](folder, public.public_data_folder(), study.seed)
    facts = {"source": wanted.kind, "note": written.note, "synthetic": False}

    def pool() -> Tensor:
        if isinstance(study.inputs, TableInputs):
            return public.range_pool(study.inputs, study.seed, wanted.kind)
        # The vendor's held-out lesions, whose labels nobody looks at.
        return Cohort(study, load_site(written.vendor.site_file)).split("validation").inputs

    return Hospitals(_by_name(written.sites), lambda: written.vendor.site_file, pool, facts)


def _folders(wanted: FolderHospitals) -> Hospitals:
    root = Path(wanted.path)
    key = f"simulation.hospitals.path={wanted.path}"
    folders = sorted(root.glob("[!.]*/"))
    if not folders:
        raise StudyError(f"{key}: no folders there; give each hospital one, with a {SITE_FILE}")
    for folder in folders:
        if not (folder / SITE_FILE).is_file():
            raise StudyError(
                f"{key}: {folder} has no {SITE_FILE}; write one (docs/site-file.md), or move the folder away"
            )
    sites: dict[str, Path] = {}
    for file in (folder / SITE_FILE for folder in folders):
        name = load_site(file).site
        if name in sites:
            raise StudyError(f"{key}: {sites[name]} and {file} both say site: {name}; rename one")
        sites[name] = file
    synthetic = all(load_site(file).data.synthetic for file in sites.values())
    return Hospitals(sites, None, None, {"source": "hospitals' own folders", "note": "", "synthetic": synthetic})


def _by_name(paths: list[SitePaths]) -> dict[str, Path]:
    return {one.site: one.site_file for one in paths}
