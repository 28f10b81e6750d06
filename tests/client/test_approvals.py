"""The store of studies: nothing is approved but by a decision that can be read, and a changed study is another."""

import json
import os
from pathlib import Path

import pytest

from equipoise.client import approvals as store
from equipoise.client.approvals import Approvals
from equipoise.common.errors import RefusedError, StudyError
from tests.tiny import make_study


def test_a_study_waits_until_it_is_decided(tmp_path: Path) -> None:
    approvals, study = Approvals(tmp_path), make_study()
    assert study.hash not in approvals
    assert approvals.propose(study, "run") == "pending"
    assert study.hash not in approvals
    approvals.decide(study.hash[:8], "approved", "ann")
    assert study.hash in approvals
    # Another process sees it too, and the last decision holds.
    assert study.hash in Approvals(tmp_path)
    Approvals(tmp_path).decide(study.hash, "refused", "bob")
    assert study.hash not in approvals
    assert [(p.state, p.by, p.run) for p in approvals.all()] == [("refused", "bob", "run")]
    assert approvals.propose(study, "again") == "refused"


def test_a_study_edited_after_approval_is_not_approved(tmp_path: Path) -> None:
    approvals, study = Approvals(tmp_path), make_study()
    approvals.propose(study, "run")
    approvals.decide(study.hash, "approved", "ann")
    edited = make_study(seed=8)
    assert edited.hash not in approvals
    assert approvals.propose(edited, "run") == "pending"


def test_a_site_file_may_approve_beforehand_and_a_refusal_goes_before_it(tmp_path: Path) -> None:
    study = make_study()
    approvals = Approvals(tmp_path, [study.hash])
    assert study.hash in approvals
    assert study.hash not in Approvals(tmp_path)
    assert approvals.propose(study, "run") == "approved"
    approvals.decide(study.hash, "refused", "ann")
    assert study.hash not in approvals


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"state": "approved"}', b'{"hash": "0", "state": "approved"}'])
def test_a_decision_that_cannot_be_read_is_none(text: bytes, tmp_path: Path) -> None:
    approvals, study = Approvals(tmp_path), make_study()
    approvals.propose(study, "run")
    approvals.decide(study.hash, "approved", "ann")
    (tmp_path / "decisions" / f"{study.hash}.json").write_bytes(text)
    assert study.hash not in approvals
    # It may have been a refusal, and goes before the site file.
    assert study.hash not in Approvals(tmp_path, [study.hash])
    assert approvals.propose(study, "run") == "refused"


@pytest.mark.skipif(os.geteuid() != 0, reason="an administrator's decision")
def test_what_an_administrator_decides_belongs_to_the_agent(tmp_path: Path) -> None:
    approvals, study = Approvals(tmp_path), make_study()
    approvals.propose(study, "run")
    os.chown(tmp_path / "studies", 65534, 65534)
    approvals.decide(study.hash, "refused", "root")
    for path in (tmp_path / "decisions", tmp_path / "decisions" / f"{study.hash}.json"):
        assert path.stat().st_uid == path.stat().st_gid == 65534


def test_a_stored_study_that_is_none_keeps_no_other_from_being_proposed(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    approvals.propose(make_study(), "run")
    (tmp_path / "studies" / f"{'0' * 64}.json").write_text("of another version")
    assert approvals.propose(make_study(seed=8), "run") == "pending"
    assert [found.study.seed for found in approvals.all()] == [make_study().seed, 8]


def test_a_stored_study_that_was_changed_is_found(tmp_path: Path) -> None:
    approvals, study = Approvals(tmp_path), make_study()
    approvals.propose(study, "run")
    file = tmp_path / "studies" / f"{study.hash}.json"
    value = json.loads(file.read_text())
    value["study"]["seed"] = 9
    file.write_text(json.dumps(value))
    with pytest.raises(StudyError, match="changed after it was received"):
        approvals.decide(study.hash, "approved", "ann")


@pytest.mark.parametrize("digest", ["", "abc", "../../etc", "*" * 8, "0" * 64])
def test_a_hash_that_names_no_study_is_one_line(digest: str, tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    approvals.propose(make_study(), "run")
    with pytest.raises(StudyError, match="hash"):
        approvals.decide(digest, "approved", "ann")


def test_a_flood_of_proposals_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MOST_PENDING", 3)
    approvals = Approvals(tmp_path)
    for seed in range(3):
        approvals.propose(make_study(seed=seed), "run")
    with pytest.raises(RefusedError, match="wait already"):
        approvals.propose(make_study(seed=3), "run")
    approvals.decide(make_study(seed=0).hash, "refused", "ann")
    assert approvals.propose(make_study(seed=3), "run") == "pending"
    monkeypatch.setattr(store, "MOST_BYTES", 100)
    with pytest.raises(RefusedError, match="at most"):
        approvals.propose(make_study(seed=4), "run")
