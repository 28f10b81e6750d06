"""Pinned peers: enrolments that a hospital took in, the only company in which it adds to a secure sum."""

from pathlib import Path

import pytest
import yaml

from equipoise.client.host import sessions_of
from equipoise.client.site_init import init_site, pin_peer, signed_enrolment
from equipoise.common.errors import RefusedError, StudyError
from equipoise.common.identity import new_identity_key, public_identity
from equipoise.common.sitefile import Site, load_site


def hospital(folder: Path, name: str) -> Path:
    """A site's folder, as `equipoise site init` makes it."""
    (folder / "ca.pem").write_text("a certificate")
    init_site(folder / name, name, "127.0.0.1:1", folder / "ca.pem", 9094, "cohort.csv")
    return folder / name


def site_of(folder: Path) -> Site:
    return load_site(folder / "site.yaml")


@pytest.fixture
def marys(tmp_path: Path) -> Path:
    return hospital(tmp_path, "marys")


def enrolment_of(folder: Path) -> Path:
    file = folder.with_suffix(".json")
    file.write_bytes(signed_enrolment(folder, folder.name))
    return file


def test_a_pinned_enrolment_becomes_a_key_of_the_site_file(marys: Path, tmp_path: Path) -> None:
    mercy = hospital(tmp_path, "mercy")
    assert site_of(marys).peers.keys == {}
    assert sessions_of(site_of(marys), marys / "agent") is None, "without peers there is no secure sum"
    pinned = pin_peer(marys, site_of(marys), enrolment_of(mercy))
    own = public_identity((mercy / "agent" / "identity.key").read_bytes())
    assert site_of(marys).peers.keys == {"mercy": own} == {pinned.site: pinned.identity}
    sessions = sessions_of(site_of(marys), marys / "agent")
    assert sessions is not None
    pin_peer(marys, site_of(marys), enrolment_of(mercy))  # again is no other


def test_another_key_for_a_pinned_hospital_is_refused(marys: Path, tmp_path: Path) -> None:
    mercy = hospital(tmp_path, "mercy")
    pin_peer(marys, site_of(marys), enrolment_of(mercy))
    kept = site_of(marys).peers.keys
    (tmp_path / "elsewhere").mkdir()
    impostor = hospital(tmp_path / "elsewhere", "mercy")
    with pytest.raises(StudyError, match="mercy is pinned under another key"):
        pin_peer(marys, site_of(marys), enrolment_of(impostor))
    assert site_of(marys).peers.keys == kept


def test_a_key_in_the_site_file_and_another_in_the_folder_are_one_too_many(marys: Path, tmp_path: Path) -> None:
    mercy = hospital(tmp_path, "mercy")
    pin_peer(marys, site_of(marys), enrolment_of(mercy))
    file = yaml.safe_load((marys / "site.yaml").read_text())
    file["peers"]["keys"] = {"mercy": public_identity(new_identity_key())}
    (marys / "site.yaml").write_text(yaml.safe_dump(file))
    with pytest.raises(StudyError, match=r"mercy.json: peers.keys has another key for mercy"):
        site_of(marys)


def test_the_own_enrolment_is_not_a_peers(marys: Path) -> None:
    with pytest.raises(StudyError, match="of this site itself"):
        pin_peer(marys, site_of(marys), enrolment_of(marys))


def test_a_site_that_lists_itself_under_a_wrong_key_does_not_start(marys: Path, tmp_path: Path) -> None:
    file = yaml.safe_load((marys / "site.yaml").read_text())
    file["peers"]["keys"] = {"marys": public_identity(new_identity_key())}
    (marys / "site.yaml").write_text(yaml.safe_dump(file))
    with pytest.raises(RefusedError, match=r"peers.keys: marys is not listed under its own"):
        sessions_of(site_of(marys), marys / "agent")
