"""A mistake costs one line: what, where, what was expected, what to do; a numbered exit code; nothing half-written."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.common import files
from equipoise.common.errors import StorageError
from equipoise.common.files import append_line, write_whole
from tests.e2e.studies import SITES, TABLE, Desk, files_of, left_over
from tests.e2e.terminal import ROOT, Ended, Run, interrupt_after, start

Damage = Callable[[Desk], object]
STUDY, DATA, MODEL, QUORUM, TRANSCRIPT, STORAGE = 2, 3, 4, 6, 7, 8


def put(path: str, value: Any) -> Damage:
    """Set a key of the study file."""

    def damage(desk: Desk) -> None:
        place: Any = desk.value
        *parents, last = path.split(".")
        for parent in parents:
            place = place[int(parent)] if parent.isdigit() else place[parent]
        place[last] = value
        desk.write_study()

    return damage


def own_network(factory: str) -> Damage:
    """A study with a network of the user's own, and weights that fit it."""

    def damage(desk: Desk) -> None:
        desk.write_study(model={"factory": factory, "weights": {"path": "vendor.safetensors"}})
        desk.write_weights()

    return damage


def text(content: str | bytes) -> Damage:
    """Replace the study file."""
    return lambda desk: desk.study.write_bytes(content.encode() if isinstance(content, str) else content)


def cell(site: str, row: int, column: str, value: str) -> Damage:
    def damage(desk: Desk) -> None:
        rows = desk.rows(site)
        rows[row][column] = value
        desk.write_rows(site, rows)

    return damage


def without_column(site: str, column: str) -> Damage:
    def damage(desk: Desk) -> None:
        rows = desk.rows(site)
        desk.write_rows(site, [{key: row[key] for key in row if key != column} for row in rows])

    return damage


def no_positives(desk: Desk) -> None:
    for site in SITES:
        desk.write_rows(site, [{**row, "disease": "0"} for row in desk.rows(site)])


def too_wide(desk: Desk) -> None:
    put("model.arguments.features", 8)(desk)
    desk.write_weights()


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    return lambda desk: desk.write_weights(change)


