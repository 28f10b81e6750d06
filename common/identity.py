"""Keys of a hospital: the node key that Flower asks for, the identity key that other hospitals pin, and the enrolment.

An enrolment is the file that a hospital sends to the coordinator: public keys only, signed by the identity key, so that
whoever passes it on cannot exchange one of them unseen once the fingerprint has been compared by telephone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from equipoise.common.canonical import canonical_json
from equipoise.common.errors import StudyError
from equipoise.common.patterns import NAME
from equipoise.common.secure_sum.keys import Identity

_SITE = re.compile(NAME)


def new_node_key() -> bytes:
    """An ECDSA P-384 key in OpenSSH's format, the only one that a SuperNode takes."""
    key = ec.generate_private_key(ec.SECP384R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def public_node_key(private: bytes) -> bytes:
    """The line that Flower's registration takes."""
    return load_ssh_private_key(private, None).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def new_identity_key() -> bytes:
    """An Ed25519 key, PEM."""
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_identity(private: bytes) -> str:
    """`ed25519:` and the public key in base 64, as it stands in the site files of others under `peers.keys`."""
    raw = _identity(private).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return "ed25519:" + base64.b64encode(raw).decode("ascii")


def signing_identity(private: bytes) -> Identity:
    """The identity of an Ed25519 key (PEM), as the secure sum uses it."""
    return Identity(_identity(private).private_bytes_raw())


@dataclass(frozen=True)
class Enrolment:
    """Who a site is: its name and its public keys."""

    site: str
    node_key: str
    identity: str
    version: str

    @property
    def fingerprint(self) -> str:
        """Four groups of digits to compare by telephone."""
        digest = hashlib.sha256(canonical_json(self.__dict__)).hexdigest()[:32]
        return " ".join(digest[start : start + 8] for start in range(0, 32, 8))

    def signed(self, private: bytes) -> bytes:
        """The enrolment file."""
        signature = _identity(private).sign(canonical_json(self.__dict__))
        value = {**self.__dict__, "signature": base64.b64encode(signature).decode("ascii")}
        return json.dumps(value, indent=1).encode()


def read_enrolment(file: Path) -> Enrolment:
    """The enrolment in a file, its signature checked.

    Raises:
        StudyError: it cannot be read, is none, or was changed after it was signed.
    """
    try:
        value = json.loads(file.read_bytes())
        signature = base64.b64decode(value.pop("signature"), validate=True)
        found = Enrolment(**value)
        raw = base64.b64decode(found.identity.removeprefix("ed25519:"), validate=True)
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, canonical_json(found.__dict__))
        node = load_ssh_public_key(found.node_key.encode())
    except OSError as error:
        raise StudyError(f"{file}: cannot be read: {error.strerror}") from None
    except InvalidSignature:
        raise StudyError(f"{file}: changed after it was signed; ask the hospital for its file again") from None
    except (ValueError, TypeError, AttributeError, KeyError):
        raise StudyError(f"{file}: not an enrolment; a hospital makes one with `equipoise site enroll`") from None
    if not isinstance(node, ec.EllipticCurvePublicKey) or not _SITE.fullmatch(found.site):
        raise StudyError(f"{file}: its node key is no EC key, or {found.site[:64]!r} is no name of a site")
    return found


def _identity(private: bytes) -> Ed25519PrivateKey:
    key = load_pem_private_key(private, None)
    if not isinstance(key, Ed25519PrivateKey):
        raise StudyError("the identity key is no Ed25519 key; put back the file that `equipoise site init` made")
    return key
