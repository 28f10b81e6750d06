"""The coordinator's folder: certificates, scripts that phone nobody, a bundle without code, submissions."""

import json
import re
import ssl
import subprocess
import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from equipoise.common.errors import EquipoiseError, ModelError, StudyError, UnreachableError
from equipoise.common.identity import Enrolment, new_identity_key, new_node_key, public_identity, public_node_key
from equipoise.common.supervision import QUIET, supervisor
from equipoise.quiet import SETTINGS
from equipoise.server.certificates import SERVER_DAYS, Pair, hosts_of, make_ca, sign_server
from equipoise.server.coordinator import _APP_FILES, Coordinator, Settings
from equipoise.server.coordinator_init import init_coordinator, renew_certificate
from equipoise.server.submission import prepare_run
from equipoise.simulations.loopback import done
from tests.e2e.studies import SITES, TABLE, Desk


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    init_coordinator(tmp_path / "c", "test", "127.0.0.1", 9443, "hub.example:443", ["127.0.0.1", "hub.example"])
    return Coordinator(tmp_path / "c")


def test_the_certificate_is_one_that_tls_accepts_for_its_hosts(tmp_path: Path) -> None:
    ca = make_ca("test")
    server = sign_server(ca, ["127.0.0.1", "hub.example"])
    for name, data in {"ca.pem": ca.certificate, "s.pem": server.certificate, "s.key": server.key}.items():
        (tmp_path / name).write_bytes(data)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "s.pem", tmp_path / "s.key")
    checked = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-verify_ip", "127.0.0.1", "-CAfile", "ca.pem", "s.pem"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    found = x509.load_pem_x509_certificate(server.certificate)
    assert (found.not_valid_after_utc - found.not_valid_before_utc).days < 398


def test_the_folder_keeps_its_keys_and_is_made_once(coordinator: Coordinator) -> None:
    for key in ("ca.key", "server.key"):
        assert (coordinator.folder / "tls" / key).stat().st_mode & 0o077 == 0
    with pytest.raises(StudyError, match="holds a coordinator already"):
        init_coordinator(coordinator.folder, "x", "127.0.0.1", 1, "", ["127.0.0.1"])
    with pytest.raises(StudyError, match="no coordinator here"):
        Coordinator(coordinator.folder / "runs")


def test_a_certificate_is_renewed_for_the_same_hosts_by_the_same_authority(coordinator: Coordinator) -> None:
    tls = coordinator.folder / "tls"
    ca = Pair((tls / "ca.pem").read_bytes(), (tls / "ca.key").read_bytes())
    ended = sign_server(ca, ["127.0.0.1", "hub.example"], days=-1)
    for name, data in {"server.pem": ended.certificate, "server.key": ended.key}.items():
        (tls / name).write_bytes(data)
    said = done("coordinator", "renew", "--coordinator", coordinator.folder)
    renewed = x509.load_pem_x509_certificate((tls / "server.pem").read_bytes())
    assert f"valid until {renewed.not_valid_after_utc:%Y-%m-%d}" in said
    assert renewed.not_valid_after_utc > datetime.now(UTC) + timedelta(days=SERVER_DAYS - 1)
    assert hosts_of((tls / "server.pem").read_bytes()) == ["127.0.0.1", "hub.example"]
    renewed.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.certificate))
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls / "server.pem", tls / "server.key")
    assert (tls / "server.key").stat().st_mode & 0o077 == 0


def test_a_certificate_of_ones_own_is_renewed_by_whoever_signed_it(coordinator: Coordinator) -> None:
    tls = coordinator.folder / "tls"
    before = (tls / "server.pem").read_bytes()
    (tls / "ca.key").rename(tls / "elsewhere")
    with pytest.raises(StudyError, match=r"ca\.key: not here; whoever signed your certificate renews it"):
        renew_certificate(coordinator.folder)
    (tls / "ca.key").write_text("no key")
    with pytest.raises(StudyError, match="is not as it was"):
        renew_certificate(coordinator.folder)
    assert (tls / "server.pem").read_bytes() == before


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