# What is wrong -> how it came about, the exit code, and what the line must say.
IN_THE_STUDY: dict[str, tuple[Damage, int, tuple[str, ...]]] = {
    "unknown key": (put("evaluation.treshold", 1), STUDY, ("'evaluation.treshold'", "did you mean 'threshold'?")),
    "unknown key on top": (put("sede", 1), STUDY, ("study.yaml", "unknown key 'sede'", "did you mean 'seed'?")),
    "unknown key, nothing like it": (
        put("evaluation.colour", 1),
        STUDY,
        ("'evaluation.colour'", "known keys: ", "rate_match"),
    ),
    "unknown key in a list": (put("inputs.features.1.rnge", 1), STUDY, ("'inputs.features.1.rnge'", "'range'")),
    "unknown key of a kind": (put("simulation.hospitals.pth", 1), STUDY, ("'simulation.hospitals.pth'", "'path'")),
    "unknown key of the method": (put("method.betta", 0.5), STUDY, ("method: unknown key 'betta'", "'beta'")),
    "wrong type": (put("seed", "abc"), STUDY, ("study.yaml: seed='abc'", "integer")),
    "wrong type of a part": (put("method.rounds", 3), STUDY, ("method: rounds=3", "expected a mapping of keys")),
    "out of range": (put("evaluation.margin", 1.5), STUDY, ("evaluation.margin=1.5", "less than 1")),
    "a level that YAML reads as a truth": (
        put("attributes.0.levels", [True, False]),
        STUDY,
        ("attributes.0.levels.0=True", "text; put it in quotes"),
    ),
    "an empty range": (
        put("inputs.features.0.range", [3, 1]),
        STUDY,
        ("inputs.features.0: range must be [low, high]",),
    ),
    "two primary attributes": (put("attributes.1.primary", True), STUDY, ("exactly one of `attributes`",)),
    "missing key": (lambda desk: desk.value.pop("label") and desk.write_study(), STUDY, ("key 'label' is missing",)),
    "unknown method": (
        put("method", {"name": "swft"}),
        STUDY,
        ("method.name=swft", "there are: afl, audit, bmft, dfr,"),
    ),
    "unknown control": (put("method.controls", ["no_msk"]), STUDY, ("no control 'no_msk'", "there are: no_mask,")),
    "control of another method": (
        put("method", {"name": "fine_tune", "controls": ["no_mask"]}),
        STUDY,
        ("'no_mask' has no meaning", "fine_tune"),
    ),
    "unknown privacy mode": (put("privacy", {"mode": "epsilon"}), STUDY, ("privacy.mode='epsilon'", "'none'")),
    "unknown threshold rule": (
        put("evaluation.threshold.rule", "sense>=0.9"),
        STUDY,
        ("evaluation.threshold.rule='sense>=0.9'", "unknown rule", "sens>=x"),
    ),
    "unknown rule to match by": (
        put("evaluation.rate_match", {"rule": "base_rat"}),
        STUDY,
        ("evaluation.rate_match.rule='base_rat'", "base_rate"),
    ),
    "a rule that follows itself": (
        put("evaluation.threshold.rule", "base_rate"),
        STUDY,
        ("evaluation.threshold.rule='base_rate'", "'sens>=0.9'"),
    ),
    "key written twice": (
        lambda desk: desk.study.write_text("study: small\nseed: 1\n\nseed: 4\n"),
        STUDY,
        ("study.yaml: line 4", "'seed' is written twice"),
    ),
    "not YAML": (text("study: [1,\n"), STUDY, ("study.yaml: line 2: not valid YAML",)),
    "a character that YAML has not": (text("study: a\x01b\n"), STUDY, ("study.yaml: not valid YAML", "#x0001")),
    "not text": (text(b"study: \xff\xe9\n"), STUDY, ("study.yaml: cannot be read",)),
    "empty": (text(""), STUDY, ("study.yaml: expected a mapping of keys",)),
    "no study": (lambda desk: desk.study.unlink(), STUDY, ("study.yaml: no such file",)),
    "no simulation": (put("simulation", None), STUDY, ("`simulation` is missing",)),
    "no such module": (
        put("model.factory", "equipoise.common.modls:mlp"),
        MODEL,
        ("no module 'equipoise.common.modls'", "install"),
    ),
    "no such factory": (put("model.factory", "equipoise.common.models:mpl"), MODEL, ("has no function 'mpl'",)),
    "no argument of the factory": (put("model.arguments", {"feature": 6}), MODEL, ("'feature': 6", "do not fit")),
    "no such head": (put("model.head", "tail."), MODEL, ("model.head='tail.'", "head.bias")),
    "no such device": (put("model.device", "cuda:77"), MODEL, ("model.device=cuda:77", "try cpu")),
    "a network of another width": (too_wide, MODEL, ("a batch (2, 6)", "`inputs`", "correct model.arguments")),
    "a network on no device": (put("model.device", "meta"), MODEL, ("model.device=meta", "try cpu")),
    "a factory that fails": (put("model", {"factory": "tests.wrong:raises"}), MODEL, ("ValueError: boom",)),
    "a factory that ends the process": (put("model", {"factory": "tests.wrong:exits"}), MODEL, ("SystemExit: 3",)),
    "weights that are tied": (
        put("model", {"factory": "tests.wrong:Tied"}),
        MODEL,
        ("first.weight and again.weight are one; untie them",),
    ),
    "a network that mixes a batch": (
        own_network("tests.wrong:Centred"),
        MODEL,
        ("model.factory=tests.wrong:Centred", "a logit depends on the other rows of its batch"),
    ),
    "a network that gives NaN": (own_network("tests.wrong:Undefined"), MODEL, ("(nan, nan)", "finite logits")),
    "a network that loses the axis of one row": (
        own_network("tests.wrong:Squeezed"),
        MODEL,
        ("a batch (1, 6)", "returns (), expected one logit a row: (1,)"),
    ),
    "weights of another shape": (
        tensors(lambda state: state.update({"head.weight": torch.zeros(1, 5)})),
        MODEL,
        ("vendor.safetensors: tensor 'head.weight' has shape (1, 5), the model expects (1, 32)",),
    ),
    "weights without a tensor": (
        tensors(lambda state: state.pop("head.bias")),
        MODEL,
        ("vendor.safetensors: tensor 'head.bias'", "missing"),
    ),
    "weights with NaN": (
        tensors(lambda state: state["head.bias"].fill_(torch.nan)),
        MODEL,
        ("tensor 'head.bias'", "not finite"),
    ),
    "weights in another format": (
        lambda desk: (desk.folder / "vendor.safetensors").write_bytes(b"PK\x03\x04 a pickle of old"),
        MODEL,
        ("vendor.safetensors: not a safetensors file", "convert"),
    ),
    "no weights": (
        lambda desk: (desk.folder / "vendor.safetensors").unlink(),
        MODEL,
        ("model.weights.path", "vendor.safetensors"),
    ),
    "other weights than declared": (put("model.weights.sha256", "0" * 64), MODEL, ("model.weights.sha256", "0000")),
}
IN_THE_HOSPITALS: dict[str, tuple[Damage, int, tuple[str, ...]]] = {
    "missing column": (
        without_column("birch", "disease"),
        DATA,
        ("birch/manifest.csv: no column 'disease' (label.column of the study)", "data.columns of the site file"),
    ),
    "unmapped value": (
        cell("cedar", 4, "sex", "F"),
        DATA,
        ("site cedar", "manifest.csv: data row 5, column sex: 'F'", "female, male", "coding.sex of the site file"),
    ),
    "a feature that is no number": (cell("ash", 0, "x1", "high"), DATA, ("data row 1, column x1: 'high'", "number")),
    "an empty label": (cell("ash", 2, "disease", ""), DATA, ("data row 3, column disease", "label is empty")),
    "an unknown split": (cell("ash", 2, "split", "tset"), DATA, ("column split: 'tset'", "train, validation, test")),
    "no positive anywhere": (no_positives, DATA, ("no positive patient in the train split", "label.positive")),
    "a positive value that no site has": (
        put("label.positive", ["yes"]),
        DATA,
        ("positive = ['yes']", "label.positive"),
    ),
    "a site without patients": (
        lambda desk: desk.write_rows("ash", [], header=list(desk.rows("ash")[0])),
        DATA,
        ("ash/manifest.csv: the manifest has no rows", "no patients"),
    ),
    "no manifest": (
        lambda desk: (desk.site("ash") / "manifest.csv").unlink(),
        DATA,
        ("ash/manifest.csv", "correct data.manifest"),
    ),
    "no site file": (
        lambda desk: (desk.site("ash") / "site.yaml").unlink(),
        STUDY,
        ("hospitals/ash has no site.yaml",),
    ),
    "no hospitals": (lambda desk: shutil.rmtree(desk.folder / "hospitals"), STUDY, ("simulation.hospitals.path",)),
    "too few hospitals": (lambda desk: shutil.rmtree(desk.site("ash")), STUDY, ("sites.minimum=3", "birch, cedar")),
    "one name for two": (lambda desk: desk.change_site("ash", site="birch"), STUDY, ("ash/site.yaml", "site: birch")),
    "unknown key of a site file": (lambda desk: desk.change_site("ash", cap={}), STUDY, ("ash/site.yaml", "'caps'")),
    "shares that are not 1": (
        lambda desk: desk.change_site(
            "ash",
            data={
                "manifest": "manifest.csv",
                "split_key": "0" * 32,
                "splits": {"train": 1, "validation": 1, "test": 0},
            },
        ),
        STUDY,
        ("ash/site.yaml: data.splits: the shares must sum to 1",),
    ),
    "declared patients of a stranger": (
        put("sites", {"declared_patients": {"ash": 24, "birch": 24, "oak": 24}}),
        STUDY,
        ("differ in: cedar, oak",),
    ),
}


