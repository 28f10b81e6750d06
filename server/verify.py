"""`equipoise verify`: whether a run is what its released sums make it.

Four things are checked, each naming what is wrong: the digests of all files (a changed byte anywhere); the chains of
the transcripts; the derivation (every arm is replayed from its sums and must end with the very bytes of its model, and
the report with its numbers); and the heads that the sites remember, which a forged and re-chained transcript lacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from equipoise.common.canonical import canonical_json, sha256
from equipoise.common.errors import TranscriptError
from equipoise.common.files import PART, write_whole
from equipoise.common.study_plan import EVALUATION
from equipoise.server.engine import Engine
from equipoise.server.report.build import derived_files, report_json
from equipoise.server.run import run_arm
from equipoise.server.rundir import ALIGNMENT, RunFolder, model_bytes
from equipoise.server.transcript import missing_heads

SEAL = "seal.json"
# A site's own files change after the run ends, hospitals' data are not the run's, and Flower keeps its own state.
_NOT_SEALED = ("sites", "hospitals", "flower", "deployment", SEAL)


@dataclass(frozen=True)
class Checked:
    """One thing that held, in words."""

    what: str
    detail: str


def is_sealed(run: RunFolder) -> bool:
    """Whether the run has ended: its seal is written last."""
    return (run.path / SEAL).exists()


def write_seal(run: RunFolder) -> None:
    """Write the digests of the run's files, when it has ended."""
    digests = {str(file.relative_to(run.path)): sha256(file.read_bytes()) for file in _files(run.path)}
    _write_digests(run, digests)


def renew_seal(run: RunFolder, written: Sequence[str]) -> None:
    """Replace the digests of files that were written again; those of all others stay, changed or not.

    Raises:
        TranscriptError: there is no seal, so the run did not end.
    """
    fresh = {name: sha256((run.path / name).read_bytes()) for name in written}
    _write_digests(run, {**_sealed(run), **fresh})


def _write_digests(run: RunFolder, digests: Mapping[str, str]) -> None:
    write_whole(run.path / SEAL, json.dumps(digests, indent=1, sort_keys=True).encode())


Witnesses = Callable[[Path], Mapping[str, Sequence[tuple[str, str]]]]


def verify(run: RunFolder, witnesses: Witnesses = lambda _: {}) -> list[Checked]:
    """Check a run; what held, in order.

    Args:
        run: the run's folder.
        witnesses: for a run folder, what its sites remember: site -> (run, head) of every request. A coordinator has
            none; a simulation reads its sites' ledgers (`equipoise.simulations.doors.remembered_heads`).

    Raises:
        TranscriptError: the first thing that does not hold, with the file or the site that shows it.
    """
    task = run.task()
    checked = [_check_seal(run)]
    folders = [run, *(RunFolder(file.parent) for file in sorted(run.path.glob("controls/**/task.json")))]
    for folder in folders:
        for arm in folder.task().arms:
            folder.transcript(arm.study, arm.name).check()
            outcome = run_arm(Engine(arm.study, folder.plan(), None), folder, arm)
            file = folder.arm_folder(arm.name) / "model.safetensors"
            if model_bytes(outcome.classifier) != file.read_bytes():
                raise TranscriptError(f"{file}: is not what the released sums give; restore the run")
            kept, derived = folder.alignment(arm.name), outcome.classifier.alignment
            if (None if kept is None else kept.to_json()) != (None if derived is None else derived.to_json()):
                raise TranscriptError(
                    f"{folder.arm_folder(arm.name) / ALIGNMENT}: is not what the released sums give; restore the run"
                )
            releases = len(folder.transcript(arm.study, arm.name).rows)
            # A control that was trained in a run of its own goes by the name of its folder.
            name = arm.name if folder is run else folder.path.relative_to(run.path / "controls").as_posix()
            checked.append(Checked(f"model of {name}", f"derived again from {releases} sums, bit for bit"))
    if task.evaluate:
        run.transcript(task.study, EVALUATION).check()
        _check_report(run)
        checked.append(
            Checked(
                "report",
                "every number computed again from the tables (auc_noise: as the simulation kept them)",
            )
        )
    heads = [row for folder in folders for row in _check_heads(folder, witnesses(folder.path))]
    if not heads:
        heads = [Checked("sites", "none testified; a transcript that was forged and chained anew would not be found")]
    return checked + heads


def _sealed(run: RunFolder) -> dict[str, str]:
    file = run.path / SEAL
    try:
        sealed = json.loads(file.read_text())
    except (OSError, ValueError):
        sealed = None
    if not isinstance(sealed, dict):
        raise TranscriptError(f"{file}: missing or changed; the run did not end (resume it) or was altered")
    return sealed


def _check_seal(run: RunFolder) -> Checked:
    sealed = _sealed(run)
    present = {str(found.relative_to(run.path)): found for found in _files(run.path)}
    for name in sorted(set(sealed) | set(present)):
        if name not in present:
            raise TranscriptError(f"{run.path / name}: missing; it was there when the run ended; restore it")
        if name not in sealed:
            raise TranscriptError(f"{run.path / name}: was not there when the run ended; remove it")
        if sha256(present[name].read_bytes()) != sealed[name]:
            raise TranscriptError(f"{run.path / name}: changed since the run ended; restore it")
    return Checked("files", f"{len(sealed)} files as sealed")


def _check_report(run: RunFolder) -> None:
    file = run.path / "report.json"
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        written = None
    if not isinstance(written, dict):
        raise TranscriptError(f"{file}: is no report; write the report again")
    derived = report_json(run)
    again = json.loads(canonical_json(derived))
    for part in sorted(set(written) | set(again)):
        if written.get(part) != again.get(part):
            raise TranscriptError(f"{file}: {part!r} is not what the released tables give; write the report again")
    for name, content in derived_files(derived).items():
        beside = run.path / name
        if not beside.exists() or content != beside.read_text(encoding="utf-8"):
            raise TranscriptError(f"{beside}: is not what report.json says; write the report again")


def _check_heads(folder: RunFolder, remembered: Mapping[str, Sequence[tuple[str, str]]]) -> Iterator[Checked]:
    """Compare every transcript with the heads that the sites remember, and every remembered run with a transcript."""
    task = folder.task()
    asked = [*((arm.study, arm.name) for arm in task.arms), (task.study, EVALUATION)]
    transcripts = {opened.run: opened for opened in (folder.transcript(study, name) for study, name in asked)}
    for site, heads in remembered.items():
        by_run: dict[str, list[str]] = {}
        for run, head in heads:
            by_run.setdefault(run, []).append(head)
        strange = sorted(set(by_run) - set(transcripts))
        if strange:
            raise TranscriptError(
                f"{folder.path}: site {site} remembers run {strange[0]!r}, which is not in this folder; the run was "
                "renamed or forged"
            )
        for run, transcript in transcripts.items():
            took_part = any(site in row.cohort for row in transcript.rows)
            own = by_run.get(run, [])
            if (took_part and not own) or missing_heads(transcript, own):
                raise TranscriptError(
                    f"{transcript.folder}: site {site} remembers another chain of this run; the transcript was forged, "
                    "or is not this run's"
                )
        yield Checked(f"site {site} ({folder.name})", f"{len(heads)} heads remembered, all in the transcripts")


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.iterdir()):
        if path.name in _NOT_SEALED or path.suffix == PART:
            continue
        if path.is_dir():
            yield from _files(path)
        else:
            yield path