def test_proxy_and_superlink_listen_at_ports_of_their_own(tmp_path: Path) -> None:
    done("coordinator", "init", "--coordinator", tmp_path)
    port = Coordinator(tmp_path).settings.port
    text = (tmp_path / "nginx.conf").read_text()
    assert re.findall(r"listen (\d+) ssl;", text) == ["8443"] != [str(port)]
    assert re.findall(r"proxy_pass https://127\.0\.0\.1:(\d+);", text) == [str(port)] == [str(Settings().port)]
    with pytest.raises(StudyError, match="--port 443: the proxy of this machine listens there"):
        init_coordinator(tmp_path / "c", "test", "127.0.0.1", 443, "hub.example:443", ["127.0.0.1"])
    with pytest.raises(StudyError, match=r"--public hub\.example: has no port"):
        init_coordinator(tmp_path / "c", "test", "127.0.0.1", 443, "hub.example", ["127.0.0.1"])
    assert not (tmp_path / "c").exists()
    init_coordinator(tmp_path / "c", "test", "10.0.0.7", 443, "hub.example:443", ["10.0.0.7"])  # a machine of its own


def test_the_bundle_brings_no_code_of_its_own() -> None:
    project = tomllib.loads(_APP_FILES["pyproject.toml"])
    assert project["tool"]["flwr"]["app"]["fab-include"] == ["equipoise_app/*.py"]
    assert project["project"]["dependencies"] == []
    code = "".join(text for name, text in _APP_FILES.items() if name.endswith(".py"))
    assert len(code.splitlines()) < 10


