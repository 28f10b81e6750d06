"""What the tests of failures have in common: hospitals with planted words, a run to disturb, and what must then hold.

A run that was disturbed has to end like `whole`, which was not: the same sums and models byte for byte, and in each
site's ledger the same releases, each once. At the end no planted word may be in any byte of the coordinator's folder.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sqlite3
import subprocess
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from equipoise.client.ledger import Ledger
from equipoise.common.audit import check_rows, read_rows
from equipoise.simulations.loopback import ENVIRONMENT, ROOT, Deployment
from tests.e2e.deployed import equipoise, short_folder, sums
from tests.e2e.studies import SITES, TABLE, Desk

SHORT = {"name": "fine_tune", "rounds": 2, "part": "head"}
PLANTED = (b"planted-", b"hospitals/")  # ids, labels, names of files; the folder that the data lie in


def plant(place: Path, label: str) -> None:
    """Give the patients, the labels and the manifest of a site's folder names that nobody may ever see elsewhere."""
    file = place / "site.yaml"
    site = yaml.safe_load(file.read_text())
    with (place / site["data"]["manifest"]).open(newline="") as manifest:
        rows = list(csv.DictReader(manifest))
    (place / site["data"]["manifest"]).unlink()
    site["data"]["manifest"] = "planted-manifest.csv"
    words = {row[label]: f"planted-{row[label]}" for row in rows}
    site["coding"] = {**site.get("coding", {}), label: {word: value for value, word in words.items()}}
    with (place / "planted-manifest.csv").open("w", newline="") as manifest:
        writer = csv.DictWriter(manifest, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "patient": f"planted-{row['patient']}", label: words[row[label]]} for row in rows)
    file.write_text(yaml.safe_dump(site))


class Hospitals(Deployment):
    """Three hospitals, and what a user sees of their runs.

    Args:
        folder: short.
        sites: the study's part `sites`.
        privacy: the study's part `privacy`.
        host: as of `Deployment`.
    """

    def __init__(
        self, folder: Path, sites: Mapping[str, Any], privacy: Mapping[str, Any], host: str = "127.0.0.1"
    ) -> None:
        self.desk = Desk(folder / "desk", TABLE)
        for site in SITES:
            plant(self.desk.site(site), "disease")
        facts = {"declared_patients": dict.fromkeys(SITES, 24), "minimum": 2, "quorum": 1.0, "deadline_s": 240}
        self.desk.write_study(method=SHORT, sites={**facts, **sites}, privacy={"mode": "none", **privacy})
        super().__init__(folder, {site: self.desk.site(site) for site in SITES}, host)

    @property
    def study(self) -> Path:
        """The study file."""
        return self.desk.study

    def run(self, name: str) -> Path:
        """Folder of a run."""
        return self.coordinator / "runs" / name

    def run_whole(self) -> None:
        """The run that nothing disturbs; the sites approve the study."""
        self.submit(self.study, "--name", "whole")
        self.approve()
        assert self.until("whole", "finished", "failed", patience=500)["state"] == "finished"

    def begin(self, name: str, releases: int = 1) -> None:
        """Submit the study under a name and wait for some releases."""
        self.submit(self.study, "--name", name)
        log = self.run(name) / "rounds.jsonl"
        self.wait(lambda: log.read_bytes().count(b"\n") >= releases, 300, f"{releases} releases of {name}")

    def fails(self, name: str, patience: float = 300) -> str:
        """Wait until a run has failed; the line that `equipoise status` shows."""
        found = self.until(name, "finished", "failed", patience=patience)
        assert found["state"] == "failed", found
        line = str(found["detail"])
        assert "\n" not in line
        return line

    def resume(self, name: str, fails: bool = False) -> str:
        """`equipoise resume --wait`: what the user sees of it."""
        return equipoise("resume", name, *self.here, "--wait", check=not fails, timeout=400)

    def released(self, name: str) -> dict[str, Counter[tuple[str, int]]]:
        """Releases that each site's ledger has of a run, and how often."""
        found = {}
        for site in SITES:
            ledger = Ledger(self.site(site) / "agent" / "ledger.sqlite")
            try:
                assert ledger.broken_entry() is None
                rows = [(str(e.body["run"]), int(e.body["number"])) for e in ledger.entries() if e.kind == "release"]
            finally:
                ledger.close()
            arms = [(arm.partition("/"), number) for arm, number in rows]
            found[site] = Counter((arm, number) for (run, _, arm), number in arms if run == name)
        return found

    def check_whole(self, name: str) -> None:
        """The run gave what an undisturbed one gives, and each site released everything once."""
        assert self.status(name)["state"] == "finished"
        assert sums(self.run(name)) == sums(self.run("whole"))
        once = self.released("whole")
        assert all(count == 1 for site in SITES for count in once[site].values())
        assert self.released(name) == once
        equipoise("verify", self.run(name))

    def check_logs(self) -> None:
        """Both sides' audit logs are whole chains, and each release of the coordinator's is in the sites' own."""
        answered = {}
        for site in SITES:
            file = self.site(site) / "agent" / "audit.jsonl"
            check_rows(file)
            rows = [row for row in read_rows(file) if row["event"] == "request" and row["code"] == "ok"]
            answered[site] = {(row.get("run"), row.get("release")) for row in rows}
        for run in sorted((self.coordinator / "runs").iterdir()):
            file = run / "deployment" / "audit.jsonl"
            check_rows(file)
            for row in read_rows(file):
                if row["event"] == "released":
                    assert all((row["run"], row["release"]) in answered[site] for site in row["sites"]), row

    def check_nothing_leaked(self) -> None:
        """No planted word is in any byte of the coordinator's folder or the SuperLink's log."""
        logs = [self.folder / "superlink.log"]
        found = traces([*self.coordinator.rglob("*"), *logs], PLANTED)
        assert not found, found
        # The search finds what is there.
        assert traces(self.folder.glob("*/site.yaml"), (b"planted-manifest",))
        assert traces(self.coordinator.rglob("state.db"), (b"ash",))


