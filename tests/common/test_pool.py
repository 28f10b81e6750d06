"""The public pool: three kinds of files, and what is said of a wrong one."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from equipoise.common.errors import DataError, StudyError
from equipoise.common.pool import Pool, network_of
from equipoise.common.study import Study
from equipoise.common.study_file import pin_pool
from tests.tiny import FEATURES, WIDTH, classifier_of, make_study, network, weights_file


def study_with(path: Path, factory: str = "small", sha256: str | None = None) -> Study:
    pool = {"path": path.name, "sha256": sha256}
    return pin_pool(make_study(factory=factory, privacy={"mode": "none", "public_pool": pool}), path.parent)


def test_rows_of_a_csv_are_read_as_a_hospital_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "pool.csv"
    header = ",".join(f"f{i}" for i in range(FEATURES))
    file.write_text(f"{header}\n3,-3,0,9,\n0,0,0,0,0\n")
    pool = Pool.of(study_with(file))
    assert len(pool) == 2
    assert pool.rows[0].tolist() == [1, -1, 0, 1, 0, 0, 0, 0, 0, 1]  # clipped to its range; missing has its flag
    assert next(iter(pool.batches())).shape == (2, WIDTH)


def test_images_of_a_zip_and_decoded_rows_are_the_same(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    archive = tmp_path / "pool.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for number, image in enumerate(pixels):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            file.writestr(f"{number}.png", png.getvalue())
    decoded = tmp_path / "pool.safetensors"
    decoded.write_bytes(save({"rows": torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()}))
    pools = [Pool.of(study_with(path, "conv")) for path in (archive, decoded)]
    assert torch.equal(pools[0].rows, pools[1].rows)
    assert pools[0].normalised().dtype == torch.float32


def test_scores_are_those_of_the_classifier_or_of_the_vendors(tmp_path: Path) -> None:
    file = tmp_path / "pool.safetensors"
    file.write_bytes(save({"rows": torch.rand(5, WIDTH)}))
    study, vendor = study_with(file), weights_file(seed=1)
    model = classifier_of(study, vendor)
    moved = model.with_values({"head.bias": model.base["head.bias"] + 1})
    pool = Pool.of(study)
    expected = network(seed=1)(pool.rows).detach().double()
    assert torch.allclose(pool.scores(network_of(study, moved, base=True)), expected)
    assert torch.allclose(pool.scores(network_of(study, moved)), expected + 1, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pool.csv", b"f0,f1\n1,2\n", "no column 'f2'"),
        ("pool.csv", b"f0,f1,f2,f3,f4\n1,2,3,4,many\n", "'many' is not a number"),
        ("pool.safetensors", b"no such thing", "tensor 'rows'"),
        ("pool.safetensors", save({"rows": torch.zeros(3, 4)}), "expected \\(n, 10\\)"),
        ("pool.safetensors", save({"rows": torch.zeros(0, WIDTH)}), "expected \\(n, 10\\)"),
        ("pool.txt", b"hello", "a .csv or a .parquet file"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        Pool.of(study_with(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_another_file_than_declared_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pool.safetensors"
    file.write_bytes(save({"rows": torch.rand(5, WIDTH)}))
    with pytest.raises(StudyError, match="use the declared file or correct the digest"):
        study_with(file, sha256="0" * 64)
    study = study_with(file)
    file.write_bytes(save({"rows": torch.rand(6, WIDTH)}))
    with pytest.raises(StudyError, match="is not the file that the study declares"):
        Pool.of(study)
    with pytest.raises(StudyError, match="no readable file at"):
        study_with(tmp_path / "nothing.csv")