class SuperLink:
    """Stands for Flower's commands on nodes: a key is taken once, and stays taken when its node is taken off."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: dict[str, str] = {}  # of every node that was ever registered
        self.states: dict[str, str] = {}
        self.crash = False
        monkeypatch.setattr(Coordinator, "flower", lambda _, *arguments: self.flower(*arguments))

    def flower(self, what: str, verb: str, *arguments: str) -> dict[str, Any]:
        assert what == "supernode"
        if verb == "ls":
            return {"nodes": [{"node-id": node, "status": state} for node, state in self.states.items()]}
        if verb == "unregister":
            if self.states.get(arguments[0]) != "registered":
                raise UnreachableError("[code: 24] Node ID not found for account.; is it started?")
            self.states[arguments[0]] = "unregistered"
            return {}
        key = Path(arguments[0]).read_text()
        if key in self.keys.values():
            raise UnreachableError("[code: 23] Public key already in use.; is it started?")
        node = str(len(self.keys) + 1)
        self.keys[node], self.states[node] = key, "registered"
        if self.crash:
            raise KeyboardInterrupt
        return {"node-id": int(node)}

    def lose_database(self) -> None:
        self.keys = {f"lost {node}": "" for node in self.keys}  # numbers are never given again
        self.states = {}

    def live(self) -> list[str]:
        return [node for node, state in self.states.items() if state == "registered"]


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    return SuperLink(monkeypatch)


def enrolment(site: str) -> Enrolment:
    return Enrolment(site, public_node_key(new_node_key()).decode(), public_identity(new_identity_key()), "0")


def test_after_its_database_is_lost_the_same_enrolments_are_registered_again(
    coordinator: Coordinator, superlink: SuperLink
) -> None:
    ash, oak = enrolment("ash"), enrolment("oak")
    for site in (ash, oak, ash):
        coordinator.enroll(site)
    assert superlink.live() == ["1", "2"], "a second enrolment changes nothing"
    superlink.lose_database()
    coordinator.revoke("oak")
    coordinator.enroll(ash)
    assert superlink.live() == [coordinator.enrolled()["ash"]["node_id"]] == ["3"]
    assert list(coordinator.enrolled()) == ["ash"]


def test_an_enrolment_that_a_crash_cut_short_ends_when_it_is_made_again(
    coordinator: Coordinator, superlink: SuperLink
) -> None:
    ash, oak = enrolment("ash"), enrolment("oak")
    superlink.crash = True
    with pytest.raises(KeyboardInterrupt):
        coordinator.enroll(ash)
    superlink.crash = False
    assert coordinator.enrolled() == {}
    coordinator.enroll(oak)
    coordinator.enroll(ash)
    assert {site: known["node_id"] for site, known in coordinator.enrolled().items()} == {"ash": "1", "oak": "2"}


@pytest.mark.parametrize("key", ["node_key", "identity"])
def test_another_key_is_taken_when_it_is_said_to_replace_the_one_before(
    key: str, coordinator: Coordinator, superlink: SuperLink
) -> None:
    ash = enrolment("ash")
    coordinator.enroll(ash)
    other = replace(ash, **{key: getattr(enrolment("ash"), key)})
    with pytest.raises(StudyError, match=f"site ash is enrolled with another {key.partition('_')[0]} key"):
        coordinator.enroll(other)
    assert coordinator.enrolled()["ash"][key] == getattr(ash, key)
    coordinator.enroll(other, replace=True)
    assert coordinator.enrolled()["ash"][key] == getattr(other, key)
    assert superlink.live() == [coordinator.enrolled()["ash"]["node_id"]] == ["2" if key == "node_key" else "1"]


@pytest.mark.parametrize(("key", "what"), [("node_key", "node key"), ("identity", "identity key")])
def test_no_two_sites_have_one_key(key: str, what: str, coordinator: Coordinator, superlink: SuperLink) -> None:
    ash = enrolment("ash")
    coordinator.enroll(ash)
    with pytest.raises(StudyError, match=f"site oak: its {what} is that of site ash"):
        coordinator.enroll(replace(enrolment("oak"), **{key: getattr(ash, key)}))
    assert superlink.live() == ["1"]


def test_a_revoked_key_does_not_come_back_not_even_as_anothers_node(
    coordinator: Coordinator, superlink: SuperLink
) -> None:
    ash, oak = enrolment("ash"), enrolment("oak")
    coordinator.enroll(ash)
    coordinator.revoke("ash")
    superlink.crash = True
    with pytest.raises(KeyboardInterrupt):
        coordinator.enroll(oak)
    superlink.crash = False
    for _ in range(2):
        with pytest.raises(StudyError, match="site ash: the SuperLink takes no node key twice, and has had this one"):
            coordinator.enroll(ash)
    assert coordinator.enrolled() == {}
    coordinator.enroll(replace(ash, node_key=enrolment("ash").node_key))
    coordinator.enroll(oak)
    assert {site: known["node_id"] for site, known in coordinator.enrolled().items()} == {"ash": "3", "oak": "2"}


def test_a_node_that_somebody_else_took_off_is_revoked(coordinator: Coordinator, superlink: SuperLink) -> None:
    ash = enrolment("ash")
    coordinator.enroll(ash)
    superlink.flower("supernode", "unregister", "1")
    with pytest.raises(StudyError, match="takes no node key twice"):
        coordinator.enroll(ash)
    coordinator.revoke("ash")
    assert coordinator.enrolled() == {}


def enrolled(coordinator: Coordinator, *sites: str) -> Coordinator:
    for site in sites:
        identity = public_identity(new_identity_key())
        value = {"site": site, "node_key": "k", "node_id": "1", "identity": identity, "version": "0"}
        (coordinator.folder / "sites" / f"{site}.json").write_text(json.dumps(value))
    return coordinator


def test_an_attempt_is_told_which_coordinator_let_its_sites_in(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def flower(_: Coordinator, *arguments: str) -> dict[str, str]:
        said.extend(arguments)
        return {"run-id": "7"}

    monkeypatch.setattr(Coordinator, "flower", flower)
    assert coordinator.start(coordinator.runs / "heart", 60.0, ["mlflow"]) == "7"
    given = tomllib.loads(said[-1].replace(" ", "\n"))
    assert given == {
        "folder": str(coordinator.runs / "heart"),
        "coordinator": str(coordinator.folder),
        "approval-wait-s": 60.0,
        "track": "mlflow",
    }
    # Flower refuses a key that the bundle does not name.
    assert set(given) == set(tomllib.loads(_APP_FILES["pyproject.toml"])["tool"]["flwr"]["app"]["config"])
    assert enrolled(Coordinator(Path(given["coordinator"])), "ash", "birch").nodes == {"ash": 1, "birch": 1}


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


def test_a_submission_takes_along_all_that_the_run_reads(coordinator: Coordinator, tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk", TABLE)
    weights = {"path": "vendor.safetensors"}
    model = {**TABLE["model"], "weights": weights, "after": weights}
    desk.write_study(sites={"declared_patients": dict.fromkeys(SITES, 24)}, method={"name": "audit"}, model=model)
    run = prepare_run(enrolled(coordinator, *SITES), desk.study, [], None)
    after = run.placed(run.task().study).model.after
    assert after is not None
    assert Path(after.path).read_bytes() == (desk.folder / "vendor.safetensors").read_bytes()


def test_a_network_that_no_hospital_could_use_is_found_before_any_is_asked(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    desk = Desk(tmp_path / "desk", TABLE)
    network = {"factory": "tests.wrong:Centred", "weights": {"path": "vendor.safetensors"}}
    desk.write_study(sites={"declared_patients": dict.fromkeys(SITES, 24)}, model=network)
    desk.write_weights()
    with pytest.raises(ModelError, match="depends on the other rows of its batch"):
        prepare_run(enrolled(coordinator, *SITES), desk.study, [], None)
    assert list((coordinator.folder / "runs").iterdir()) == []


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
