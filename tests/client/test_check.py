"""`site check` names what is wrong and what to do: keys, authority, expiry, clock, data, ledger. Nothing leaves."""

import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import yaml

from equipoise.client.approvals import Approvals
from equipoise.client.check import Row, check_readable, check_site
from equipoise.client.site_init import init_site
from equipoise.commands import site as commands
from equipoise.common.audit import AuditLog
from equipoise.common.config import read_yaml, validate
from equipoise.common.errors import DataError
from equipoise.common.sitefile import load_site
from equipoise.common.study import Study
from equipoise.server.certificates import Pair, make_ca, sign_server
from tests.e2e.studies import IMAGES, TABLE, Desk

CA = make_ca("test")


@contextmanager
def superlink(server: Pair, folder: Path, skew: timedelta = timedelta()) -> Iterator[str]:
    """A TLS server that answers one request with a date."""
    (folder / "server.pem").write_bytes(server.certificate)
    (folder / "server.key").write_bytes(server.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        try:
            raw, _ = listening.accept()
            with context.wrap_socket(raw, server_side=True) as line:
                line.recv(4096)
                date = format_datetime(datetime.now(UTC) + skew, usegmt=True)
                line.sendall(f"HTTP/1.1 404 Not Found\r\ndate: {date}\r\n\r\n".encode())
        except OSError:
            return  # the client did not like the certificate

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()
        thread.join(5)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "desk", TABLE)


@pytest.fixture
def site(tmp_path: Path, desk: Desk) -> Path:
    folder = tmp_path / "ash"
    (tmp_path / "ca.pem").write_bytes(CA.certificate)
    init_site(folder, "ash", "127.0.0.1:9", tmp_path / "ca.pem", 9094, str(desk.site("ash") / "manifest.csv"))
    value = yaml.safe_load((folder / "site.yaml").read_text())
    value["data"]["splits"] = {"column": "split"}
    value["caps"]["cohort_minimum"] = 10
    (folder / "site.yaml").write_text(yaml.safe_dump(value))
    return folder


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.what: row for row in rows}


def test_the_folder_that_init_made_is_in_order(site: Path, tmp_path: Path, desk: Desk) -> None:
    with superlink(sign_server(CA, ["127.0.0.1"]), tmp_path) as address:
        rows = by_name(check_site(site, desk.study, address))
    assert {name for name, row in rows.items() if not row.holds} == {"site agent"}  # which is not started here
    assert rows["coordinator"].found.startswith(address)
    assert rows["patients"].found == "48 (shown here only)"
    assert "train" in rows["sex female"].found


@pytest.mark.parametrize(
    ("server", "what"),
    [
        (lambda: sign_server(CA, ["127.0.0.1"], days=-1), "expired"),
        (lambda: sign_server(make_ca("other"), ["127.0.0.1"]), "unable to get local issuer"),
        (lambda: sign_server(CA, ["somewhere.else"]), "not valid for"),
    ],
)
def test_a_certificate_that_is_not_accepted_is_named(
    server: Callable[[], Pair], what: str, site: Path, tmp_path: Path
) -> None:
    with superlink(server(), tmp_path) as address:
        row = by_name(check_site(site, None, address))["coordinator"]
    assert not row.holds
    assert what in row.found
    assert ("clock" in row.fix) == (what == "expired")


@pytest.mark.parametrize(("days", "word"), [(1, "behind"), (-1, "ahead of")])
def test_a_clock_that_is_off_by_a_day_is_named(days: int, word: str, site: Path, tmp_path: Path) -> None:
    with superlink(sign_server(CA, ["127.0.0.1"]), tmp_path, timedelta(days=days)) as address:
        row = by_name(check_site(site, None, address))["clock"]
    assert not row.holds
    assert word in row.found
    assert "set the clock" in row.fix


def test_a_coordinator_that_is_not_there_is_named(site: Path) -> None:
    row = by_name(check_site(site, None, "127.0.0.1:9"))["coordinator"]
    assert not row.holds
    assert "firewall" in row.fix


