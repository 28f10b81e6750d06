"""The folder that `equipoise site init` makes: what its service files and its users need of it."""

import stat
from pathlib import Path

import pytest

from equipoise.client.site_init import init_site, ownership

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "ca.pem").write_text("none")
    init_site(tmp_path / "st-marys", "st-marys", "127.0.0.1:9", tmp_path / "ca.pem", 9094, "cohort.csv")
    return tmp_path / "st-marys"


def test_every_folder_that_a_service_file_names_is_there(site: Path) -> None:
    named = {
        Path(path)
        for file in site.glob("*.service")
        for line in file.read_text().splitlines()
        for path in line.partition("Paths=")[2].split()
    }
    assert named == {site / "agent", site / "door", site / "supernode"}
    assert all(path.is_dir() for path in named), "systemd would end with 226/NAMESPACE"


def test_what_a_user_alone_may_read_is_given_to_that_user_and_nothing_else(site: Path) -> None:
    closed = {path.name for path in site.iterdir() if not path.stat().st_mode & stat.S_IRWXO}
    given = {Path(word).name for line in ownership(site) for word in line.split()[3:]}
    assert given == closed == {"site.yaml", "agent", "door", "node.key", "supernode"}
    assert stat.S_IMODE((site / "door").stat().st_mode) == 0o750


def test_the_page_says_what_init_prints() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text().splitlines()
    assert [line for line in page if line.startswith("chown ")] == ownership(Path("st-marys"))