@contextmanager
def hospitals(
    name: str,
    *,
    sites: Mapping[str, Any] = {},
    privacy: Mapping[str, Any] = {},
    host: str = "127.0.0.1",
    prepare: Callable[[Hospitals], None] = lambda _: None,
) -> Iterator[Hospitals]:
    """Hospitals that are up and have approved a study; at the end nothing must have leaked, and all logs hold.

    Args:
        name: for the folder.
        sites, privacy: parts of the study.
        host: as of `Deployment`.
        prepare: called before anything is started.
    """
    for folder in short_folder(name):
        with Hospitals(folder, sites, privacy, host) as found:
            prepare(found)
            found.start()
            found.run_whole()
            yield found
            found.check_nothing_leaked()
            found.check_logs()


def traces(files: Any, words: tuple[bytes, ...]) -> list[str]:
    """Which words are in which files, in values of databases and in compressed content too."""
    found = []
    for file in files:
        if not file.is_file():
            continue
        sources = list(unpacked(file.read_bytes()))
        if file.suffix == ".db":
            sources += [part for cell in cells(file) for part in unpacked(cell)]
        found += [f"{word!r} in {file}" for word in words if any(word in data for data in sources)]
    return found


def unpacked(data: bytes) -> Iterator[bytes]:
    """The bytes themselves, and what they hold compressed."""
    yield data
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield from unpacked(archive.read(name))
    elif data[:2] == b"\x1f\x8b":
        yield from unpacked(gzip.decompress(data))
    elif data[:1] == b"\x78":
        try:
            yield zlib.decompress(data)
        except zlib.error:
            return


def cells(database: Path) -> Iterator[bytes]:
    """Every value in every table."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as db:
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in db.execute(f'SELECT * FROM "{table}"'):
                yield from (v if isinstance(v, bytes) else str(v).encode() for v in row)


def site_check(folder: Path, *prefix: str, **environment: str) -> dict[str, str]:
    """What `equipoise site check` finds wrong: what -> found, with its remedy."""
    ended = subprocess.run(
        [*prefix, sys.executable, "-c", "from equipoise.cli import main; main()", "site", "check", "--folder",
         str(folder), "--json"],
        cwd=ROOT, env={**ENVIRONMENT, **environment}, text=True, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    rows = json.loads(ended.stdout)
    wrong = {row["what"]: f"{row['found']}; {row['fix']}" for row in rows if not row["holds"]}
    assert ended.returncode == (2 if wrong else 0), ended.stderr
    return wrong
