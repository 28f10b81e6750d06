"""The commands: what goes to stdout and what to stderr, what each one does, and that a run's every byte is held."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from equipoise import __version__, cli
from equipoise.common import errors
from equipoise.common.methods import METHODS
from equipoise.common.study_file import load_study
from equipoise.common.study_plan import StudyPlan
from equipoise.common.wire import unpack
from equipoise.server.rounds import read_rounds
from equipoise.server.rundir import RunFolder
from equipoise.server.verify import write_seal
from equipoise.simulations.runner import begin_run
from tests.e2e.studies import SITES, TABLE, Desk, files_of
from tests.e2e.terminal import ROOT, Ended, Run, start

CONTROLS = ["no_mask", "constant", "permuted", "plain", "balanced", "head"]
COLOUR = re.compile(r"\x1b\[[0-9;]*[34][0-9][0-9;]*m")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Desk, int, str, str]:
    """A run made by a process of its own, with what it printed as JSON."""
    desk = Desk(tmp_path_factory.mktemp("simulated"), TABLE)
    desk.write_study(method={**TABLE["method"], "controls": ["no_mask", "pooled"]})
    process = start("simulate", desk.study, "--out", desk.run, "--format", "json")
    out, err = process.communicate(timeout=120)
    return desk, process.returncode, out, err


@pytest.fixture
def run(simulated: tuple[Desk, int, str, str]) -> Path:
    return simulated[0].run


def test_simulate_prints_one_json_document_and_nothing_else_on_stdout(simulated: tuple[Desk, int, str, str]) -> None:
    desk, code, out, err = simulated
    assert code == 0, err
    assert out.count("\n") == 1
    assert json.loads(out) == json.loads((desk.run / "report.json").read_text())
    # No bar where nobody looks: stderr is a pipe here.
    assert err == f"report: {desk.run / 'report.html'}\n"


def test_simulate_prints_the_summary_as_text(desk: Desk, equipoise: Run) -> None:
    ended = equipoise("simulate", desk.study, "--out", desk.run)
    assert ended.code == 0
    assert "equalized_odds_difference by sex" in ended.out
    assert ended.out.endswith(f"report: {desk.run / 'report.html'}\n")
    assert ended.err == ""


class _Terminal:
    """A pseudo-terminal in the place of stderr."""

    def __init__(self) -> None:
        self._reader, writer = os.openpty()
        self.stream = os.fdopen(writer, "w")

    def text(self) -> str:
        self.stream.close()
        parts = []
        while True:
            try:
                part = os.read(self._reader, 2**16)
            except OSError:  # the other end is closed
                break
            parts.append(part)
            if not part:
                break
        os.close(self._reader)
        return b"".join(parts).decode()


@pytest.mark.parametrize("no_colour", [True, False])
def test_progress_goes_to_the_terminal_and_respects_no_color(
    no_colour: bool, desk: Desk, equipoise: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for variable in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(variable, raising=False)
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal = _Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal.stream)
        ended = equipoise("simulate", desk.study, "--out", desk.run, "--format", "json")
    shown = terminal.text()
    assert ended.code == 0
    json.loads(ended.out)
    assert "swift: extractor" in shown
    assert bool(COLOUR.search(shown)) is not no_colour


def test_help_imports_neither_torch_nor_flower() -> None:
    commands = [["--help"], ["simulate", "--help"], ["verify", "--help"], ["version"], ["simulate", "--sets"]]
    code = (
        "import json, sys\n"
        "from equipoise.cli import main\n"
        f"for sys.argv in {[['equipoise', *command] for command in commands]}:\n"
        "    try:\n        main()\n    except SystemExit:\n        pass\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(json.dumps(sorted(loaded & {'torch', 'flwr', 'numpy', 'scipy', 'pyarrow', 'ray'})))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Usage: equipoise simulate" in ended.stdout
    assert ended.stdout.splitlines()[-1] == "[]"


def test_exit_codes_are_those_of_the_epilog() -> None:
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.EquipoiseError) and "exit_code" in vars(kind)
    }
    codes = Counter(kind.exit_code for kind in kinds)
    assert max(codes.values()) == 1  # but for those that have the code of what they are a kind of
    named = {int(code) for code in re.findall(r"(\d+) [a-z]", cli.app.info.epilog or "")}
    assert named == (set(codes) - {1}) | {0, 130}


@pytest.mark.parametrize(
    "arguments", [["simulate"], ["simulat"], ["simulate", "x.yaml", "--engine", "ray"], ["--sets"]]
)
def test_a_wrong_option_is_exit_code_2(arguments: list[str], equipoise: Run) -> None:
    ended = equipoise(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert "Traceback" not in ended.err


def test_version(equipoise: Run) -> None:
    assert equipoise("version") == Ended(0, f"equipoise {__version__}\n", "")
    assert json.loads(equipoise("version", "--format", "json").out) == {"version": __version__}


def test_methods_are_listed(equipoise: Run) -> None:
    rows = json.loads(equipoise("methods", "--format", "json").out)
    assert [row["name"] for row in rows] == list(METHODS)
    text = equipoise("methods").out
    for row in rows:
        assert row["paper"] in text
        assert row["sends"] in text


# What a study would ask, and what it asked.


def asked(run: Path) -> list[tuple[str, str, str]]:
    """(arm, query, phase) of every release of a run, in order, as rounds.jsonl has them."""
    return [(row["run"].partition("/")[2], row["query"], row["phase"]) for row in read_rounds(run / "rounds.jsonl")]


def public_parts(run: Path) -> list[dict[str, Any]]:
    """The public part of every query of a run as stored beside its sums, the method's and its controls' first."""
    folders = [run / "transcript", *sorted(run.glob("controls/*/transcript")), run / "evaluation"]
    return [unpack(file.read_bytes())[0]["public"] for folder in folders for file in files_of(folder, "sums/*")]


PLANS = {
    "swift": TABLE["method"],
    "all controls": {**TABLE["method"], "controls": CONTROLS},
    "extreme levels": {**TABLE["method"], "levels": "extremes"},
    "mini-batch importance": {**TABLE["method"], "importance": "mini_batch", "granularity": "parameter"},
    "whole gradients": {**TABLE["method"], "step": "full_gradient", "batch": 64, "controls": ["no_mask"]},
    "no head phase": {**TABLE["method"], "rounds": {"extractor": 1, "head": 0}},
    "fine-tuning": {"name": "fine_tune", "rounds": 2, "controls": ["plain", "head"]},
}


@pytest.mark.parametrize("name", PLANS)
def test_the_plan_is_what_the_run_asks(name: str, desk: Desk, equipoise: Run) -> None:
    # Three levels, so that `extremes` has one to leave out.
    attributes = [
        {"name": "age", "kind": "cut", "cuts": [40, 60], "primary": True},
        TABLE["attributes"][0] | {"primary": False},
    ]
    validation = {"bins": 64, "threshold": {"rule": "youden"}}
    # Declared numbers fix the lattices, so that every figure of the plan is that of the run.
    desk.write_study(
        attributes=attributes,
        method=PLANS[name],
        evaluation=validation,
        sites={"declared_patients": dict.fromkeys(SITES, 24)},
    )
    ended = equipoise("plan", desk.study, "--format", "json")
    rows = json.loads(ended.out)["queries"]
    assert ended.err == ""
    assert equipoise("simulate", desk.study, "--out", desk.run).code == 0
    planned = [(entry.arm, entry.query) for entry in StudyPlan.of(load_study(desk.study)).entries]
    assert [(arm, query.name, query.phase) for arm, query in planned] == asked(desk.run)
    ordered = [
        query.public
        for arm in (PLANS[name]["name"], *sorted(PLANS[name].get("controls", [])), "evaluation")
        for of, query in planned
        if of == arm
    ]
    assert ordered == public_parts(desk.run)
    assert sum(row["times"] for row in rows) == len(planned)
    # Every integer takes eight bytes; what is around them is a header of some kB.
    sent = Counter[str]()
    for row in read_rounds(desk.run / "rounds.jsonl"):
        sent[row["run"].partition("/")[2]] += row["bytes_up"]["ash"]
    for arm, count in Counter(arm for arm, _ in planned).items():
        declared = sum(row["bytes_up"] for row in rows if row["arm"] == arm)
        assert declared < sent[arm] < declared + 4096 * count


def test_the_plan_reads_neither_weights_nor_patients(desk: Desk, equipoise: Run) -> None:
    (desk.site("ash") / "manifest.csv").unlink()
    ended = equipoise("plan", desk.study)
    assert ended.code == 0
    assert ended.out.splitlines()[0].split() == ["arm", "times", "phase", "query", "split", "up,", "bytes", "epsilon"]
    assert "local_training" in ended.out
    ended = equipoise("plan", desk.study, "--set", "evaluation.by_site=true")
    assert next(line for line in ended.out.splitlines() if "site_table" in line).split()[5:7] == ["by", "hospitals"]


def test_the_plan_has_what_measures_a_model_that_the_simulation_trains_and_says_so(run: Path, equipoise: Run) -> None:
    ended = equipoise("plan", run.parent / "study.yaml", "--format", "json")
    planned = [row for row in json.loads(ended.out)["queries"] if row["arm"] == "evaluation"]
    assert ended.err == (
        "not in the plan: the training of pooled, which the simulation does itself (the queries that measure these "
        "models are)\n"
    )
    assert "pooled" not in {row["arm"] for row in json.loads(ended.out)["queries"]}
    measured = [row for row in asked(run) if row[0] == "evaluation"]
    assert len(measured) == sum(row["times"] for row in planned)


def test_the_plan_says_that_local_models_need_the_declared_numbers(desk: Desk, equipoise: Run) -> None:
    times = {}
    for sites in ({}, {"declared_patients": dict.fromkeys(SITES, 24)}):
        desk.write_study(method={**TABLE["method"], "controls": ["local_only"]}, sites=sites)
        ended = equipoise("plan", desk.study, "--format", "json")
        assert ("need sites.declared_patients" in ended.err) == (not sites)
        times[bool(sites)] = sum(row["times"] for row in json.loads(ended.out)["queries"] if row["arm"] == "evaluation")
    assert times[True] > times[False]


def test_a_plan_of_an_unknown_method_is_one_line(desk: Desk, equipoise: Run) -> None:
    desk.write_study(method={"name": "swft", "controls": ["no_mask"]})
    ended = equipoise("plan", desk.study)
    assert ended.code == 2
    assert "method.name=swft: no such method; there are: " in ended.error


# Another method for one run.


def test_another_method_takes_its_own_keys_and_keeps_what_controls_it_has(desk: Desk, equipoise: Run) -> None:
    desk.write_study(method={**TABLE["method"], "controls": ["no_mask", "plain"]})
    ended = equipoise(
        "simulate", desk.study, "--out", desk.run, "--method", "fine_tune", "--set", "method.rounds=1",
        "--set", "method.part=head",
    )  # fmt: skip
    assert ended.code == 0
    assert ended.err == "controls without a meaning for fine_tune are left out: no_mask\n"
    task = json.loads((desk.run / "task.json").read_text())
    assert list(task["arms"]) == ["fine_tune", "plain"]
    assert task["study"]["method"] == {"name": "fine_tune", "controls": ["plain"], "rounds": 1, "part": "head"}


def test_another_method_that_there_is_not_is_one_line(desk: Desk, equipoise: Run) -> None:
    ended = equipoise("simulate", desk.study, "--out", desk.run, "--method", "swft")
    assert ended.code == 2
    assert "no such method; there are: " in ended.error


# What a run comes to.


def test_verify_derives_the_run_again(run: Path, equipoise: Run) -> None:
    ended = equipoise("verify", run)
    assert ended.code == 0
    for what in ("files: ", "model of swift: ", "model of no_mask: ", "model of pooled: ", "report: ", "site ash ("):
        assert f"\n{what}" in f"\n{ended.out}"
    rows = json.loads(equipoise("verify", run, "--format", "json").out)
    assert [row["what"] for row in rows][:2] == ["files", "model of swift"]


def test_report_writes_the_same_report_again(run: Path, equipoise: Run) -> None:
    before = {name: (run / name).read_bytes() for name in ("report.json", "report.html")}
    for name in before:
        (run / name).unlink()
    ended = equipoise("report", run, "--format", "json")
    assert ended.code == 0
    assert ended.err == f"report: {run / 'report.html'}\n"
    assert json.loads(ended.out) == json.loads(before["report.json"])
    assert {name: (run / name).read_bytes() for name in before} == before
    assert equipoise("verify", run).code == 0


def test_a_finished_run_is_resumed_without_a_change(run: Path, equipoise: Run) -> None:
    sealed = (run / "seal.json").read_bytes()
    assert equipoise("simulate", run.parent / "study.yaml", "--out", run, "--resume").code == 0
    assert (run / "seal.json").read_bytes() == sealed


def test_a_run_that_goes_on_finds_its_hospitals_where_they_lie_by_now(run: Path, tmp_path: Path) -> None:
    """A folder that was moved, or a command from elsewhere, where the path was not absolute."""
    moved = RunFolder(Path(shutil.copytree(run, tmp_path / "moved")))
    before = (moved.path / "hospitals.json").read_text()
    files = {site: [tmp_path / "hospitals" / site / "site.yaml"] for site in json.loads(before)}
    begin_run(moved, moved.task(), files)
    assert (moved.path / "hospitals.json").read_text() == before  # it has ended, and is as it was sealed
    (moved.path / "seal.json").unlink()
    begin_run(moved, moved.task(), files)
    found = json.loads((moved.path / "hospitals.json").read_text())
    assert found == {site: [str(file)] for site, (file,) in files.items()}


def test_a_run_is_verified_from_inside_its_folder_and_under_another_name(
    run: Path, equipoise: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    assert equipoise("verify", ".").code == 0
    archived = tmp_path / "archived-in-2031"
    archived.symlink_to(run)
    assert equipoise("verify", archived).code == 0


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def sealed_files(run: Path) -> list[Path]:
    """All files of a run but the hospitals' own and the seal."""
    return [
        f
        for f in files_of(run)
        if f.relative_to(run).parts[0] not in ("sites", "hospitals")
        and f.name != "seal.json"
        and "sites" not in f.relative_to(run).parts
    ]


