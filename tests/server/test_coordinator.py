"""The coordinator's folder: certificates, scripts that phone nobody, a bundle without code, submissions."""

import json
import ssl
import subprocess
import tomllib
from pathlib import Path

import pytest
from cryptography import x509

from equipoise.common.errors import EquipoiseError, StudyError
from equipoise.common.identity import new_identity_key, public_identity
from equipoise.common.supervision import QUIET, supervisor
from equipoise.quiet import SETTINGS
from equipoise.server.certificates import make_ca, sign_server
from equipoise.server.coordinator import _APP_FILES, Coordinator
from equipoise.server.coordinator_init import init_coordinator
from equipoise.server.submission import prepare_run
from tests.e2e.studies import SITES, TABLE, Desk


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    init_coordinator(tmp_path / "c", "test", "127.0.0.1", 8443, "hub.example:443", ["127.0.0.1", "hub.example"])
    return Coordinator(tmp_path / "c")


def test_the_certificate_is_one_that_tls_accepts_for_its_hosts(tmp_path: Path) -> None:
    ca = make_ca("test")
    server = sign_server(ca, ["127.0.0.1", "hub.example"])
    for name, data in {"ca.pem": ca.certificate, "s.pem": server.certificate, "s.key": server.key}.items():
        (tmp_path / name).write_bytes(data)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "s.pem", tmp_path / "s.key")
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-verify_ip", "127.0.0.1", "-CAfile", "ca.pem", "s.pem"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = x509.load_pem_x509_certificate(server.certificate)
    assert (found.not_valid_after_utc - found.not_valid_before_utc).days < 398


def test_the_folder_keeps_its_keys_and_is_made_once(coordinator: Coordinator) -> None:
    for key in ("ca.key", "server.key"):
        assert (coordinator.folder / "tls" / key).stat().st_mode & 0o077 == 0
    with pytest.raises(StudyError, match="holds a coordinator already"):
        init_coordinator(coordinator.folder, "x", "127.0.0.1", 1, "", ["127.0.0.1"])
    with pytest.raises(StudyError, match="no coordinator here"):
        Coordinator(coordinator.folder / "runs")


def test_scripts_parse_and_phone_nobody(coordinator: Coordinator) -> None:
    script = coordinator.folder / "start-superlink.sh"
    for file in (script, coordinator.folder / "supervise.sh"):
        assert subprocess.run(["sh", "-n", file], check=False).returncode == 0
    text = script.read_text()
    assert QUIET.items() >= SETTINGS.items()
    for name, value in QUIET.items():
        assert f"export {name}={value}" in text
    assert "--disable-runtime-dependency-installation" in text
    assert "--enable-supernode-auth" in text
    assert f"cd {coordinator.folder / 'superlink'}" in text


def test_the_supervisor_starts_again_and_ends_when_told(tmp_path: Path) -> None:
    (tmp_path / "supervise.sh").write_text(supervisor())
    (tmp_path / "once.sh").write_text(f"#!/bin/sh\necho x >> {tmp_path}/count\n")
    for file in tmp_path.glob("*.sh"):
        file.chmod(0o755)
    child = subprocess.Popen(
        [tmp_path / "supervise.sh", tmp_path / "once.sh"], env={"RETRY_S": "0.1", "PATH": "/usr/bin:/bin"},
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        child.wait(timeout=3)
    except subprocess.TimeoutExpired:
        child.terminate()
    assert child.wait(timeout=10) == 0
    assert len((tmp_path / "count").read_text().splitlines()) >= 2


def test_the_proxy_passes_the_fleet_on_and_nothing_else(coordinator: Coordinator) -> None:
    text = (coordinator.folder / "nginx.conf").read_text()
    assert text.count("proxy_pass ") == 1
    assert "location ^~ /v1/fleet/ {" in text
    assert "location / {\n    return 403;" in text
    assert "/v1/control" not in text.replace("# ", "").split("server {")[1]


def test_the_bundle_brings_no_code_of_its_own() -> None:
    project = tomllib.loads(_APP_FILES["pyproject.toml"])
    assert project["tool"]["flwr"]["app"]["fab-include"] == ["equipoise_app/*.py"]
    assert project["project"]["dependencies"] == []
    code = "".join(text for name, text in _APP_FILES.items() if name.endswith(".py"))
    assert len(code.splitlines()) < 10


def enrolled(coordinator: Coordinator, *sites: str) -> Coordinator:
    for site in sites:
        identity = public_identity(new_identity_key())
        value = {"site": site, "node_key": "k", "node_id": "1", "identity": identity, "version": "0"}
        (coordinator.folder / "sites" / f"{site}.json").write_text(json.dumps(value))
    return coordinator


def test_a_submission_writes_a_run_that_is_not_of_a_simulation(coordinator: Coordinator, tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk", TABLE)
    desk.write_study(sites={"declared_patients": dict.fromkeys(SITES, 24)})
    run = prepare_run(enrolled(coordinator, *SITES), desk.study, [], None)
    assert run.task().study.simulation is None
    assert run.task().sites == SITES
    assert run.task().study.privacy.secure_sum, "the default of a deployment"
    known = {site: facts["identity"] for site, facts in coordinator.enrolled().items()}
    assert run.task().study.sites.keys == known
    with pytest.raises(StudyError, match="go on with `equipoise resume small`"):
        prepare_run(coordinator, desk.study, [], None)
    assert prepare_run(coordinator, desk.study, [], "again").name == "again"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": {}}, r"sites\.declared_patients is missing"),
        ({"sites": {"declared_patients": {"ash": 5, "oak": 5}}}, "oak not enrolled; enrolled are: ash, birch, cedar"),
        ({"method": {"name": "swift", "controls": ["pooled", "auc_noise"]}}, "pooled, auc_noise need every hospital"),
        ({"privacy": {"mode": "local", "epsilon": 3}}, r"privacy\.public_pool is missing: bases, units and bins"),
        ({"model": {**TABLE["model"], "weights": {"path": "other.safetensors"}}}, "no readable file"),
    ],
)
def test_a_study_that_no_deployment_can_run_is_one_line(
    changes: dict[str, object], message: str, coordinator: Coordinator, tmp_path: Path
) -> None:
    desk = Desk(tmp_path / "desk", TABLE)
    desk.write_study(**{"sites": {"declared_patients": dict.fromkeys(SITES, 24)}, **changes})
    with pytest.raises(EquipoiseError, match=message):
        prepare_run(enrolled(coordinator, *SITES), desk.study, [], None)
    assert list((coordinator.folder / "runs").iterdir()) == []