def test_a_key_that_others_can_read_is_named(site: Path) -> None:
    (site / "node.key").chmod(0o644)
    assert any(not row.holds and "chmod 600" in row.fix for row in check_site(site, None, None))


def test_an_authority_that_has_ended_is_named(site: Path) -> None:
    (site / "ca.pem").write_bytes(make_ca("test", days=-2).certificate)
    assert not by_name(check_site(site, None, "127.0.0.1:9"))["coordinator's authority"].holds


def test_a_coding_that_is_missing_is_named_with_its_row(site: Path, desk: Desk) -> None:
    rows = desk.rows("ash")
    rows[4]["sex"] = "F"
    desk.write_rows("ash", rows)
    row = by_name(check_site(site, desk.study, "127.0.0.1:9"))["codings"]
    assert not row.holds
    assert "row 5" in row.found
    assert "coding" in row.fix


def write_site(site: Path, **changes: object) -> None:
    value = yaml.safe_load((site / "site.yaml").read_text())
    value["data"]["splits"] = changes.pop("splits", value["data"]["splits"])
    value["caps"] |= changes
    (site / "site.yaml").write_text(yaml.safe_dump(value))


def test_a_split_about_which_the_site_would_refuse_to_answer_is_named(site: Path, desk: Desk) -> None:
    write_site(site, split_minimum=13)  # of 24, 12 and 12 patients
    rows = by_name(check_site(site, desk.study, "127.0.0.1:9"))
    assert rows["patients"].holds
    assert "split train" not in rows
    for name in ("validation", "test"):
        row = rows[f"split {name}"]
        assert (row.holds, row.found) == (False, "12 (shown here only)")
        assert "fewer than caps.split_minimum of 13: the site would answer nothing about this split" in row.fix
    write_site(site, split_minimum=12)
    assert not any(name.startswith("split ") for name in by_name(check_site(site, desk.study, "127.0.0.1:9")))


def test_a_split_that_the_site_file_leaves_empty_is_no_fault(site: Path, desk: Desk) -> None:
    write_site(site, splits={"train": 0, "validation": 0, "test": 1})
    rows = by_name(check_site(site, desk.study, "127.0.0.1:9"))
    assert "split test" not in rows
    for name in ("train", "validation"):
        assert rows[f"split {name}"].holds
        assert "would answer nothing about this split" in rows[f"split {name}"].fix
    # The split is drawn with a key that is new in every test: so small a share has nobody but once in millions of runs.
    write_site(site, splits={"train": 1e-9, "validation": 0, "test": 1 - 1e-9})
    row = by_name(check_site(site, desk.study, "127.0.0.1:9"))["split train"]
    assert (row.holds, row.found) == (False, "0 (shown here only)")
    write_site(site, splits={"column": "split"})
    desk.write_rows("ash", [{**row, "split": "test"} for row in desk.rows("ash")])
    assert by_name(check_site(site, desk.study, "127.0.0.1:9"))["split train"].holds


def test_words_for_the_disease_that_the_study_does_not_know_are_asked_about(site: Path, desk: Desk) -> None:
    assert "labels" not in by_name(check_site(site, desk.study, "127.0.0.1:9"))
    rows = desk.rows("ash")
    label = next(name for name in rows[0] if {row[name] for row in rows} == {"0", "1"} and name != "split")
    desk.write_rows("ash", [{**row, label: {"1": "yes", "0": "no"}[row[label]]} for row in rows])
    row = by_name(check_site(site, desk.study, "127.0.0.1:9"))["labels"]
    assert row.found == f"no patient has {label} 1 (shown here only)"
    assert "coding" in row.fix


def test_a_ledger_that_the_audit_log_knows_more_of_is_named(site: Path) -> None:
    AuditLog(site / "agent" / "audit.jsonl").append("request", code="ok", ledger="5" * 64)
    row = by_name(check_site(site, None, "127.0.0.1:9"))["ledger"]
    assert not row.holds
    assert "is missing" in row.found
    assert not (site / "agent" / "ledger.sqlite").exists()


