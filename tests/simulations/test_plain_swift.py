"""The frozen yardstick of speed ends with the weights that a simulated study ends with."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from equipoise.common.models import resnet_small
from equipoise.common.study_file import load_study
from equipoise.simulations.hospitals import build_hospitals
from equipoise.simulations.runner import simulate

ROOT = Path(__file__).resolve().parents[2]
PLAIN = ROOT / "simulations" / "benchmarks" / "plain_swift.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vendor's weights, three small hospitals, a study's run on them and the script's weights."""
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(3)
    save_file(resnet_small().state_dict(), folder / "vendor.safetensors")
    small = "{kind: synthetic, count: 3, patients: 100, validation: 0, test: 12}"
    given = ["seed=5", "method.controls=[]", "method.rounds={extractor: 2, head: 1}", "simulation.workers=1"]
    demo = ROOT / "configs" / "demo.yaml"
    build_hospitals(load_study(demo, [*given, f"simulation.hospitals={small}"]), folder / "hospitals")
    on_them = f"simulation.hospitals={{kind: folders, path: {folder / 'hospitals'}}}"
    weights = f"model.weights={{path: {folder / 'vendor.safetensors'}}}"
    simulate(load_study(demo, [*given, on_them, weights]), folder / "run")
    paths = [folder / "hospitals", folder / "vendor.safetensors", folder / "plain.safetensors"]
    subprocess.run([sys.executable, PLAIN, *paths, "--seed", "5", "--rounds", "2", "1"], check=True)
    return folder


def test_the_script_ends_with_the_study_s_weights(folder: Path) -> None:
    study, plain, vendor = (
        load_file(folder / name) for name in ("run/model.safetensors", "plain.safetensors", "vendor.safetensors")
    )
    assert study.keys() == plain.keys()
    flat = [
        np.concatenate([state[name].double().numpy().ravel() for name in study]) for state in (study, plain, vendor)
    ]
    assert np.linalg.norm(flat[0] - flat[1]) <= 1e-4 * np.linalg.norm(flat[1])
    # Not because nothing moved: the change itself agrees as well, and the head's.
    assert np.linalg.norm(flat[0] - flat[1]) <= 1e-3 * np.linalg.norm(flat[0] - flat[2])
    assert not torch.equal(study["head.weight"], vendor["head.weight"])


def test_the_script_owes_equipoise_nothing() -> None:
    imported = {
        alias.name
        for node in ast.walk(ast.parse(PLAIN.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in ([ast.alias(node.module)] if isinstance(node, ast.ImportFrom) and node.module else node.names)
    }
    assert {name.partition(".")[0] for name in imported} <= {
        *sys.stdlib_module_names,
        "numpy",
        "torch",
        "PIL",
        "safetensors",
    }
