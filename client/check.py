"""`equipoise site check`: whether a site is ready, line by line, each with its remedy. Nothing leaves the hospital.

Counts by group are shown here and nowhere else: they are patients' data, and the server learns none of them.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509

from equipoise import __version__
from equipoise.client.service import listens
from equipoise.common.attribute import UNKNOWN
from equipoise.common.config import read_yaml, validate
from equipoise.common.errors import DataError, EquipoiseError
from equipoise.common.sitefile import ColumnSplits, Site, load_site
from equipoise.common.study import Study

if TYPE_CHECKING:
    from equipoise.client.cohort import Cohort
    from equipoise.common.query import SplitName

LEAST_FREE_BYTES = 2**30
LEAST_DAYS = 30
MOST_SKEW_S = 60.0
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Row:
    """One thing that was looked at: whether it holds, what was found, and what to do."""

    what: str
    holds: bool
    found: str
    fix: str = ""


def check_site(folder: Path, study_file: Path | None = None, superlink: str | None = None) -> list[Row]:
    """Every check, in order; those after a broken site file are left out.

    Args:
        folder: as `equipoise site init` made it.
        study_file: read the data as this study does.
        superlink: `host:port`; by default the one in `start-supernode.sh`.
    """
    rows = [Row("versions", True, f"equipoise {__version__}, flwr {version('flwr')}, grpcio {version('grpcio')}")]
    try:
        site = load_site(folder / "site.yaml")
    except EquipoiseError as error:
        return [*rows, Row("site file", False, str(error), "correct it")]
    rows.append(Row("site file", True, f"site {site.site}, approve {site.approve}"))
    rows += _keys(folder)
    rows += _certificate(folder / "ca.pem")
    rows += _data(site, study_file)
    rows += _ledger(folder / "agent")
    state = folder / "agent"  # a disk of its own, perhaps
    free = shutil.disk_usage(state if state.is_dir() else folder).free
    enough = free >= LEAST_FREE_BYTES
    rows.append(Row("disk", enough, f"{free / 2**30:.1f} GiB free", "" if enough else "free at least 1 GiB"))
    door = Path(site.socket.path)
    there = listens(door)
    rows.append(Row("site agent", there, f"{door}", "" if there else "start it: ./start-agent.sh"))
    address = superlink or _superlink_of(folder)
    rows += _reach(address, folder / "ca.pem") if address else []
    return rows


def _keys(folder: Path) -> Iterator[Row]:
    for file in (folder / "node.key", folder / "agent" / "identity.key", folder / "site.yaml"):
        if not file.exists():
            yield Row("keys", False, f"{file} is missing", "put it back, or make a new site (equipoise site init)")
        elif file.stat().st_mode & 0o077:
            yield Row("keys", False, f"{file} can be read by others", f"chmod 600 {file}")
        else:
            yield Row("keys", True, f"{file.name}, readable by its owner alone")


def _certificate(file: Path) -> Iterator[Row]:
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError):
        yield Row("certificate", False, f"{file} is missing or no certificate", "ask the coordinator for its ca.pem")
        return
    yield _expiry("coordinator's authority", certificate)


def _expiry(what: str, certificate: x509.Certificate) -> Row:
    days = (certificate.not_valid_after_utc - datetime.now(UTC)).days
    found = f"valid until {certificate.not_valid_after_utc:%Y-%m-%d}"
    if days < 0:
        return Row(
            what, False, f"ended on {certificate.not_valid_after_utc:%Y-%m-%d}", "ask the coordinator to renew it"
        )
    fix = "" if days >= LEAST_DAYS else f"ends in {days} days: ask the coordinator to renew it"
    return Row(what, True, found, fix)


def _data(site: Site, study_file: Path | None) -> Iterator[Row]:
    manifest = Path(site.data.manifest)
    if not manifest.is_file():
        yield Row("data", False, f"{manifest} is missing", "correct data.manifest in the site file")
        return
    yield Row("data", True, f"{manifest}" + ("; declared synthetic" if site.data.synthetic else ""))
    if study_file is None:
        yield Row("codings", True, "not looked at", "add --study STUDY.yaml to read the data as a study does")
        return
    # Imported here: without a study nothing heavy is needed.
    from equipoise.common.query import SPLITS

    try:
        study = validate(Study, read_yaml(study_file), str(study_file))
        cohort = open_cohort(site, study)
        splits = {name: cohort.split(name) for name in SPLITS}
    except EquipoiseError as error:
        yield Row("codings", False, str(error), "correct the data or `coding` in the site file")
        return
    yield Row("codings", True, f"every value is one of study {study.study}'s")
    fix = _too_few(site, cohort)
    yield Row("patients", not fix, f"{cohort.patients} (shown here only)", fix)
    yield from _splits(site, {name: cohort.split_patients(name) for name in SPLITS})
    ill = sum(int(split.label.sum()) for split in splits.values())
    if ill in (0, cohort.patients):
        which = "no" if ill == 0 else "every"
        found = f"{which} patient has {study.label.column} {' or '.join(study.label.positive)} (shown here only)"
        fix = "if that is not so, map this hospital's word for it under `coding` of the site file"
        yield Row("labels", True, found, fix)
    for attribute in study.attributes:
        for number, group in enumerate((*attribute.groups, UNKNOWN)):
            counts = []
            for name, split in splits.items():
                mine = split.groups[attribute.name] == number
                counts.append(f"{name} {int((mine & (split.label == 1)).sum())}/{int(mine.sum())}")
            yield Row(f"{attribute.name} {group}", True, f"positive/all (shown here only): {', '.join(counts)}")


def _splits(site: Site, patients: Mapping[SplitName, int]) -> Iterator[Row]:
    """Splits too small to be asked about, as the policy has it; one that the site file leaves empty may be so."""
    least, declared = site.caps.split_minimum, site.data.splits
    for name, count in patients.items():
        if count >= least:
            continue
        fix = f"fewer than caps.split_minimum of {least}: the site would answer nothing about this split"
        if count == 0 and (isinstance(declared, ColumnSplits) or getattr(declared, name) == 0):
            yield Row(f"split {name}", True, "nobody, as data.splits has it", fix)
        else:
            yield Row(f"split {name}", False, f"{count} (shown here only)", fix)


def open_cohort(site: Site, study: Study) -> Cohort:
    """The site's cohort as a study reads it; its images are not decoded.

    Raises:
        DataError: the user who runs this may not read it, or it does not fit the study; see `Cohort`.
    """
    from equipoise.client.cohort import Cohort

    for file in filter(None, (site.data.manifest, site.data.images)):
        if _closed(Path(file)):
            raise DataError(
                f"{file}: user {getpass.getuser()} may not read it; run this as the site agent's user (sudo -u "
                "equipoise-agent), or let this user read the cohort"
            )
    return Cohort(study, site)


def check_readable(site: Site, study: Study) -> list[str]:
    """Whether this site's cohort has nothing that a study has no word for, and patients enough: before it is approved.

    The study's author chooses columns, levels and labels, and a site that meets another value refuses. So in a run the
    refusal would answer a question of the author's about single patients; here it is for the hospital alone.

    Returns:
        One line for each split with too few patients to answer: the study may do without it.

    Raises:
        DataError: one line with the first thing that is wrong.
    """

    from equipoise.common.query import SPLITS

    try:
        cohort = open_cohort(site, study)
        for name in SPLITS:
            cohort.split(name)  # decodes its images
    except DataError as error:
        raise DataError(f"study {study.study} is not approved: {error}") from None
    if few := _too_few(site, cohort):
        raise DataError(f"study {study.study} is not approved: {cohort.patients} patients, {few}")
    rows = _splits(site, {name: cohort.split_patients(name) for name in SPLITS})
    return [f"{row.what}: {row.found}; {row.fix}" for row in rows]


def _too_few(site: Site, cohort: Cohort) -> str:
    if cohort.patients >= site.caps.cohort_minimum:
        return ""
    return f"fewer than caps.cohort_minimum of {site.caps.cohort_minimum}: the site would answer nothing"


def _closed(path: Path) -> bool:
    """Whether a file or folder is kept from this user. One that is not there is another matter."""
    try:
        if path.is_dir():
            os.listdir(path)
        else:
            path.open("rb").close()
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _ledger(state: Path) -> Iterator[Row]:
    from equipoise.client.ledger import Ledger
    from equipoise.client.setback import LEDGER, check_ledger

    file = state / LEDGER
    try:
        check_ledger(state)
        if not file.exists():
            yield Row("ledger", True, "empty")
            return
        ledger = Ledger(file)
        try:
            broken, entries = ledger.broken_entry(), len(ledger.entries())
        finally:
            ledger.close()
    except EquipoiseError as error:
        yield Row("ledger", False, str(error), "restore the file from a backup")
        return
    if broken is not None:
        yield Row("ledger", False, f"entry {broken.seq} was changed", "restore the file from a backup")
    else:
        yield Row("ledger", True, f"{entries} entries, each follows from the one before")


def _superlink_of(folder: Path) -> str | None:
    script = folder / "start-supernode.sh"
    found = re.search(r"--superlink\s+\\?\s*(\S+)", script.read_text()) if script.exists() else None
    return found[1] if found else None


def _reach(address: str, ca: Path) -> Iterator[Row]:
    """Connection, certificate and clock of the SuperLink, by one request that asks for nothing."""
    host, _, port = address.rpartition(":")
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError):
        return
    try:
        with (
            closing(socket.create_connection((host, int(port)), timeout=_PATIENCE_S)) as raw,
            context.wrap_socket(raw, server_hostname=host) as line,
        ):
            certificate = x509.load_der_x509_certificate(line.getpeercert(binary_form=True) or b"")
            line.sendall(f"HEAD /v1/fleet/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            head = line.recv(65536).decode("latin-1")
    except ssl.SSLCertVerificationError as error:
        fix = "set this machine's clock, or ask the coordinator to renew it"
        if "expired" not in error.verify_message and "not yet valid" not in error.verify_message:
            fix = "ask the coordinator for its ca.pem; if it is the right one, somebody else answers at this address"
        yield Row("coordinator", False, f"{address}: its certificate is not accepted ({error.verify_message})", fix)
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        yield Row("coordinator", False, f"{address} cannot be reached ({reason})", "check the address and the firewall")
        return
    yield Row("coordinator", True, f"{address} answers, with a certificate of the authority")
    yield _expiry("coordinator's certificate", certificate)
    date = re.search(r"^date: (.+?)\r?$", head, re.M | re.I)
    if date is None:
        yield Row("clock", True, "the coordinator tells no time", "compare the clocks by hand")
        return
    skew = (datetime.now(UTC) - parsedate_to_datetime(date[1])).total_seconds()
    good = abs(skew) <= MOST_SKEW_S
    fix = "" if good else "set the clock (chrony, ntp): keys and certificates are refused otherwise"
    yield Row("clock", good, f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the coordinator's", fix)