class Proposed:
    """A study that waits at the site."""

    def __init__(self, site: Path, desk: Desk) -> None:
        value = {key: part for key, part in read_yaml(desk.study).items() if key != "simulation"}
        self.study = validate(Study, value, "study")
        self.store = Approvals(site / "agent")
        self.store.propose(self.study, "run")

    @property
    def state(self) -> str:
        return self.store.find(self.study.hash).state


def test_a_study_that_the_cohort_fits_is_approved(site: Path, desk: Desk) -> None:
    study = Proposed(site, desk)
    commands.approve(study.study.hash[:12], site)
    assert study.state == "approved"


def test_a_study_without_a_word_for_a_value_is_not_approved_and_the_hospital_alone_learns_why(
    site: Path, desk: Desk
) -> None:
    """The study's author chose its levels; a refusal in the run would tell them that there is a patient like this."""
    rows = desk.rows("ash")
    rows[4]["sex"] = "F"
    desk.write_rows("ash", rows)
    study = Proposed(site, desk)
    with pytest.raises(
        DataError, match=r"^study small is not approved: site ash: .* row 5, column sex: 'F' is no level"
    ):
        commands.approve(study.study.hash, site)
    assert study.state == "pending"
    commands.refuse(study.study.hash, site)
    assert study.state == "refused"


def test_a_study_is_not_approved_where_an_image_is_damaged(site: Path, tmp_path: Path) -> None:
    desk = Desk(tmp_path / "images", IMAGES)
    desk.pack("ash", lambda name, content: content[:50] if name.endswith("7.png") else content)
    value = yaml.safe_load((site / "site.yaml").read_text())
    value["data"] |= {
        "manifest": str(desk.site("ash") / "manifest.csv"),
        "images": str(desk.site("ash") / "images.zip"),
    }
    (site / "site.yaml").write_text(yaml.safe_dump(value))
    study = Proposed(site, desk)
    with pytest.raises(DataError, match=r"study small is not approved: .*7\.png"):
        commands.approve(study.study.hash, site)
    assert study.state == "pending"


def test_a_study_is_not_approved_where_patients_are_too_few_to_answer(site: Path, desk: Desk) -> None:
    value = yaml.safe_load((site / "site.yaml").read_text())
    value["caps"]["cohort_minimum"] = 49
    (site / "site.yaml").write_text(yaml.safe_dump(value))
    study = Proposed(site, desk)
    with pytest.raises(DataError, match=r"48 patients, fewer than caps\.cohort_minimum of 49"):
        commands.approve(study.study.hash, site)
    assert study.state == "pending"


def test_approval_names_a_split_that_is_too_small_to_answer(
    site: Path, desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    value = yaml.safe_load((site / "site.yaml").read_text())
    value["data"]["splits"] = {"train": 0.9, "validation": 0.1, "test": 0}
    (site / "site.yaml").write_text(yaml.safe_dump(value))
    study = Proposed(site, desk)
    commands.approve(study.study.hash, site)
    assert study.state == "approved"
    few, none = capsys.readouterr().err.splitlines()
    assert re.match(r"warning: split validation: \d \(shown here only\); fewer than caps\.split_minimum of 10", few)
    assert none.startswith("warning: split test: nobody, as data.splits has it; fewer than")


def test_a_user_who_may_not_read_the_cohort_is_told_who_may(site: Path, desk: Desk) -> None:
    there, study = load_site(site / "site.yaml"), Proposed(site, desk).study
    manifest = Path(there.data.manifest)
    manifest.chmod(0)
    if os.geteuid() == 0:
        check_readable(there, study)  # root may read anything, and has imported all that is needed
        os.seteuid(65534)
    try:
        with pytest.raises(DataError, match=r"may not read it; run this as the site agent's user \(sudo -u"):
            check_readable(there, study)
    finally:
        os.seteuid(os.getuid())


def test_a_site_file_that_is_wrong_is_one_row(site: Path) -> None:
    (site / "site.yaml").write_text("site: ash\nspltis: 1\n")
    rows = check_site(site, None, None)
    assert not rows[-1].holds
    assert rows[-1].what == "site file"