@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_a_flipped_bit_in_any_file_is_found_and_named(where: float, run: Path, equipoise: Run) -> None:
    files = sealed_files(run)
    names = {str(file.relative_to(run)) for file in files}
    assert {"task.json", "base.safetensors", "notes.json", "rounds.jsonl", "report.html", "hospitals.json"} < names
    assert {"evaluation/chain.jsonl", "controls/no_mask/model.safetensors", "controls/pooled/task.json"} < names
    assert names == set(json.loads((run / "seal.json").read_text()))
    for file in files:
        content = file.read_bytes()
        file.write_bytes(flipped(content, int(where * (len(content) - 1))))
        try:
            ended = equipoise("verify", run)
        finally:
            file.write_bytes(content)
        assert ended.code == 7, file
        assert str(file) in ended.error
    assert equipoise("verify", run).code == 0


def test_a_broken_seal_is_named(run: Path, equipoise: Run) -> None:
    seal = run / "seal.json"
    content = seal.read_bytes()
    for changed in (content[:-1], b"", flipped(content, 0)):
        seal.write_bytes(changed)
        try:
            ended = equipoise("verify", run)
        finally:
            seal.write_bytes(content)
        assert ended.code == 7
        assert str(seal) in ended.error


@pytest.mark.parametrize("change", ["added", "removed"])
def test_a_file_more_or_less_is_found_and_named(change: str, run: Path, equipoise: Run) -> None:
    file = run / ("evaluation/sums/0099.safetensors" if change == "added" else "notes.json")
    content = file.read_bytes() if file.exists() else None
    file.unlink() if content else file.write_bytes(b"")
    try:
        ended = equipoise("verify", run)
    finally:
        file.write_bytes(content) if content else file.unlink()
    assert ended.code == 7
    assert str(file) in ended.error