@pytest.mark.parametrize("what", IN_THE_STUDY)
def test_a_mistake_in_the_study_is_one_line_and_writes_nothing(what: str, desk: Desk, equipoise: Run) -> None:
    damage, code, words = IN_THE_STUDY[what]
    damage(desk)
    ended = equipoise("simulate", desk.study, "--out", desk.run)
    for word in words:
        assert word in ended.error
    assert ended.code == code
    assert not left_over(desk.folder)
    assert not desk.run.exists()


def test_a_network_that_mixes_is_found_before_a_comparison_begins(desk: Desk, equipoise: Run) -> None:
    own_network("tests.wrong:Centred")(desk)
    ended = equipoise("compare", desk.study, "--methods", "reweighing", "--seeds", 1, "--out", desk.run)
    assert (ended.code, "its batch or on chance" in ended.error) == (MODEL, True)
    assert not desk.run.exists()


def test_a_network_of_ones_own_runs(desk: Desk, equipoise: Run) -> None:
    """With dropout, which is off wherever a hospital answers."""
    own_network("tests.wrong:good")(desk)
    assert equipoise("simulate", desk.study, "--out", desk.run).code == 0


@pytest.mark.parametrize("what", IN_THE_HOSPITALS)
def test_a_mistake_in_a_hospital_is_one_line_and_the_run_works_once_it_is_mended(
    what: str, desk: Desk, equipoise: Run
) -> None:
    damage, code, words = IN_THE_HOSPITALS[what]
    damage(desk)
    ended = equipoise("simulate", desk.study, "--out", desk.run)
    for word in words:
        assert word in ended.error
    assert ended.code == code
    assert not left_over(desk.folder)
    shutil.rmtree(desk.folder / "hospitals", ignore_errors=True)
    mended = Desk(desk.folder, TABLE)
    assert equipoise("simulate", mended.study, "--out", mended.run).code == 0


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("evaluation.treshold.rule=youden", ("unknown key 'evaluation.treshold'", "did you mean 'threshold'?")),
        ("method.lrr=1", ("method: unknown key 'lrr'", "'lr'")),
        ("method.lr", ("--set method.lr: expected key=value",)),
        ("seed.x=1", ("--set seed.x=1: 'seed' has no keys",)),
        ("method.lr=[", ("--set method.lr=[: the value is not valid YAML",)),
        ("method.lr=-1", ("method: lr=-1", "greater than 0")),
    ],
)
def test_set_is_checked_as_the_file_is(assignment: str, words: tuple[str, ...], desk: Desk, equipoise: Run) -> None:
    ended = equipoise("simulate", desk.study, "--out", desk.run, "--set", assignment)
    assert ended.code == STUDY
    for word in words:
        assert word in ended.error


