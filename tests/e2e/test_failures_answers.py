"""Sites that answer wrongly, late or as another version; studies and files that are changed; on real processes.

The sites' integers come without the secure sum here, where the coordinator sees each site's own and has to check them;
in the secure sum a reply is signed by the site, and what is not signed by it is no reply (the last test).
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from equipoise.simulations.loopback import ROOT, Process
from tests.e2e.deployed import equipoise
from tests.e2e.failing import Hospitals, hospitals, site_check

pytestmark = [pytest.mark.failures, pytest.mark.timeout(1200)]
DEADLINE_S = 60
CROOKED = "cedar"


def put_between(there: Hospitals) -> None:
    """Let the SuperNode of a site reach its agent through a crooked door."""
    site = there.site(CROOKED)
    there.change_site(CROOKED, socket={"path": "door/real.sock"})
    script = there.folder / "crooked.sh"
    own, agent = site / "door" / "agent.sock", site / "door" / "real.sock"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -m tests.e2e.crooked {agent} {own} {there.folder / 'mode'}\n")
    script.chmod(0o755)
    there.processes["crooked"] = Process(script, there.folder / "crooked.log", cwd=ROOT)


@pytest.fixture(scope="module")
def there() -> Iterator[Hospitals]:
    sites = {"deadline_s": DEADLINE_S}
    with hospitals("answer", sites=sites, privacy={"secure_sum": False}, prepare=put_between) as found:
        yield found


@pytest.fixture
def mode(there: Hospitals) -> Iterator[Path]:
    file = there.folder / "mode"
    file.write_text("")
    yield file
    file.write_text("")


def test_wrong_answers_are_left_out_by_name_and_none_of_them_is_added(there: Hospitals, mode: Path) -> None:
    there.begin("wrong")
    mode.write_text("nan")
    line = there.fails("wrong")
    assert f"2 of 3 sites answered, 3 are needed ({CROOKED}: malformed)" in line
    codes = {
        "shapes": "malformed", "large": "out_of_range", "huge": "malformed", "pickle": "malformed",
        "again": "mismatched",
    }  # fmt: skip
    for what, code in codes.items():
        mode.write_text(what)
        line = there.resume("wrong", fails=True)
        assert f"({CROOKED}: {code})" in line, (what, line)
        assert "see the sites' own logs, then resume the run" in line
    mode.write_text("")
    there.resume("wrong")
    there.check_whole("wrong")


def test_a_slow_site_is_waited_for_until_its_deadline(there: Hospitals, mode: Path) -> None:
    mode.write_text("slow 6")
    there.begin("slow")
    mode.write_text(f"slow {DEADLINE_S + 10}")
    assert f"({CROOKED}: timeout)" in there.fails("slow")
    mode.write_text("")
    there.resume("slow")
    there.check_whole("slow")


def test_an_older_client_is_named_with_both_versions(there: Hospitals, mode: Path) -> None:
    mode.write_text("older")
    there.submit(there.study, "--name", "older")
    line = there.fails("older")
    assert f"site {CROOKED} runs equipoise '0.0.1', the server" in line
    assert "install the same version at both" in line
    mode.write_text("")
    there.resume("older")
    there.check_whole("older")


def test_a_hospital_outside_the_study_takes_nobodys_place(there: Hospitals) -> None:
    there.init_site("dale", there.cohorts["birch"])
    script = there.site("dale") / "start-supernode.sh"
    own, other = (str(there.site(site).resolve() / "door" / "agent.sock") for site in ("dale", "ash"))
    assert own in script.read_text()
    script.write_text(script.read_text().replace(own, other))  # it says that it is ash
    there.enroll("dale")
    there.start_supernode("dale")
    online = re.compile(r"^dale +online", re.M)
    there.wait(lambda: online.search(equipoise("coordinator", "sites", *there.here)), 60, "dale is connected")
    there.begin("outside")
    assert there.until("outside", "finished", "failed", patience=400)["state"] == "finished"
    there.check_whole("outside")
    equipoise("coordinator", "revoke", "dale", *there.here)


def test_a_study_whose_factory_is_a_command_runs_nowhere(there: Hospitals) -> None:
    command = f"touch {there.folder / 'planted-pwned'}"
    model = {"factory": "os:system", "arguments": {"command": command}, "weights": {"path": "vendor.safetensors"}}
    study = there.study.parent / "os.yaml"
    study.write_text(yaml.safe_dump({**there.desk.value, "study": "os", "model": model}))
    error = equipoise("submit", study, *there.here, "--name", "os", check=False)
    assert "os:system" in error
    assert not list(there.folder.rglob("planted-pwned"))


def test_a_study_that_was_edited_after_its_approval_waits_for_another(there: Hospitals) -> None:
    there.submit(there.study, "--name", "edited-study", "--set", "method.rounds=3", "--approval-hours", "0.003")
    line = there.fails("edited-study")
    assert "0 of 3 sites approved it, 3 are needed (ash: pending, birch: pending, cedar: pending)" in line
    assert "equipoise site approve" in line
    assert all(not released for released in there.released("edited-study").values())


def test_data_that_are_edited_in_a_run_are_refused_until_they_are_back(there: Hospitals) -> None:
    manifest = there.desk.site("ash") / "planted-manifest.csv"
    kept = manifest.read_bytes()
    there.begin("data")
    try:
        manifest.write_bytes(kept.replace(b"planted-1", b"planted-0", 1))
        assert "(ash: refused)" in there.fails("data")
        reason = (there.site("ash") / "agent" / "agent.log.jsonl").read_text().splitlines()[-1]
        assert "run data: the data changed since the run began; put them back" in reason
    finally:
        manifest.write_bytes(kept)
    there.resume("data")
    there.check_whole("data")


def test_a_site_file_that_is_edited_in_a_run(there: Hospitals) -> None:
    there.begin("file")
    there.change_site("ash", approve="manual")
    file = there.site("ash") / "site.yaml"
    file.write_text(file.read_text() + "# a word\n")
    assert "(ash: refused)" in there.fails("file")
    there.processes["agent-ash"].kill(signal.SIGTERM)
    there.start_agent("ash")
    there.resume("file")
    there.check_whole("file")


def test_a_site_that_is_paused_in_a_run(there: Hospitals) -> None:
    there.begin("paused")
    equipoise("site", "pause", "--folder", there.site("ash"))
    assert "(ash: paused)" in there.fails("paused")
    equipoise("site", "resume", "--folder", there.site("ash"))
    there.resume("paused")
    there.check_whole("paused")


def test_two_studies_at_once(there: Hospitals) -> None:
    for name in ("one", "two"):
        there.submit(there.study, "--name", name)
    for name in ("one", "two"):
        assert there.until(name, "finished", "failed", patience=400)["state"] == "finished"
        there.check_whole(name)


def test_a_site_that_is_in_order_says_so(there: Hospitals) -> None:
    assert site_check(there.site("ash")) == {}
