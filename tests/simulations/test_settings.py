"""The settings of bench A: what is run, and the one table of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from equipoise.common.study_file import load_study
from equipoise.simulations.benchmarks import outcome, settings


def result(name: str, gap: float, seeds: int = 3) -> str:
    """A results file in which every model's gap is a tenth of its place above `gap`."""
    models = {model: {"gap": gap + place / 10, "worst_group_auc": 0.8} for place, model in enumerate(settings.COLUMNS)}
    per_seed = [{model: dict(figures) for model, figures in models.items()} for _ in range(seeds)]
    value = {"command": f"run {name}", "commit": "c0ffee", "seeds": list(range(seeds)), "verdicts": ["pass"] * seeds}
    return json.dumps({**value, "over_seeds": outcome.summarise(per_seed, "swift")})


def test_the_table_has_a_row_for_each_setting_that_was_run(tmp_path: Path) -> None:
    (tmp_path / "bench-a.json").write_text(result("bench-a", 0.1))
    assert settings.section(tmp_path) == ""  # which has a section of its own
    (tmp_path / "bench-a-16-hospitals.json").write_text(result("sixteen", 0.3))
    text = settings.section(tmp_path)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| 1")]
    assert len(rows) == 1
    label, base, swift, no_mask, plain, balanced, less_plain, less_balanced, *aucs, verdicts = rows[0]
    assert label == "16 hospitals of 300"
    means = [float(cell.split()[0]) for cell in (base, swift, no_mask, plain, balanced, less_plain, less_balanced)]
    assert means == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7, -0.2, -0.3])
    assert [cell.split()[0] for cell in aucs] == ["0.800", "0.800"]
    assert "`run sixteen`, commit c0ffee." in text
    assert "`run bench-a`, commit c0ffee." in text
    assert verdicts == "3 pass"
    assert "2 settings. Seeds 0, 1, 2:" in text
    assert "Not run yet: 4 hospitals of 300; " in text
    assert "16 hospitals" not in text.partition("Not run yet")[2].partition("\n\n")[0]


def test_every_setting_is_run_under_its_own_name_and_is_what_its_label_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: dict[str, Any] = {}

    def run(study_file: Path, seeds: int, out: Path, sets: list[str]) -> None:
        study = load_study(Path(__file__).parents[2] / study_file, sets)
        assert study.simulation is not None
        ran[study.study] = study.simulation.hospitals
        assert study.method.controls == ["no_mask", "plain", "balanced", "auc_noise"]

    monkeypatch.setattr(outcome, "main", run)
    settings.main(seeds=3, out=tmp_path)
    assert set(ran) == set(settings.SETTINGS) - {"bench-a"}
    assert ran["bench-a-4-hospitals"].count == 4
    assert ran["bench-a-16-hospitals"].count == 16
    assert ran["bench-a-100-patients"].patients == 100
    assert ran["bench-a-1000-patients"].patients == 1000
    assert [ran[f"bench-a-{count}-single-group"].single_group for count in (3, 6)] == [3, 6]
    assert (ran["bench-b"].bench, ran["bench-c"].bench) == ("B", "C")