def test_an_image_that_is_cut_short_is_named_with_its_row(pictures: Desk, equipoise: Run) -> None:
    pictures.pack("birch", lambda name, png: png[: len(png) // 2] if name == "007.png" else png)
    ended = equipoise("simulate", pictures.study, "--out", pictures.run)
    assert ended.code == DATA
    assert "birch/images.zip: image '007.png' (data row 8 of the manifest)" in ended.error
    assert "truncated" in ended.error
    assert not left_over(pictures.folder)
    pictures.pack("birch")
    assert equipoise("simulate", pictures.study, "--out", pictures.run).code == 0


def test_an_image_that_is_not_there_is_named_with_its_row(pictures: Desk, equipoise: Run) -> None:
    rows = pictures.rows("ash")
    rows[11]["image"] = "lost.png"
    pictures.write_rows("ash", rows)
    ended = equipoise("simulate", pictures.study, "--out", pictures.run)
    assert ended.code == DATA
    assert "ash/images.zip: image 'lost.png' (data row 12 of the manifest) is missing" in ended.error


@pytest.mark.parametrize("study", ["heart", "ham10000"])
def test_public_studies_name_the_files_that_they_need(
    study: str, tmp_path: Path, equipoise: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = ROOT / "configs" / f"{study}.yaml"
    monkeypatch.delenv("EQUIPOISE_DATA", raising=False)
    unset = equipoise("simulate", configuration, "--out", tmp_path / "run")
    assert unset.code == STUDY
    assert "EQUIPOISE_DATA is not set" in unset.error
    assert "uci_heart_disease/" in unset.error
    assert "ham10000/" in unset.error
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    empty = equipoise("simulate", configuration, "--out", tmp_path / "run")
    assert empty.code == STUDY
    assert f"EQUIPOISE_DATA={tmp_path} lacks {'uci_heart_disease' if study == 'heart' else study}/" in empty.error
    assert "doi:" in empty.error


def test_a_run_is_not_written_over(desk: Desk, equipoise: Run) -> None:
    assert equipoise("simulate", desk.study, "--out", desk.run).code == 0
    before = {file: file.read_bytes() for file in files_of(desk.run)}
    again = equipoise("simulate", desk.study, "--out", desk.run)
    assert again.code == STUDY
    assert "holds a run already" in again.error
    assert "--resume" in again.error
    assert {file: file.read_bytes() for file in files_of(desk.run)} == before


def test_a_run_is_not_resumed_under_another_study(desk: Desk, equipoise: Run) -> None:
    assert equipoise("simulate", desk.study, "--out", desk.run).code == 0
    other = equipoise("simulate", desk.study, "--out", desk.run, "--resume", "--set", "method.beta=0.9")
    assert other.code == STUDY
    assert "of another study (method differs)" in other.error
    assert "--out" in other.error
    # The number of workers changes no result, so it may change.
    more = equipoise("simulate", desk.study, "--out", desk.run, "--resume", "--set", "simulation.workers=2")
    assert more.code == 0
    assert equipoise("verify", desk.run).code == 0


def test_weights_of_an_attempt_that_failed_are_not_those_of_the_next(desk: Desk, equipoise: Run) -> None:
    desk.run.mkdir()
    (desk.run / "vendor.safetensors").write_bytes(b"left by another study")
    assert equipoise("simulate", desk.study, "--out", desk.run, "--set", "model.weights=null").code == STUDY
    assert equipoise("simulate", desk.study, "--out", desk.run).code == 0


def test_a_site_that_refuses_is_explained(desk: Desk, equipoise: Run) -> None:
    desk.change_site("ash", caps={"methods": ["fine_tune"]})
    ended = equipoise("simulate", desk.study, "--out", desk.run)
    assert ended.code == QUORUM
    assert "release 0 (cell_statistics): 2 of 3 sites answered, 3 are needed (ash: refused)" in ended.error
    assert "method 'swift' is not in caps.methods of ash" in ended.error
    assert not left_over(desk.folder)
    desk.change_site("ash", caps={})
    assert equipoise("simulate", desk.study, "--out", desk.run, "--resume").code == 0


# What happens to a run that is there already.


@pytest.fixture
def finished(desk: Desk, equipoise: Run) -> Desk:
    desk.write_study(method={**TABLE["method"], "controls": ["no_mask"]})
    assert equipoise("simulate", desk.study, "--out", desk.run).code == 0
    return desk


def results(run: Path) -> dict[str, bytes]:
    """What a run comes to: sums, chains, models, and the report without the time and the bytes that it took."""
    patterns = ("**/sums/*.safetensors", "**/chain.jsonl", "**/model.safetensors")
    found = {str(file.relative_to(run)): file.read_bytes() for pattern in patterns for file in files_of(run, pattern)}
    report = json.loads((run / "report.json").read_text())
    report.pop("run_time")
    return {**found, "report": json.dumps(report).encode()}


@pytest.mark.parametrize("chain", ["transcript", "controls/no_mask/transcript", "evaluation"])
def test_a_chain_cut_within_a_line_is_found_and_resumed(chain: str, finished: Desk, equipoise: Run) -> None:
    before = results(finished.run)
    file = finished.run / chain / "chain.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    ended = equipoise("verify", finished.run)
    assert ended.code == TRANSCRIPT
    assert str(file) in ended.error
    assert equipoise("simulate", finished.study, "--out", finished.run, "--resume").code == 0
    assert results(finished.run) == before
    assert equipoise("verify", finished.run).code == 0


def test_a_missing_file_of_sums_is_named(finished: Desk, equipoise: Run) -> None:
    file = finished.run / "transcript" / "sums" / "0001.safetensors"
    kept = file.read_bytes()
    file.unlink()
    for command in (("verify", finished.run), ("simulate", finished.study, "--out", finished.run, "--resume")):
        ended = equipoise(*command)
        assert ended.code == TRANSCRIPT
        assert str(file) in ended.error
        assert "restore" in ended.error
    file.write_bytes(kept)
    assert equipoise("simulate", finished.study, "--out", finished.run, "--resume").code == 0


@pytest.mark.parametrize("command", ["verify", "report"])
def test_a_folder_without_a_run_is_said_to_be_one(command: str, tmp_path: Path, equipoise: Run) -> None:
    ended = equipoise(command, tmp_path)
    assert ended.code == STUDY
    assert f"{tmp_path}: no run here" in ended.error


def test_a_run_that_did_not_end_cannot_be_verified_or_reported(finished: Desk, equipoise: Run) -> None:
    shutil.rmtree(finished.run / "evaluation")
    (finished.run / "seal.json").unlink()
    for command in ("verify", "report"):
        ended = equipoise(command, finished.run)
        assert ended.code == TRANSCRIPT
        assert "resume" in ended.error


# Disks.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a disk of 4 MiB cannot be mounted here (needs root)")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_loses_nothing(disk: Path, desk: Desk, equipoise: Run) -> None:
    assert equipoise("simulate", desk.study, "--out", desk.run).code == 0
    ballast, run = disk / "ballast", disk / "run"
    stopped_at = []
    for kib in (0, 8, 240, 420, 460, 500, 540, 580, 640):
        free = shutil.disk_usage(disk).free
        ballast.write_bytes(bytes(max(0, free - kib * 1024)))
        ended = equipoise("simulate", desk.study, "--out", run, "--resume")
        ballast.unlink()
        assert not left_over(disk)
        if ended.code == 0:
            break
        assert ended.code == STORAGE, ended.err
        assert "free some space" in ended.error
        assert "--resume" in ended.error
        chain = run / "transcript" / "chain.jsonl"
        stopped_at.append(len(chain.read_bytes().splitlines()) if chain.exists() else -1)
    # It stopped in several places: before the run began, and after some of its releases.
    assert stopped_at[0] == -1
    assert len(set(stopped_at)) >= 3, stopped_at
    assert equipoise("simulate", desk.study, "--out", run, "--resume").code == 0
    assert results(run) == results(desk.run)
    assert equipoise("verify", run).code == 0


class Full(io.FileIO):
    """A file on a disk that has room for ten bytes more."""

    def write(self, data: Any) -> int:
        super().write(bytes(data)[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def full_disk() -> Iterator[None]:
    def open_full(path: Path, mode: str) -> io.FileIO:
        return Full(path, mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.Path, "open", open_full)
        yield


def test_a_write_that_does_not_fit_leaves_the_old_file(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_bytes(b"old")
    for file in (old, tmp_path / "new"):
        with full_disk(), pytest.raises(StorageError, match=r"No space left on device.*free some space") as caught:
            write_whole(file, b"new content of more than ten bytes")
        assert str(file) in str(caught.value)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("old", b"old")]


def test_a_line_that_does_not_fit_is_taken_back(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes(b"first\n")
    with full_disk(), pytest.raises(StorageError, match="No space left on device"):
        append_line(lines, b"a second line")
    assert lines.read_bytes() == b"first\n"


def test_a_file_that_cannot_be_opened_keeps_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes(b"first\n")

    def refuse(path: Path, mode: str) -> io.FileIO:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(files.Path, "open", refuse)
    with pytest.raises(StorageError, match="Too many open files"):
        append_line(lines, b"second")
    monkeypatch.undo()
    assert lines.read_bytes() == b"first\n"


def test_an_interrupted_write_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "new", b"content")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(desk: Desk, equipoise: Run) -> None:
    locked = desk.folder / "locked"
    locked.mkdir(mode=0o500)
    ended = equipoise("simulate", desk.study, "--out", locked / "run")
    assert ended.code == STORAGE
    assert str(locked) in ended.error
    assert "ermission" in ended.error


def test_a_run_below_a_file_is_named(desk: Desk, equipoise: Run) -> None:
    (desk.folder / "file").write_text("")
    ended = equipoise("simulate", desk.study, "--out", desk.folder / "file" / "run")
    assert ended.code == STORAGE
    assert f"{desk.folder}/file" in ended.error


def test_ctrl_c_stops_with_a_word_and_the_run_goes_on(desk: Desk, equipoise: Run) -> None:
    desk.write_study(method={**TABLE["method"], "rounds": {"extractor": 30, "head": 1}, "batch": 2})
    run = desk.folder / "stopped" / "run"
    chain = run / "transcript" / "chain.jsonl"
    ended = interrupt_after(start("simulate", desk.study, "--out", run), chain, releases=4)
    assert ended == Ended(130, "", "stopped; go on with --resume\n")
    assert not left_over(run)
    assert 3 < chain.read_bytes().count(b"\n") < 33
    assert not (run / "report.json").exists()
    assert equipoise("simulate", desk.study, "--out", run, "--resume").code == 0
    assert equipoise("simulate", desk.study, "--out", desk.run).code == 0
    assert results(run) == results(desk.run)
