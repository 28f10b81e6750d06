"""Whole runs through the real ServerApp and ClientApp: killed and resumed, verified, changed and forged."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.client.ledger import Ledger
from equipoise.common import evaluation
from equipoise.common.canonical import canonical_json, digest_json
from equipoise.common.errors import EquipoiseError, StorageError, StudyError, TranscriptError
from equipoise.common.evaluation import BASE
from equipoise.common.files import write_whole
from equipoise.common.methods import resolve
from equipoise.common.query import Query, Sum
from equipoise.common.study import Study
from equipoise.common.study_file import load_study
from equipoise.common.wire import unpack
from equipoise.server.engine import Engine, _advance
from equipoise.server.rounds import read_rounds
from equipoise.server.run import measure
from equipoise.server.rundir import EVALUATION, RunFolder
from equipoise.server.transcript import Transcript
from equipoise.server.verify import Checked, write_seal
from equipoise.server.verify import verify as verify_run
from equipoise.simulations import runner
from equipoise.simulations.doors import remembered_heads
from tests.tiny import draw_people, write_hospital, write_study

METHOD = {"name": "swift", "lr": 0.05, "rounds": {"extractor": 2, "head": 1}, "controls": ["no_mask", "pooled"]}
SITES = ("north", "south", "west")


def verify(run: RunFolder) -> list[Checked]:
    """What `equipoise verify` does with a simulated run."""
    return verify_run(run, remembered_heads)


def figures(run: RunFolder) -> dict[str, Any]:
    """The released tables as a report would hold them; the report itself is tested elsewhere."""
    task = run.task()
    measured = measure(Engine(task.study, run.plan(), None), run, task)
    tables = {"/".join(key): {a: t.tolist() for a, t in value.items()} for key, value in measured.histograms.items()}
    pairs = {"/".join(key): {a: t.tolist() for a, t in value.items()} for key, value in measured.pairs.items()}
    return {"histograms": tables, "pairs": pairs}


def write_report(run: RunFolder) -> Path:
    write_whole(run.path / "report.json", json.dumps(figures(run)).encode())
    write_whole(run.path / "report.html", b"<html></html>")
    return run.path / "report.html"


@pytest.fixture(autouse=True)
def _plain_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equipoise.server.verify.report_json", figures)
    monkeypatch.setattr("equipoise.server.verify.derived_files", lambda _: {"report.html": "<html></html>"})
    monkeypatch.setattr(runner, "build_report", write_report)


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study over three hospitals, of which the last has a single patient in each split."""
    folder = tmp_path_factory.mktemp("study")
    people = draw_people(93, seed=4)
    for name, chosen in zip(SITES, (range(48), range(48, 90), range(90, 93)), strict=True):
        write_hospital(folder / "hospitals", name, people, chosen)
    return write_study(folder, folder / "hospitals", METHOD)


def start(study: Study, folder: Path, resume: bool = False) -> RunFolder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "build_report", write_report)
        runner.simulate(study, folder, resume=resume)
    run = RunFolder(folder)
    write_seal(run)
    return run