def forged_model(run: Path) -> Path:
    file = run / "controls" / "no_mask" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(flipped(content, len(content) - 1))
    return file


def forged_sum(run: Path) -> Path:
    file = run / "transcript" / "sums" / "0002.safetensors"
    content = file.read_bytes()
    file.write_bytes(flipped(content, len(content) - 8))
    return file


def forged_report(run: Path) -> Path:
    file = run / "report.json"
    file.write_bytes(re.sub(rb'"schema": "[^"]+"', b'"schema": "other"', file.read_bytes(), count=1))
    return file


@pytest.mark.parametrize("forge", [forged_model, forged_sum, forged_report])
def test_a_forged_file_is_found_under_a_seal_that_fits_it(
    forge: Callable[[Path], Path], run: Path, equipoise: Run
) -> None:
    before = {file: file.read_bytes() for file in files_of(run)}
    file = forge(run)
    write_seal(RunFolder(run))
    try:
        ended = equipoise("verify", run)
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    assert ended.code == 7
    assert str(file) in ended.error


# The vendor's training.

HEART = ROOT / "configs" / "heart.yaml"
PUBLIC = pytest.mark.skipif(not os.environ.get("EQUIPOISE_DATA"), reason="EQUIPOISE_DATA is not set")


@PUBLIC
def test_pretrain_writes_the_weights_that_simulate_would_make(tmp_path: Path, equipoise: Run) -> None:
    quick = ("--set", "simulation.pretrain.epochs=2")
    file = tmp_path / "vendor.safetensors"
    ended = equipoise("pretrain", HEART, "--out", file, *quick)
    assert ended.code == 0, ended.err
    assert re.fullmatch(rf"{re.escape(str(file))}: trained on \d+ patients; sha256 [0-9a-f]{{64}}\n", ended.out)
    assert "head.weight" in load_file(file)
    short = ("--set", "method.controls=[]", "--set", "method.rounds={extractor: 1, head: 0}")
    assert equipoise("simulate", HEART, "--out", tmp_path / "run", *quick, *short).code == 0
    assert (tmp_path / "run" / "base.safetensors").read_bytes() == file.read_bytes()


def test_pretrain_without_a_vendor_is_one_line(desk: Desk, equipoise: Run) -> None:
    ended = equipoise("pretrain", desk.study, "--out", desk.folder / "new.safetensors", "--set", "model.weights=null")
    assert ended.code == 2
    assert "without a vendor's data" in ended.error
    assert not (desk.folder / "new.safetensors").exists()


@pytest.mark.slow
@PUBLIC
def test_the_heart_study_runs_and_verifies_as_it_is(tmp_path: Path, equipoise: Run) -> None:
    assert equipoise("simulate", HEART, "--out", tmp_path / "run").code == 0
    assert equipoise("verify", tmp_path / "run").code == 0


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_flower_engine_is_one_line_and_the_run_goes_on_without_it(desk: Desk, equipoise: Run) -> None:
    ended = equipoise("simulate", desk.study, "--out", desk.run, "--engine", "flower")
    assert ended.code == 2
    assert "--engine flower: Ray is not installed; install equipoise[simulation], or leave --engine out" in ended.error
    assert equipoise("simulate", desk.study, "--out", desk.run, "--resume").code == 0
