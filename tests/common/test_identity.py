"""Keys and enrolments: in the forms that Flower and others take, and not to be exchanged on the way."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from pydantic import TypeAdapter

from equipoise.common.errors import StudyError
from equipoise.common.identity import (
    Enrolment,
    new_identity_key,
    new_node_key,
    public_identity,
    public_node_key,
    read_enrolment,
)
from equipoise.common.sitefile import Peers


@pytest.fixture(scope="module")
def signed() -> bytes:
    identity = new_identity_key()
    node = public_node_key(new_node_key()).decode()
    return Enrolment("st-marys", node, public_identity(identity), "0.1.0").signed(identity)


def test_the_node_key_is_what_a_supernode_takes() -> None:
    private = new_node_key()
    key = load_ssh_private_key(private, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    assert public_node_key(private).startswith(b"ecdsa-sha2-nistp384 ")


def test_the_identity_is_what_a_site_file_takes() -> None:
    peers = {"keys": {"st-marys": public_identity(new_identity_key())}}
    assert TypeAdapter(Peers).validate_python(peers).keys["st-marys"].startswith("ed25519:")


def written(folder: Path, data: bytes) -> Path:
    file = folder / "enrolment.json"
    file.write_bytes(data)
    return file


def test_an_enrolment_comes_back(signed: bytes, tmp_path: Path) -> None:
    found = read_enrolment(written(tmp_path, signed))
    assert found.site == "st-marys"
    assert len(found.fingerprint) == 35


@pytest.mark.parametrize("field", ["site", "node_key", "identity", "version", "signature"])
def test_a_changed_enrolment_is_refused(field: str, signed: bytes, tmp_path: Path) -> None:
    other = json.loads(Enrolment("x", "y", public_identity(key := new_identity_key()), "z").signed(key))
    value = json.loads(signed)
    value[field] = other[field]
    with pytest.raises(StudyError, match=r"changed after it was signed"):
        read_enrolment(written(tmp_path, json.dumps(value).encode()))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"signature": "!"}', b'{"signature": "AAAA", "site": "a"}'])
def test_what_is_no_enrolment_is_one_line(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="not an enrolment"):
        read_enrolment(written(tmp_path, data))


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"absent.json: cannot be read: No such file"):
        read_enrolment(tmp_path / "absent.json")