@pytest.fixture(scope="module")
def finished(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run that nothing disturbed."""
    return start(load_study(study_file), tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def run(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy to be changed."""
    shutil.copytree(finished.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def released(run: RunFolder) -> dict[str, bytes]:
    """Models, chains and sums: all that must not depend on how a run went."""
    files = [*run.path.rglob("model.safetensors"), *run.path.rglob("chain.jsonl"), *run.path.rglob("sums/*")]
    kept = {str(file.relative_to(run.path)): file.read_bytes() for file in files}
    assert "model.safetensors" in kept
    assert "evaluation/chain.jsonl" in kept
    return kept


# --- the same bits ------------------------------------------------------------------------------------------------


def test_two_workers_change_no_bit(study_file: Path, finished: RunFolder, tmp_path: Path) -> None:
    two = load_study(study_file, ["simulation.workers=2"])
    assert released(start(two, tmp_path / "run")) == released(finished)


def test_a_run_is_verified_wherever_it_lies(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [row.what for row in verify(run)]
    assert words[0] == "files"
    assert {"model of swift", "model of no_mask", "model of pooled", "report"} <= set(words)
    assert {f"site {site} ({run.name})" for site in SITES} <= set(words)
    moved = RunFolder(run.path.rename(run.path.parent / "archived under another name"))
    assert len(verify(moved)) == len(words)
    monkeypatch.chdir(moved.path)
    assert len(verify(RunFolder(Path()))) == len(words)


def test_verifying_twice_changes_nothing(run: RunFolder) -> None:
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file() and "sites" not in file.parts}
    verify(run)
    verify(run)
    after = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file() and "sites" not in file.parts}
    assert before == after


# --- killed and resumed -------------------------------------------------------------------------------------------


def killed(work: Callable[[], Any], when: Callable[[], bool] | None = None) -> bool:
    """Run `work` in a process of its own that gets SIGKILL at a moment, or from itself; whether it was killed."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    while when is not None and process.is_alive():
        if when():
            process.kill()
            break
        time.sleep(0.001)
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def suicide_at(target: str, count: int, *, after: bool = False, only: str = "") -> Callable[[pytest.MonkeyPatch], None]:
    """A patch after which the `count`-th call of `target` (in which `only` occurs) ends the process with SIGKILL."""
    left = [count]

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        module, _, name = target.rpartition(".")
        owner: Any = pytest.importorskip(module) if ":" not in target else None
        if owner is None:
            module, _, path = target.partition(":")
            owner = pytest.importorskip(module)
            *parents, name = path.split(".")
            for parent in parents:
                owner = getattr(owner, parent)
        real = getattr(owner, name)

        def last(*args: Any, **kwargs: Any) -> Any:
            if only in str(args[:2]):
                left[0] -= 1
            if left[0] == 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **kwargs)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        monkeypatch.setattr(owner, name, last)

    return patch


POINTS = {
    "before the task is written": suicide_at("equipoise.server.rundir:RunFolder.write_task", 2),
    "before the first file of sums": suicide_at("equipoise.server.transcript:write_whole", 1),
    "after a file of sums, before its row": suicide_at("equipoise.server.transcript:append_line", 4),
    "the same, in the control": suicide_at("equipoise.server.transcript:append_line", 12),
    "the same, in the evaluation": suicide_at("equipoise.server.transcript:append_line", 18),
    "after a row, before the next release": suicide_at("equipoise.server.transcript:append_line", 7, after=True),
    "after a site reserved a release": suicide_at("equipoise.client.agent:Ledger.reserve", 8, after=True),
    "before a site seals its reply": suicide_at("equipoise.client.agent:Ledger.seal", 8),
    "after a site sealed its reply": suicide_at("equipoise.client.agent:Ledger.seal", 10, after=True),
    "before the method's model is written": suicide_at("equipoise.server.run:RunFolder.write_outcome", 2),
    "between the arms": suicide_at("equipoise.server.run:RunFolder.write_outcome", 2, after=True),
    "between training and evaluation": suicide_at("equipoise.server.run:measure", 1),
    "before the report": suicide_at("equipoise.simulations.runner:build_report", 1),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_at_any_boundary_ends_the_same(
    point: str, study_file: Path, finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folder = load_study(study_file), tmp_path / "run"
    with monkeypatch.context() as patch:
        POINTS[point](patch)
        assert killed(lambda: runner.simulate(study, folder)), "the run was not interrupted"
    resumed = start(study, folder, resume=RunFolder(folder).task_file.exists())
    assert released(resumed) == released(finished)
    verify(resumed)


def test_a_run_killed_at_random_moments_ends_the_same(study_file: Path, finished: RunFolder, tmp_path: Path) -> None:
    study, folder, dice = load_study(study_file), tmp_path / "run", random.Random(5)
    times = 0
    for sums in (1, 4, 8, 11, 15, 20):
        moment = dice.random() * 0.03

        def due(sums: int = sums, moment: float = moment) -> bool:
            if len(list(folder.rglob("sums/*.safetensors"))) < sums:
                return False
            time.sleep(moment)
            return True

        resume = RunFolder(folder).task_file.exists()
        times += killed(lambda resume=resume: runner.simulate(study, folder, resume=resume), due)
    assert times >= 3, "the run was hardly interrupted"
    resumed = start(study, folder, resume=RunFolder(folder).task_file.exists())
    assert released(resumed) == released(finished)
    verify(resumed)


def test_half_written_lines_of_a_crash_do_not_stop_the_resumed_run(
    run: RunFolder, study_file: Path, finished: RunFolder
) -> None:
    chain, rounds = run.path / "evaluation" / "chain.jsonl", run.path / "rounds.jsonl"
    whole, lines = released(run), len(read_rounds(rounds))
    chain.write_bytes(chain.read_bytes()[:-30])
    rounds.write_bytes(rounds.read_bytes()[:-30])
    with pytest.raises(TranscriptError, match="last line is not whole"):
        run.transcript(run.task().study, EVALUATION)
    resumed = start(load_study(study_file), run.path, resume=True)
    assert released(resumed) == whole == released(finished)
    assert len(read_rounds(rounds)) == lines
    assert all(row["seconds"] >= 0 for row in read_rounds(rounds))
    verify(resumed)


def test_a_finished_run_is_not_begun_again_by_mistake(run: RunFolder, study_file: Path) -> None:
    study = load_study(study_file)
    with pytest.raises(StudyError, match="holds a run already; go on with --resume"):
        runner.simulate(study, run.path)
    other = load_study(study_file, ["method.lr=0.01"])
    with pytest.raises(StudyError, match="the run there is of another study"):
        runner.simulate(other, run.path, resume=True)
    before = released(run)
    assert released(start(study, run.path, resume=True)) == before


# --- changed ------------------------------------------------------------------------------------------------------

KINDS = [
    "task.json",
    "plan.json",
    "base.safetensors",
    "hospitals.json",
    "model.safetensors",
    "notes.json",
    "transcript/chain.jsonl",
    "transcript/sums/0001.safetensors",
    "transcript/witness.jsonl",
    "controls/no_mask/model.safetensors",
    "controls/no_mask/transcript/chain.jsonl",
    "controls/no_mask/transcript/sums/0000.safetensors",
    "controls/pooled/task.json",
    "controls/pooled/plan.json",
    "controls/pooled/model.safetensors",
    "controls/pooled/transcript/sums/0002.safetensors",
    "evaluation/chain.jsonl",
    "evaluation/sums/0000.safetensors",
    "rounds.jsonl",
    "report.json",
    "report.html",
    "seal.json",
]


def flip(file: Path, place: float = 0.6) -> None:
    data = bytearray(file.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    file.write_bytes(data)


def test_the_kinds_are_all_there_are(finished: RunFolder) -> None:
    found = [file for file in finished.path.rglob("*") if file.is_file() and "sites" not in file.parts]
    kinds = {name.split("/")[-1] if "sums" not in name else "sums" for name in KINDS}
    assert {"sums" if file.parent.name == "sums" else file.name for file in found} == kinds


@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_byte_is_found_and_its_file_named(run: RunFolder, name: str) -> None:
    flip(run.path / name)
    with pytest.raises(TranscriptError) as caught:
        verify(run)
    # A byte of the seal is a byte of some file's digest, and it is that file which no longer fits.
    assert name == "seal.json" or Path(name).name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("task.json", "seal.json")])
def test_a_file_that_is_missing_is_named(run: RunFolder, name: str) -> None:
    (run.path / name).unlink()
    with pytest.raises(TranscriptError) as caught:
        verify(run)
    assert Path(name).name in str(caught.value)


def test_a_file_too_many_is_named(run: RunFolder) -> None:
    (run.path / "extra.txt").write_text("x")
    with pytest.raises(TranscriptError, match=r"extra\.txt: was not there"):
        verify(run)


def sealed_again(run: RunFolder) -> str:
    """The complaint about a changed run whose seal was made anew."""
    write_seal(run)
    with pytest.raises(TranscriptError) as caught:
        verify(run)
    return str(caught.value)


def test_a_changed_model_is_found_under_a_new_seal(run: RunFolder) -> None:
    for name in ("model.safetensors", "controls/no_mask/model.safetensors", "controls/pooled/model.safetensors"):
        file = run.path / name
        kept = file.read_bytes()
        flip(file, 0.98)
        assert f"{file}: is not what the released sums give" in sealed_again(run)
        file.write_bytes(kept)
    write_seal(run)
    verify(run)


def test_a_changed_report_is_found_under_a_new_seal(run: RunFolder) -> None:
    file = run.path / "report.json"
    value = json.loads(file.read_text())
    value["pairs"]["base/swift"]["sex"][0][0][0][0][0] += 1
    file.write_text(json.dumps(value))
    assert f"{file}: 'pairs' is not what the released tables give" in sealed_again(run)


def test_another_base_is_found_under_a_new_seal(run: RunFolder) -> None:
    flip(run.path / "base.safetensors", 0.99)
    assert "base.safetensors: missing or changed" in sealed_again(run)


@pytest.mark.parametrize("place", ["transcript", "controls/no_mask/transcript", "evaluation"])
def test_a_truncated_transcript_is_found_under_a_new_seal(run: RunFolder, place: str) -> None:
    chain = run.path / place / "chain.jsonl"
    rows = chain.read_bytes().splitlines(keepends=True)
    chain.write_bytes(b"".join(rows[:-1]))
    (run.path / place / "sums" / f"{len(rows) - 1:04d}.safetensors").unlink()
    assert "the transcript is truncated" in sealed_again(run)
    chain.write_bytes(b"".join(rows)[:-9])
    assert "the last line is not whole" in sealed_again(run)


def test_reordered_rows_are_found_under_a_new_seal(run: RunFolder) -> None:
    chain = run.path / "transcript" / "chain.jsonl"
    rows = chain.read_bytes().splitlines(keepends=True)
    chain.write_bytes(b"".join([rows[0], rows[2], rows[1], *rows[3:]]))
    assert f"{chain}: line 2 does not follow" in sealed_again(run)


def test_a_changed_study_is_found_under_a_new_seal(run: RunFolder) -> None:
    value = json.loads(run.task_file.read_text())
    value["arms"]["swift"]["method"]["lr"] = 0.06
    run.task_file.write_text(json.dumps(value))
    assert "chain.jsonl: line 1 does not follow" in sealed_again(run)


def test_a_changed_plan_is_found_under_a_new_seal(run: RunFolder) -> None:
    file = run.path / "plan.json"
    rows = json.loads(file.read_text())
    rows[0][2]["phase"] = "another"
    file.write_text(json.dumps(rows))
    assert "query 'cell_statistics' (phase counts) is not in what is left of the plan" in sealed_again(run)
    rows[0][2]["phase"] = "counts"
    file.write_text(json.dumps([rows[1], rows[0], *rows[2:]]))
    assert "is not in what is left of the plan" in sealed_again(run)
    file.write_text("{}")
    assert "plan.json: missing or changed" in sealed_again(run)


# --- forged -------------------------------------------------------------------------------------------------------


def refill(
    transcript: Transcript, plan: list[Query], steps: Any, edit: Callable[[int, dict[str, Any]], dict[str, Any]]
) -> Any:
    """Write a transcript anew from its own sums with some of them edited, every digest and hash fitting again."""
    old, points = transcript.rows, {row.number: unpack(transcript._bytes(row))[1] for row in transcript.rows}
    shutil.rmtree(transcript.folder)
    transcript.rows = []
    try:
        template, place = next(steps), 0
        for number, row in enumerate(old):
            place = _advance(plan, place, template)
            query = plan[place - 1].with_inputs(**template.inputs)
            total = Sum(query, row.cohort, edit(number, points[number]))
            transcript.append(total)
            template = steps.send(total)
    except StopIteration as end:
        return end.value
    raise AssertionError("the forged run asks for more than the honest one")


def forge(run: RunFolder, number: int) -> None:
    """Edit release `number` of the method, then derive everything that follows from it, seal included."""
    task = run.task()
    arm = task.arms[0]
    base, method = run.base(arm.study), resolve(arm.study)

    def edit(release: int, points: dict[str, Any]) -> dict[str, Any]:
        if release == number:
            name = sorted(points)[0]
            points[name] = points[name].copy()
            points[name].ravel()[0] += 3 if name == "patients" else 2**45
        return points

    transcript = run.transcript(arm.study, arm.name)
    outcome = refill(transcript, run.plan().arm(arm.name), method.run(arm.study, base), edit)
    run.write_outcome(arm.name, outcome)
    models = {BASE: base, **{name: run.result(name, base) for name in task.evaluate}}
    steps = evaluation.evaluate(task.study, models, arm.name)
    refill(run.transcript(task.study, EVALUATION), run.plan().arm(EVALUATION), steps, lambda _, points: points)
    write_report(run)
    write_seal(run)


@pytest.mark.parametrize("number", [0, 2, 4])
def test_a_forgery_derived_anew_is_found_by_the_heads_in_the_sites_ledgers(run: RunFolder, number: int) -> None:
    honest = released(run)
    forge(run, number)
    forged = released(run)
    assert (forged["model.safetensors"] != honest["model.safetensors"]) == (number >= 2)
    assert forged["transcript/chain.jsonl"] != honest["transcript/chain.jsonl"]
    with pytest.raises(TranscriptError, match="site north remembers another chain of this run"):
        verify(run)
    # Without the ledgers it holds together: what the sites remember is what tells it.
    for ledgers in run.path.rglob("sites"):
        shutil.rmtree(ledgers)
    assert not any(row.what.startswith("site ") for row in verify(run))


def test_a_run_that_was_renamed_to_shed_its_heads_is_found(run: RunFolder) -> None:
    task = run.task()
    base = run.base(task.study)
    models = {BASE: base, **{name: run.result(name, base) for name in task.evaluate}}
    chains = [
        *((arm.study, arm.name, resolve(arm.study).run(arm.study, base)) for arm in task.arms),
        (task.study, EVALUATION, evaluation.evaluate(task.study, models, task.arms[0].name)),
    ]
    opened = [(run.transcript(study, name), study, name, steps) for study, name, steps in chains]
    run.task_file.write_text(json.dumps(json.loads(run.task_file.read_text()) | {"run": "another"}))
    for transcript, study, name, steps in opened:
        # Chained anew under the other name, so that every chain and digest fits again.
        transcript.anchor = digest_json([study.hash, f"another/{name}"])
        refill(transcript, run.plan().arm(name), steps, lambda _, points: points)
    write_seal(run)
    with pytest.raises(TranscriptError, match=r"site north remembers run 'run/.*', which is not in this folder"):
        verify(run)


def test_a_page_that_does_not_follow_from_the_report_is_found_under_a_new_seal(run: RunFolder) -> None:
    page = run.path / "report.html"
    page.write_text(page.read_text() + "passed")
    assert f"{page}: is not what report.json says" in sealed_again(run)


def test_a_changed_ledger_is_named(run: RunFolder) -> None:
    file = run.path / "sites" / "south" / "ledger.sqlite"
    ledger = Ledger(file)
    entry = [entry for entry in ledger.entries() if entry.kind == "release"][2]
    body = canonical_json({**entry.body, "head": "0" * 64}).decode()
    ledger._chain.db.execute("UPDATE entry SET body = ? WHERE seq = ?", (body, entry.seq))
    ledger.close()
    with pytest.raises(TranscriptError, match=rf"south/ledger\.sqlite: entry {entry.seq} \(release\) was changed"):
        verify(run)


def test_a_flipped_byte_in_a_ledger_is_named(run: RunFolder) -> None:
    file = run.path / "sites" / "south" / "ledger.sqlite"
    ledger = Ledger(file)
    head = str([entry for entry in ledger.entries() if entry.kind == "release"][3].body["head"])
    ledger._chain.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ledger.close()
    data = file.read_bytes()
    assert data.count(head.encode()) >= 1
    file.write_bytes(
        data.replace(head.encode(), b"f" + head.encode()[1:] if head[0] != "f" else b"0" + head.encode()[1:])
    )
    with pytest.raises(TranscriptError, match=r"south/ledger\.sqlite"):
        verify(run)
    file.write_bytes(b"not a database" * 500)
    with pytest.raises(StorageError, match=r"south/ledger\.sqlite"):
        verify(run)
    file.write_bytes(data[:100] + bytes(len(data) - 100))
    with pytest.raises(EquipoiseError, match=r"south/ledger\.sqlite"):
        verify(run)


def test_sites_keep_no_reply_and_the_server_no_contribution(finished: RunFolder) -> None:
    transcript = finished.transcript(finished.task().study, EVALUATION)
    assert {row.cohort for row in transcript.rows} == {SITES}
    for file in finished.path.rglob("sums/*"):
        assert set(unpack(file.read_bytes())[0]) == {"protocol", "release", "query", "public", "inputs", "cohort"}
    for site in SITES:
        ledger = Ledger(finished.path / "sites" / site / "ledger.sqlite")
        assert ledger.broken_entry() is None
        # Each arm's last reply, which a coordinator that crashed may still ask for; no earlier one.
        held = ledger._chain.db.execute("SELECT run, number FROM sealed WHERE reply IS NOT NULL").fetchall()
        last = {}
        for entry in ledger.entries():
            if entry.kind == "release":
                last[entry.body["run"]] = entry.body["number"]
        assert dict(held) == last
        ledger.close()
